"""Sphinx's settings for the book. `build.py` lays out the pages and runs it."""

from chapters.book.docstrings import to_rst

project = html_title = "How an LLM inference engine works"
author = "the nano-vllm course"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature is enough; docstrings say shapes and units
nb_execution_mode = "off"  # the committed outputs are shown; the tests run every chapter
nb_merge_streams = True
nb_render_markdown_format = "myst"  # outputs that are Markdown may hold tables, which the default does not know
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 2  # the README leads to its own headings
nb_ipywidgets_js = {}  # explorers bring what they need (see build.py); the default would come from a CDN
suppress_warnings = ["myst.header"]  # a chapter may go from its title to a third-level heading
exclude_patterns = ["jupyter_execute"]
html_theme = "sphinx_book_theme"
html_theme_options = {"show_toc_level": 2, "use_download_button": True, "use_fullscreen_button": False,
                      "search_bar_text": "Search the course", "navbar_persistent": [], "navbar_end": []}
html_context = {"default_mode": "auto"}
html_static_path = ["static"]
html_css_files = ["book.css"]
html_show_copyright = False


def setup(app):
    def process(app, what, name, obj, options, lines):
        lines[:] = to_rst(lines)

    app.connect("autodoc-process-docstring", process)

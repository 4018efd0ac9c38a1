"""Figures that follow the page: each is drawn for light pages and for dark ones, and the page shows the one that fits.

A notebook's output holds the light picture as `image/png` (what GitHub, a mail or a new clone shows), the dark one and the
figure's texts under `SAVED_FIGURE`, and, only while a kernel runs it, HTML with both. The HTML is not committed; the book
makes it again from the two pictures.
"""

import base64
import io
from html import escape
from typing import Any, Literal

from IPython import get_ipython
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

SAVED_FIGURE = "application/vnd.nanovllm.figure+json"
PALETTE = 256  # colours of a picture: flat areas keep theirs, and the file is a third of a full-colour one
READABLE = 0.72  # of its size: on a page that has less room, a figure scrolls sideways by itself rather than shrink further
# JupyterLab and VS Code mark the body, the Sphinx book the root element.
STYLE = ("<style>.nvx-figure{overflow-x:auto}.nvx-figure img{max-width:100%;height:auto}.nvx-figure .nvx-dark{display:none}"
         ":is([data-jp-theme-light=false],.vscode-dark,[data-theme=dark]) .nvx-figure .nvx-light{display:none}"
         ":is([data-jp-theme-light=false],.vscode-dark,[data-theme=dark]) .nvx-figure .nvx-dark{display:inline}"
         # JupyterLab breaks the lines of an output anywhere. In a notebook with figures: printed ones between words, those of
         # a listing not at all, as in its cells; it scrolls.
         ".jp-Notebook:has(.nvx-figure) .jp-OutputArea-output pre{word-break:normal;overflow-wrap:anywhere}"
         ".jp-Notebook:has(.nvx-figure) .jp-OutputArea-output.jp-RenderedMarkdown :is(pre,pre code){white-space:pre}</style>")


class TwoModeFigure(Figure):
    """A figure that may have a twin for dark pages.

    dark: the same picture in the colours of dark pages; None where the figure was drawn in one mode only. light: this one as
    base64 PNG, once a notebook has shown it.
    """

    dark: Figure | None = None
    light: str | None = None

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """What a notebook shows. Without a dark twin, the picture alone."""
        self.light = light = png(self)
        data: dict[str, Any] = {"image/png": light, "text/plain": repr(self)}
        if self.dark is not None:
            dark, texts = png(self.dark), texts_of(self)
            data |= {SAVED_FIGURE: {"dark": dark, "texts": texts}, "text/html": html(light, dark, texts)}
        return data


def _shown_in(shell: Any) -> None:
    """matplotlib registers a PNG maker for every Figure with the notebook, which goes before what a figure says itself."""
    if shell is not None:
        shell.display_formatter.formatters["image/png"].for_type(
            TwoModeFigure, lambda figure: base64.b64decode(figure.light or png(figure)))


_shown_in(get_ipython())


def texts_of(fig: Figure) -> list[str]:
    """Every text that can be seen: titles, captions, labels, numbers in bars, ticks."""
    fig.draw_without_rendering()  # ticks have their texts only then
    texts = [text for text in fig.findobj(Text) if isinstance(text, Text) and text.get_visible()]
    return [text.get_text() for text in texts if text.get_text().strip()]


def html(light: str, dark: str, texts: list[str]) -> str:
    """Both pictures (base64 PNG), of which the page's mode shows one. The figure's texts stand in for it where it is read."""
    words = escape(" · ".join(texts), quote=True)
    width = int.from_bytes(base64.b64decode(light[:32])[16:20], "big")  # where a PNG says it
    least = f"min-width:{round(READABLE * width)}px"
    images = "".join(f'<img class="nvx-{mode} only-{mode}" style="{least}" alt="{words}" src="data:image/png;base64,{data}">'
                     for mode, data in (("light", light), ("dark", dark)))
    return f'{STYLE}<div class="nvx-figure">{images}</div>'


def png(fig: Figure, dpi: float | Literal["figure"] = "figure") -> str:
    """A figure as base64 PNG, small."""
    drawn, out = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", dpi=dpi, facecolor=fig.get_facecolor())
    drawn.seek(0)
    Image.open(drawn).convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE).save(out, format="png", optimize=True)
    return base64.b64encode(out.getvalue()).decode()

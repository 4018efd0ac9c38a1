"""Source as a chapter shows it: from the file, without what the reference says anyway, and nothing written anew."""

import ast
import inspect
import textwrap

import pytest

from nanovllm.engine.llm_engine import LLMEngine
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from visualizations import listing


def test_what_is_shown_is_what_the_file_says():
    """Line for line; what is longer than a page is wide, folded."""
    shown = repr(listing(LLMEngine.step)).split("\n")
    file = [line.strip() for line in inspect.getsource(LLMEngine).split("\n")]
    assert shown[-1] == "    return finished" and sum(line.strip() in file for line in shown) >= 0.8 * len(shown)
    assert max(map(len, shown)) <= 90
    source = ast.parse(textwrap.dedent(inspect.getsource(LLMEngine.step))).body[0]
    source.body = source.body[1:]  # without the docstring
    assert ast.dump(ast.parse("\n".join(shown)).body[0]) == ast.dump(source)
    assert '"""' not in repr(listing(Scheduler)) and '"""' in repr(listing(LLMEngine.step, docstring=True))


def test_properties_and_parts():
    assert repr(listing(Sequence.num_uncomputed_tokens)).startswith("@property\ndef num_uncomputed_tokens")
    part = repr(listing(LLMEngine.step, since="if not self._in_flight", until="return []"))
    assert part == "if not self._in_flight:\n    return []"
    with pytest.raises(ValueError, match="'no such words'"):
        listing(LLMEngine.step, since="no such words")


def test_only_some_lines_with_dots_for_what_is_left_out():
    part = repr(listing(LLMEngine.step, only=("def step", "return []", ".collect(")))
    file = repr(listing(LLMEngine.step)).split("\n")
    lines = part.split("\n")
    assert [line for line in lines if line.strip() != "..."] == [line for line in file if
                                                                 any(w in line for w in ("def step", "return []", ".collect("))]
    assert lines[0] == "..." and lines[1].startswith("def step") and lines[2] == " " * 12 + "..."
    with pytest.raises(ValueError, match="'no such words'"):
        listing(LLMEngine.step, only=("def step", "no such words"))


def test_a_copy_of_the_chapters_is_named_as_the_chapters(tmp_path, monkeypatch):
    folder = tmp_path / "chapters" / "exercises"
    folder.mkdir(parents=True)
    (folder / "elsewhere_too.py").write_text("def halves(n):\n    return n / 2\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    import elsewhere_too

    assert listing(elsewhere_too.halves).file == "chapters/exercises/elsewhere_too.py"


def test_a_page_colours_it_and_leads_to_the_file():
    shown = listing(Sequence.num_uncomputed_tokens)._repr_markdown_()
    assert shown.startswith("[`nanovllm/engine/sequence.py`](../nanovllm/engine/sequence.py)\n\n```python\n@property")

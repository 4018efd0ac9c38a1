"""Appendix B names what is there: a table of names must not outlive a renaming."""

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def table_rows(number: int) -> list[list[str]]:
    """The cells of the appendix's table, without its head."""
    notebook = json.loads((ROOT / "chapters" / "B_glossary.ipynb").read_text(encoding="utf-8"))
    tables = ["".join(cell["source"]) for cell in notebook["cells"] if "|---|" in "".join(cell["source"])]
    rows = [line.strip("| ").split(" | ") for line in tables[number].splitlines() if line.startswith("|")]
    return rows[2:]


def test_every_place_of_ours_is_in_the_source():
    places = [re.findall(r"`([^`]+)`", row[1]) for row in table_rows(1)]
    assert len(places) >= 20
    for name, file in places:
        defined = [node.name for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body if hasattr(node, "name")]
        assert name in defined, f"{name} is not in {file}"


def test_every_word_has_its_chapter_and_its_chinese():
    for english, chinese, meaning, chapter in table_rows(0):
        assert meaning.endswith(".") and re.search(r"[\u4e00-\u9fff]|FlashAttention", chinese), english
        number, file = re.fullmatch(r"\[(\d\d)\]\((.+)\)", chapter).groups()  # a link to the chapter
        assert file.startswith(f"{number}_") and (ROOT / "chapters" / file).is_file(), (english, chapter)


def test_the_words_that_readers_missed_are_there():
    english = " ".join(row[0] for row in table_rows(0))
    for word in ("NCCL", "arithmetic intensity", "floor", "launch-bound", "eager", "fusion", "PDL", "pending token",
                 "goodput", "speculative decoding", "quantisation", "MoE", "grammar mask", "perplexity", "attention; query",
                 "tokenizer", "kernel", "greedy", "static batching", "thrashing", "HBM", "column parallel", "bf16",
                 "ablation", "round robin", "derivative"):
        assert word in english, word

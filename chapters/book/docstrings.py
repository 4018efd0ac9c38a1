"""Our docstrings as Sphinx reads them.

They are written to be read in the source: plain paragraphs, names in backticks, and lists of `name: what it is`, a name per
line. Sphinx wants reStructuredText, in which half of that means something else.
"""

import itertools
import re

NAMED = re.compile(r"^(?P<names>[A-Za-z_][\w.]*(?:, [A-Za-z_][\w.]*)*): (?P<text>.+)$")
SECOND = re.compile(r"(?<=[.;]) (?=[a-z_][\w.]*(?:, [a-z_][\w.]*)*: )")  # one more name on the same line
NOT_A_NAME = {"Raises", "Returns", "Yields", "Note", "Unlike"}


def to_rst(lines: list[str]) -> list[str]:
    """A docstring's lines, dedented, as reStructuredText."""
    out: list[str] = []
    for paragraph in _paragraphs(lines):
        if _is_indented(paragraph):  # code, or a drawing in letters
            out += ["::", "", *paragraph]
        elif NAMED.match(paragraph[0]) and paragraph[0].split(":")[0] not in NOT_A_NAME:
            out += _definitions(paragraph)
        else:
            out += [_inline(" ".join(line.strip() for line in paragraph))]
        out.append("")
    return out


def _paragraphs(lines: list[str]) -> list[list[str]]:
    """Runs of lines between blank ones; an indented run is a paragraph of its own, blank lines inside it included."""
    text = "\n".join(line.rstrip() for line in lines).strip("\n")
    runs: list[list[str]] = []
    for block in re.split(r"\n\s*\n", text):
        block_lines = block.split("\n")
        if _is_indented(block_lines) and runs and _is_indented(runs[-1]):
            runs[-1] += ["", *block_lines]
        elif block.strip():
            runs.append(block_lines)
    return runs


def _is_indented(paragraph: list[str]) -> bool:
    return all(line.startswith("    ") or not line for line in paragraph)


def _definitions(paragraph: list[str]) -> list[str]:
    """A list of names and what they are. A line that begins with no name goes on with what stands above it."""
    items: list[list[str]] = []
    for line in itertools.chain.from_iterable(SECOND.split(line) for line in paragraph):
        found = NAMED.match(line)
        if found:
            items.append([found["names"], found["text"]])
        else:
            items[-1].append(line.strip())
    return [line for names, *text in items for line in (_inline(f"`{names}`"), f"    {_inline(' '.join(text))}", "")][:-1]


def _inline(text: str) -> str:
    """Backticked names as code; whatever else reStructuredText would take for markup, as itself."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(f"``{part[1:-1]}``" + ("\\ " if i + 1 < len(parts) and parts[i + 1][:1].isalnum() else "")
                   if part.startswith("`") and part.endswith("`") and len(part) > 2 else re.sub(r"([*_|\\`<>])", r"\\\1", part)
                   for i, part in enumerate(parts))

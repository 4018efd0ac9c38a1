"""Long lines of Python folded to a page's width, without a change of meaning.

A statement is broken between its parts (with a backslash) or inside its brackets, after a comma or before an operator. A
comment behind code goes above it, a string that is longer than the page becomes two side by side, and prose is filled anew.
"""

import io
import tokenize
from dataclasses import dataclass
from textwrap import wrap

OPEN, CLOSE = "([{", ")]}"
WORDS = {"if", "else", "for", "and", "or"}  # before which a line is best broken
SIGNS = {"+", "-", "*", "/", "//", "|", "<", ">", "<=", ">=", "==", "!=", "in", "is", "not"}  # and next best
NOT_BEHIND = WORDS | SIGNS | {"=", "return", "yield", "lambda", "(", "[", "{", ",", ":"}  # there a sign is no operator
HANGING = 8  # columns of indentation where the bracket stands too far to the right
FARTHEST = 0.55  # of the width: how far to the right a line may go on below its bracket
SHORTEST = 0.27  # of the width: a shorter beginning is no place to break


@dataclass(frozen=True)
class Break:
    """A place where a line may end. column: of what then comes first. below: the column at which it goes on, None for the
    statement's own. depth: brackets that are open there; with none a backslash is needed. kind: 0 the best to 2 the worst.
    """

    column: int
    below: int | None
    depth: int
    kind: int


def folded(source: str, columns: int) -> list[list[str]]:
    """For each line of `source`, which must be whole statements, the lines that show it. What cannot be folded stays."""
    rows = source.split("\n")
    long = {number for number, row in enumerate(rows, 1) if len(row) > columns}
    if not long:
        return [[row] for row in rows]
    comments, breaks, strings = _places(source)
    shown = [_fold(row, columns, comments.get(number), breaks.get(number, []), strings.get(number, []))
             if number in long else [row] for number, row in enumerate(rows, 1)]
    _follow(rows, shown)
    for first, last, mark in _prose(source):
        if long & set(range(first, last + 1)):
            shown[first - 1] = _filled(rows[first - 1:last], columns, mark)
            shown[first:last] = [[] for _ in range(first, last)]
    return shown


def _follow(rows: list[str], shown: list[list[str]]) -> None:
    """What goes on in the column behind a bracket goes on below what was moved when the line was broken at that bracket."""
    for number, lines in enumerate(shown):
        if len(lines) < 2 or lines[0][-1:] not in OPEN:
            continue
        column, below = len(lines[0]), len(lines[1]) - len(lines[1].lstrip())
        for place in range(number + 1, len(rows)):
            if len(rows[place]) - len(rows[place].lstrip()) != column:
                break
            shown[place] = [" " * (len(line) - len(line.lstrip()) + below - column) + line.lstrip() for line in shown[place]]


def _prose(source: str) -> list[tuple[int, int, str]]:
    """Lines that hold nothing but words, as (first, last, "#" or ""): runs of comments, and the paragraphs of docstrings."""
    parts: list[tuple[int, int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.line[:token.start[1]].strip():
            continue
        (first, column), last = token.start, token.end[0]
        if token.type == tokenize.COMMENT:
            if parts and parts[-1][1:] == (first - 1, "#") and source.split("\n")[first - 2].index("#") == column:
                first = parts.pop()[0]
            parts.append((first, last, "#"))
        elif token.type == tokenize.STRING and token.string.endswith('"""'):
            rows = source.split("\n")
            begin = first
            for row in range(first, last + 1):
                words = rows[row - 1].strip()
                if not words or row == last:
                    parts.append((begin, row - (words == '"""' and row > begin), ""))
                    begin = row + 1
    return parts


def _filled(rows: list[str], columns: int, mark: str) -> list[str]:
    """Lines of words in as many lines as they need; what is indented further than the first, such as a list, stays."""
    indent = rows[0][:len(rows[0]) - len(rows[0].lstrip())]
    if any((row.strip() and not row.startswith(indent + (mark + " " if mark else ""))) or row.startswith(indent + mark + "    ")
           for row in rows):
        return [line for row in rows for line in ([row] if len(row) <= columns else _filled([row], columns, mark))] \
            if len(rows) > 1 else rows
    empty = [""] if not rows[-1].strip() else []
    words = " ".join(row.strip().removeprefix(mark).strip() for row in rows)
    before = indent + (mark + " " if mark else "")
    return wrap(words, columns, initial_indent=before, subsequent_indent=before, break_long_words=False,
                break_on_hyphens=False) + empty


def _places(source: str) -> tuple[dict[int, int], dict[int, list[Break]], dict[int, list[tuple[int, int, int]]]]:
    """By line: the column of a comment behind code; places to break; strings as (begin, end, depth of open brackets)."""
    comments: dict[int, int] = {}
    breaks: dict[int, list[Break]] = {}
    strings: dict[int, list[tuple[int, int, int]]] = {}
    stack: list[tuple[int, int]] = []  # of open brackets: the row, and the column behind it
    before, inside = "", 0  # the token before; how many f-strings the place is in
    begin = (0, 0)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name, (row, column), text = tokenize.tok_name[token.type], token.start, token.string
        if name == "FSTRING_START":
            begin, inside = (row, column) if not inside else begin, inside + 1
        if inside:
            if name == "FSTRING_END":
                inside -= 1
                if not inside and begin[0] == token.end[0]:
                    strings.setdefault(row, []).append((begin[1], token.end[1], len(stack)))
                before = text
            continue
        if name == "COMMENT" and token.line[:column].strip():
            comments[row] = column
        elif name == "STRING" and token.end[0] == row:
            strings.setdefault(row, []).append((column, token.end[1], len(stack)))
        if name in ("OP", "NAME", "NUMBER", "STRING") and token.line[:column].strip():
            # What is in a bracket of an earlier line goes on where this line begins.
            below = None if not stack else stack[-1][1] if stack[-1][0] == row else len(token.line) - len(token.line.lstrip())
            binary = text in WORDS | SIGNS and before not in NOT_BEHIND
            if text not in CLOSE and (before == "," or binary):
                breaks.setdefault(row, []).append(Break(column, below, len(stack), int(before != "," and text in SIGNS)))
            elif (stack and before == "(") or (before == "=" and not stack):
                breaks.setdefault(row, []).append(Break(column, None, len(stack), 2))
        if name == "OP" and text in OPEN:
            stack.append((row, column + 1))
        elif name == "OP" and text in CLOSE:
            stack.pop()
        if name not in ("NL", "NEWLINE", "COMMENT", "INDENT", "DEDENT"):
            before = text
    return comments, breaks, strings


def _fold(row: str, columns: int, comment: int | None, breaks: list[Break], strings: list[tuple[int, int, int]],
          indent: int | None = None) -> list[str]:
    """The lines that show one. indent: of the statement, where `row` is what goes on of it."""
    indent = len(row) - len(row.lstrip()) if indent is None else indent
    if comment is not None:
        above = _filled([" " * indent + row[comment:]], columns, "#")
        return [*above, *_fold(row[:comment].rstrip(), columns, None, breaks, strings)]
    if len(row) <= columns or row.lstrip().startswith("#"):
        return [row]
    fits = [b for b in breaks if SHORTEST * columns <= b.column <= columns - 1]
    if fits:
        # Between the parts of a statement first, unless an outer bracket has a better place.
        best = min(fits, key=lambda b: (b.kind + 0.5 * b.depth if b.depth else 0.4 * b.kind, -b.column))
        head, ending = row[:best.column].rstrip(), " \\" if best.depth == 0 else ""
        near = best.below is not None and best.below <= FARTHEST * columns
        below = best.below if near and best.below is not None else indent + HANGING
        moved = below - best.column
        later = [(begin + moved, end + moved, depth) for begin, end, depth in strings if begin >= best.column]
        return [head + ending, *_fold(" " * below + row[best.column:], columns, None,
                                      _moved(breaks, best.column + 1, moved, below), later, indent)]
    for first, last, depth in strings:
        if not depth and last == len(row) and indent < first:  # a value that is a long string: in brackets it can be two
            value = [(first + 1, last + 1, 1)]
            return _fold(f"{row[:first]}({row[first:]})", columns, None, [], value)
        if depth and first < columns - 12 < last and (cut := _space(row[first:last], columns - 1 - first)):
            opening = row[first:first + _quote(row[first:])]
            head, tail = row[:first + cut] + opening[-1], " " * first + opening + row[first + cut:]
            moved = len(opening) - cut
            return [head, *_fold(tail, columns, None, _moved(breaks, last, moved, first),
                                 [(begin + moved if begin > first else first, end + moved, d) for begin, end, d in strings
                                  if begin >= first])]
    return [row]


def _moved(breaks: list[Break], column: int, moved: int, below: int) -> list[Break]:
    """The places from `column` on, in a line that was moved and whose brackets opened before that go on at `below`."""
    return [Break(b.column + moved, None if b.depth == 0 else below if b.below is None or b.below < column else b.below + moved,
                  b.depth, b.kind) for b in breaks if b.column >= column]


def _quote(text: str) -> int:
    """How long a string's prefix is, with its quote."""
    return next(i for i, letter in enumerate(text) if letter in "\"'") + 1


def _space(text: str, room: int) -> int:
    """Where a string may end: behind its last space before `room` that is in no braces; 0 where there is none."""
    begin = _quote(text)
    if text[begin - 1] * 3 == text[begin - 1:begin + 2]:
        return 0
    formatted, depth, best = "f" in text[:begin].lower(), 0, 0
    for place in range(begin, min(room, len(text) - 1)):
        letter = text[place]
        depth += (letter == "{") - (letter == "}") if formatted else 0
        if letter == " " and depth == 0 and place > begin + 10:
            best = place + 1
    return best



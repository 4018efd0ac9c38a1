"""Do two runs of a cell show the same thing? Not: are they the same bytes.

Numbers may differ by a relative 1e-3 (another machine sums in another order), an explorer's scores by a rounding, pictures by
what antialiasing changes. What is written in a picture is compared as text: small grey words are too few pixels to be seen in
them.
Anything else that differs is a difference.
"""

import base64
import difflib
import io
import json
import re

import numpy as np

from visualizations.both_modes import SAVED_FIGURE
from visualizations.explorers.base import SAVED, unpack

NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?(?![\w.])")
RTOL = 1e-3
SMALLEST = 1e-9  # below this, two numbers are both zero
PICTURE_MEAN = 2.0  # of 255, over the whole picture: another font hinting passes, another colour scheme does not
PICTURE_PATCH = 32.0  # of 255, over any 16 x 16 patch: a bar that moved, a label that changed
PATCH = 16


def same_number(a: str, b: str, rtol: float = RTOL) -> bool:
    x, y = float(a), float(b)
    if "." not in a + b and "e" not in (a + b).lower():
        return x == y  # integers are counts, ids and shapes: exact
    return abs(x - y) <= rtol * max(abs(x), abs(y)) + SMALLEST


def same_text(a: str, b: str, rtol: float = RTOL) -> bool:
    """Equal words in equal order, with numbers compared as numbers. Runs of blanks count as one."""
    if a == b:
        return True
    if NUMBER.sub("#", a).split() != NUMBER.sub("#", b).split():
        return False
    return all(same_number(x, y, rtol) for x, y in zip(NUMBER.findall(a), NUMBER.findall(b), strict=True))


def same_picture(a: str, b: str) -> bool:
    """Two base64 PNGs: as large (to two pixels), alike on the whole, and alike in every patch."""
    if a == b:
        return True
    from matplotlib.image import imread

    x, y = (255 * imread(io.BytesIO(base64.b64decode(p)), format="png") for p in (a, b))
    x, y = (np.atleast_3d(p)[..., :3] for p in (x, y))
    if any(abs(m - n) > 2 for m, n in zip(x.shape, y.shape, strict=True)):
        return False
    height, width = min(x.shape[0], y.shape[0]), min(x.shape[1], y.shape[1])
    x, y = x[:height, :width], y[:height, :width]
    if np.abs(x - y).mean() > PICTURE_MEAN:
        return False
    # The mean of a patch forgives a line shifted by a fraction of a pixel, and still sees a line that is gone.
    rows, columns = max(1, height // PATCH), max(1, width // PATCH)
    difference = (x - y)[: rows * PATCH, : columns * PATCH].mean(axis=2)
    patches = difference.reshape(rows, difference.shape[0] // rows, columns, difference.shape[1] // columns)
    return bool(np.abs(patches.mean(axis=(1, 3))).max() <= PICTURE_PATCH)


def same_value(mime: str, a, b, rtol: float = RTOL) -> bool:
    if mime == "image/png":
        return same_picture(a, b)
    if mime == SAVED_FIGURE:
        return same_text("\n".join(a["texts"]), "\n".join(b["texts"]), rtol) and same_picture(a["dark"], b["dark"])
    if mime == SAVED:
        return same_explorer(timeless(a), timeless(b))
    if isinstance(a, str) and isinstance(b, str):
        return same_text(a, b, rtol)
    return a == b


def same_explorer(a: dict, b: dict) -> bool:
    """Two explorers' data from `timeless`. Scores, which travel as whole numbers of `units`, may differ by one of these."""
    x, y = a["payload"], b["payload"]
    if "units" in x and "units" in y:
        scores, others = (np.asarray(payload["logits"]) for payload in (x, y))
        if scores.shape != others.shape or np.abs(scores - others).max(initial=0) > 1:
            return False
        x, y = x | {"logits": None}, y | {"logits": None}
    return a | {"payload": x} == b | {"payload": y}


def timeless(saved: dict) -> dict:
    """An explorer's data, unpacked, without its fractions: in a trace those are seconds. Counts, ids and words stay."""

    def rounded(value):
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        if isinstance(value, list):
            return [rounded(item) for item in value]
        return None if isinstance(value, float) else value

    return saved | {"payload": rounded(unpack(base64.b64decode(saved["payload"])))}


def same_output(a, b, rtol: float = RTOL) -> bool:
    """`a` and `b` are outputs in canonical form. Of an error, the type and the message count, not the traceback."""
    if a.output_type != b.output_type:
        return False
    if a.output_type == "stream":
        return a.name == b.name and same_text(a.text, b.text, rtol)
    if a.output_type == "error":
        return a.ename == b.ename and same_text(a.evalue, b.evalue, rtol)
    return set(a.data) == set(b.data) and all(same_value(mime, a.data[mime], b.data[mime], rtol) for mime in a.data)


def same_outputs(a, b, rtol: float = RTOL) -> bool:
    return len(a) == len(b) and all(same_output(x, y, rtol) for x, y in zip(a, b, strict=True))


def readable(outputs) -> list[str]:
    """Outputs as lines for a person; a picture is its size, an explorer what it holds."""
    lines = []
    for output in outputs:
        if output.output_type == "stream":
            lines += [f"[{output.name}] {line}" for line in output.text.splitlines()]
        elif output.output_type == "error":
            lines.append(f"[error] {output.ename}: {output.evalue}")
        else:
            for mime, value in sorted(output.data.items()):
                shown = f"({len(value)} characters)" if mime.startswith("image/png") else str(value)
                if mime == SAVED_FIGURE:
                    shown = "\n".join(value["texts"])
                elif mime == SAVED:
                    shown = json.dumps(timeless(value), indent=1, sort_keys=True, ensure_ascii=False)
                lines += [f"[{mime}] {line}" for line in shown.splitlines()]
    return lines


def describe_difference(committed, now, limit: int = 30) -> str:
    diff = list(difflib.unified_diff(readable(committed), readable(now), "committed", "now", lineterm="", n=1))
    if not diff:
        return "the picture changed"
    return "\n".join(diff[:limit] + ([f"... and {len(diff) - limit} lines more"] if len(diff) > limit else []))

"""Numbers as people bring them: Python's own, numpy's, torch's; one at a time or in arrays."""

from collections.abc import Iterable
from math import isfinite
from typing import Any, TypeGuard

from nanovllm.errors import InvalidRequest

FLOAT32_TINY = 2.0**-126  # the smallest number that float32 holds with all its digits, and no device takes for 0


def plain(value: Any) -> Any:
    """numpy's and torch's numbers and arrays as Python's numbers and lists; everything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def is_int(value: object) -> TypeGuard[int]:
    """A whole number, which True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """A finite number that a float can hold, which True and False are not."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
    except OverflowError:
        return False


def as_token_ids(prompt: Any) -> list[int]:
    """A prompt's token ids as Python's own numbers. Raises InvalidRequest for anything that is not a row of whole numbers."""
    ids = plain(prompt)
    if not isinstance(ids, (list, tuple, range)):
        raise InvalidRequest(f"prompt={shown(prompt)}: must be a text or a list of token ids; pass one of those.")
    if set(map(type, ids)) <= {int}:  # as nearly always, and prompts are long
        return list(ids)
    ids = [plain(token) for token in ids]
    for token in ids:
        if not is_int(token):
            raise InvalidRequest(f"token id={shown(token)}: must be a whole number; encode the text with this model's "
                                 "tokenizer.")
    return [int(token) for token in ids]


def shown(value: object, longest: int = 200) -> str:
    """repr, cut so that a message stays readable whatever was passed."""
    if isinstance(value, int) and abs(value) >= 10**100:  # Python refuses to spell the longest
        return f"<a whole number of {value.bit_length()} bits>"
    if isinstance(value, (str, bytes)) and len(value) > longest:
        return f"{value[:longest]!r}..."
    if isinstance(value, (list, tuple, set, frozenset, dict)) and len(value) > longest:
        return f"<{type(value).__name__} of {len(value)}, among them {', '.join(shown(item, 20) for item in _first(value, 3))}>"
    try:
        text = repr(value)
    except Exception as error:  # whatever a stranger's class does
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"
    return text if len(text) <= 4 * longest else f"{text[:4 * longest]}..."


def _first(values: Iterable[Any], count: int) -> list[Any]:
    return [value for value, _ in zip(values, range(count))]

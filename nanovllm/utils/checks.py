"""One shape for every complaint about what a user passed."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal, NoReturn, overload

from nanovllm.utils.numbers import shown


@overload
def check(ok: Literal[False], name: str, value: object, limit: str, remedy: str) -> NoReturn: ...


@overload
def check(ok: bool, name: str, value: object, limit: str, remedy: str) -> None: ...


def check(ok: bool, name: str, value: object, limit: str, remedy: str) -> None:
    """Raise ValueError "name=value: must be limit; remedy" unless `ok`. Unlike `assert`, it survives `python -O`."""
    if not ok:
        raise ValueError(f"{name}={shown(value)}: must be {limit}; {remedy}.")


def check_keywords(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for a keyword that `owner` does not take, naming the nearest one that it does."""
    known = list(known)
    for name in given:
        near = get_close_matches(name, known, 1)
        check(name in known, f"{owner} keyword", name, f"one of {', '.join(known)}",
              f"did you mean {near[0]!r}?" if near else "remove it")

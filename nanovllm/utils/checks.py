"""One shape for every complaint about what a user passed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from nanovllm.errors import InvalidArgument, InvalidRequest, NanoVLLMError
from nanovllm.utils.numbers import shown


def check(ok: bool, name: str, value: object, limit: str, remedy: str, *, error: type[NanoVLLMError] = InvalidArgument
          ) -> None:
    """Raise `error`, "name=value: must be limit; remedy", unless `ok`. Unlike `assert`, it survives `python -O`."""
    if not ok:
        end = "" if remedy.endswith("?") else "."
        raise error(f"{name}={shown(value)}: must be {limit}; {remedy}{end}")


def check_request(ok: bool, name: str, value: object, limit: str, remedy: str) -> None:
    """As `check`, of what one request asks for: raises InvalidRequest."""
    check(ok, name, value, limit, remedy, error=InvalidRequest)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Put before every complaint of ours what it is about, where it would sound as if it were about something else."""
    try:
        yield
    except NanoVLLMError as error:
        raise type(error)(f"{what}: {error}") from error


def check_characters(name: str, text: str) -> None:
    """Raise InvalidRequest for half of a surrogate pair, which JSON and Python can spell and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{name}={shown(text)}: must be characters, and the one at {error.start} is half of a surrogate "
                             "pair, which stands for nothing alone; decode the text again with errors='replace'.") from None


def check_keywords(owner: str, given: Iterable[str], known: Iterable[str], *,
                   error: type[NanoVLLMError] = InvalidArgument) -> None:
    """Raise `error` for a keyword that `owner` does not take, naming the nearest one that it does."""
    known = list(known)
    for name in given:
        if name not in known:  # asked first: what is nearest takes a millisecond to find, and every request comes this way
            near = get_close_matches(name, known, 1) if isinstance(name, str) else []
            check(False, f"{owner} keyword", name, f"one of {', '.join(known)}",
                  f"did you mean {near[0]!r}?" if near else "remove it", error=error)

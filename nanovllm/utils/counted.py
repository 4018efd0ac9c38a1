"""Numbers with their nouns, for messages and summaries that people read."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 block`, `2 blocks`; plural: where it is not the noun and an s, such as "entries"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"

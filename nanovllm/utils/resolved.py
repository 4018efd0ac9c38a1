"""A setting that is given in one form and read in another."""

from typing import Any, Generic, TypeVar, overload

Given = TypeVar("Given")
Used = TypeVar("Used")


class Resolved(Generic[Given, Used]):
    """A field of a dataclass that takes `Given`, such as "auto" or None, and holds `Used` once it has been resolved.

    Tells type checkers both. The class's `__post_init__` must set it; until then it reads as it was given.
    """

    def __init__(self, default: Given):
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Given: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Used: ...

    def __get__(self, instance: object | None, owner: type) -> Any:
        return self.default if instance is None else vars(instance)[self.name]

    def __set__(self, instance: object, value: Given | Used) -> None:
        vars(instance)[self.name] = value

"""Exercises about a model's config are answered from its numbers: while one runs, no module can be built."""

from collections.abc import Callable
from typing import Any
from unittest import mock

from torch import nn

from .verdict import Wrong


def from_config_alone(answer: Callable, *arguments: Any) -> Any:
    """What the reader's function returns where no module can be built, not even on the meta device.

    Raises `Wrong`, the hint of a check, when it tries.
    """

    def refuse(module: nn.Module, *_: Any, **__: Any) -> None:
        raise Wrong(f"a {type(module).__name__} was built to be looked into; the sizes in the config are all that is needed.")

    with mock.patch.object(nn.Module, "__init__", refuse):
        return answer(*arguments)

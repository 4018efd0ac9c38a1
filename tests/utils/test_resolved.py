"""A field that takes one type and holds another."""

import copy
import pickle
from dataclasses import dataclass, fields

import pytest

from nanovllm.utils.resolved import Resolved


@dataclass
class Settings:
    size: Resolved[int | str, int] = Resolved("auto")
    name: str = "x"

    def __post_init__(self) -> None:
        given = vars(self)["size"]
        self.size = 7 if given == "auto" else int(given)


def test_it_is_an_ordinary_field_of_the_dataclass():
    assert [(f.name, f.default) for f in fields(Settings)] == [("size", "auto"), ("name", "x")]
    assert Settings.size == "auto"
    assert repr(Settings()) == "Settings(size=7, name='x')"
    assert Settings(7) == Settings(size="7") != Settings(8)


def test_instances_hold_values_of_their_own():
    first, second = Settings(1), Settings()
    first.size = 3
    assert (first.size, second.size) == (3, 7)


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_keep_what_was_resolved(twin):
    assert twin(Settings("12")) == Settings(12)

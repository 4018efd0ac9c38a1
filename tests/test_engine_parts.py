"""An engine is put together, or nothing of it stays behind."""

import gc
import weakref

import pytest

import nanovllm.engine_parts
from nanovllm import LLM, InvalidArgument
from nanovllm.engine.draft_on_device import DraftingRunner
from nanovllm.engine.model_runner import ModelRunner
from nanovllm.engine.scheduler import Scheduler


class NoScheduler(Scheduler):
    def __init__(self, *args, **settings):
        raise InvalidArgument("this one cannot be made")


@pytest.mark.parametrize("settings", [dict(drafter=object()), dict(scheduler_cls=NoScheduler)])
def test_an_exception_on_the_way_holds_on_to_no_weights(monkeypatch, settings):
    made = []

    def make(kind):
        def remembered(config):
            runner = kind(config)
            made.append(weakref.ref(runner))
            return runner

        monkeypatch.setattr(nanovllm.engine_parts, kind.__name__, remembered)

    make(ModelRunner)
    make(DraftingRunner)
    with pytest.raises(InvalidArgument) as caught:
        LLM(device="cpu", num_kvcache_blocks=8, **settings)
    gc.collect()
    assert len(made) == 1 and made[0]() is None, caught

"""Puts the parts of an engine together, as a configuration says: the runner, the drafter, the loop around them."""

import traceback
from typing import Any

from nanovllm.config import Config
from nanovllm.engine.draft_on_device import DraftingRunner, draft_on_device
from nanovllm.engine.drafts import Drafter
from nanovllm.engine.drafts_model import DraftModel
from nanovllm.engine.drafts_ngram import NgramDrafter
from nanovllm.engine.llm_engine import LLMEngine
from nanovllm.engine.model_runner import ModelRunner
from nanovllm.engine.runner import Runner
from nanovllm.layers.sampler import Sample
from nanovllm.parallel.parallel_runner import ParallelRunner
from nanovllm.utils.checks import check, naming
from nanovllm.utils.numbers import is_number, plain
from nanovllm.utils.torch_state import own_torch_state


def make_engine(config: Config, sampler: Sample | None = None, drafter: Drafter | None = None, **parts: Any) -> LLMEngine:
    """An engine with its model loaded and its cache allocated. parts: `scheduler_cls`, `block_manager_cls` (see `LLMEngine`).

    Where that fails, the exception holds on to nothing of what was loaded.
    """
    try:
        with own_torch_state(config.device):
            return _put_together(config, sampler, drafter, parts)
    except BaseException as error:
        _forget_locals(error)
        raise


def _put_together(config: Config, sampler: Sample | None, drafter: Drafter | None, parts: dict[str, Any]) -> LLMEngine:
    runner = _make_runner(config, sampler, drafts=drafter is not None or config.speculative_config is not None)
    drafter = _make_drafter(config, drafter, runner.num_blocks)
    if drafter is not None and isinstance(runner, DraftingRunner):
        draft_on_device(runner, drafter, config)
    return LLMEngine(config, runner, drafter=drafter, **parts)


def _make_runner(config: Config, sampler: Sample | None, drafts: bool) -> Runner:
    """The model on its device, or on several."""
    if config.tensor_parallel_size > 1:
        check(sampler is None, "sampler", sampler, "None with tensor_parallel_size > 1",
              "the ranks draw in processes of their own; try it at size 1")
        return ParallelRunner(config)
    runner = DraftingRunner(config) if drafts else ModelRunner(config)
    if sampler is not None:
        runner.sampler = sampler
    return runner


def _make_drafter(config: Config, own: Drafter | None, num_blocks: int) -> Drafter | None:
    """What guesses tokens, if anything is to: `own`, or what the configuration names."""
    settings = config.speculative_config
    method = settings.method if settings else None
    if own is not None:
        check(method is None, "drafter", own, f"left out beside speculative_config's method {method!r}", "pass one of the two")
        _check_drafter(own)
        return own
    check(settings is None or method is not None, "speculative_config['method']", method, "named",
          "pass 'ngram' or 'draft_model', or a drafter of your own: LLM(drafter=...)")
    if settings and method == "ngram":
        return NgramDrafter(*settings.lookup_lengths)
    if config.draft:
        with naming("speculative_config['model']"):
            return DraftModel(config.draft, config.hf_config, num_blocks)
    return None


def _check_drafter(own: object) -> None:
    """Whether it is what the engine will ask, before a step does: there it would fail every request, and not at once."""
    name = "nanovllm.engine.drafts.Drafter"
    check(not isinstance(own, type), "drafter", own, "an object, and not its class", "pass one: LLM(drafter=YourDrafter())")
    asked = ["propose", "forget", "close"]
    if hasattr(own, "on_device"):  # only then the others, too
        asked = [method for method, value in vars(Drafter).items() if callable(value) and not method.startswith("_")]
    missing = [method for method in asked if not callable(getattr(own, method, None))]
    check("propose" not in missing, "drafter", own, "an object with a `propose` method", f"subclass {name}")
    check(not missing, "drafter", own, f"an object with the methods {', '.join(asked)}, and it has no {', '.join(missing)}",
          f"subclass {name}, which has all of them")
    cost = plain(getattr(own, "cost", None))
    check(is_number(cost) and cost >= 0, "drafter.cost", cost, "a number, 0 or more", "0.1 is a tenth of a step for each guess")


def _forget_locals(error: BaseException | None) -> None:
    """An exception keeps alive every local variable of the functions it came through: here, weights."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__

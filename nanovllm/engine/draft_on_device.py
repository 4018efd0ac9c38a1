"""Puts a runner, a drafter and `draft_graphs` together."""

from types import ModuleType

from nanovllm.config import Config
from nanovllm.engine.draft_graphs import DraftGraphs
from nanovllm.engine.drafts import Drafter
from nanovllm.engine.model_runner import ModelRunner
from nanovllm.layers import draft_state, row_state


def draft_on_device(runner: ModelRunner, drafter: Drafter, config: Config, capture: bool = True) -> DraftGraphs | None:
    """Have the runner draft, check and compare without the host, where it can; None, and nothing changes, where it cannot.

    A drafter of your own that has no `on_device` needs the host, and so does a sampler of your own. Without a GPU steps are as
    long as their launches, and nothing is gained; capture=False has them run so all the same.
    """
    if capture and (runner.graphs is None or runner.backend.name != "triton"):
        return None
    settings, proposer = config.speculative_config, getattr(drafter, "on_device", lambda: None)()
    if settings is None or proposer is None or runner.sampler is not runner.own_sampler:
        return None
    kernels: ModuleType = draft_state
    if runner.row_kernels is not row_state:
        from nanovllm.kernels import draft_state as kernels
    runner.draft_graphs = DraftGraphs(
        runner.model, runner.own_sampler.draw, runner.own_sampler.filtered_draw, runner.row_kernels, kernels, runner.kv_cache,
        proposer, most=settings.num_speculative_tokens, max_rows=min(settings.disable_by_batch_size, config.max_num_seqs),
        max_model_len=config.max_model_len, capture=capture)
    return runner.draft_graphs

"""A model runner whose device drafts by itself, and what puts it, a drafter and `draft_graphs` together."""

from types import ModuleType

import torch

from nanovllm.config import Config
from nanovllm.engine.draft_graphs import DraftGraphs
from nanovllm.engine.drafts import Drafter
from nanovllm.engine.launched import Launched
from nanovllm.engine.model_runner import ModelRunner
from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.layers import draft_state, row_state
from nanovllm.utils.torch_state import in_own_torch_state


class DraftingRunner(ModelRunner):
    """Runs a step that the device is to draft for through `draft_graphs`, and every other one as any ModelRunner does.

    Which ones are which stands in the batch (`Sequence.drafts_on_device`). draft_graphs: None where the host makes the drafts.
    """

    draft_graphs: DraftGraphs | None = None

    def launch(self, batch: ScheduledBatch) -> Launched:
        """Enqueue a step and return at once. See `Runner.launch`."""
        if self.draft_graphs is None:
            return super().launch(batch)
        if all(item.seq.drafts_on_device for item in batch.items):
            return self._launch_drafts(self.draft_graphs, batch)
        self.draft_graphs.invalidate()
        return super().launch(batch)

    @in_own_torch_state
    @torch.inference_mode()
    def _launch_drafts(self, graphs: DraftGraphs, batch: ScheduledBatch) -> Launched:
        """The drafts are compared with what is drawn there, too."""
        with self._noting_failure():
            if self.graphs:
                self.graphs.rows.invalidate()
            launched = graphs.launch(batch, self._drawn, self._drawn_by)
            self._drawn, self._drawn_by = graphs.state.last, graphs.row_of
            return launched

    def reset(self) -> None:
        super().reset()
        if self.draft_graphs:
            self.draft_graphs.reset()

    def close(self) -> None:
        self.draft_graphs = None
        super().close()


def draft_on_device(runner: DraftingRunner, drafter: Drafter, config: Config, capture: bool = True) -> DraftGraphs | None:
    """Have the runner draft, check and compare without the host, where it can; None, and nothing changes, where it cannot.

    A drafter of your own that has no `on_device` needs the host, and so does a sampler of your own. Without a GPU steps are as
    long as their launches, and nothing is gained; capture=False has them run so all the same. Of the backends two read
    `Context.query_lens`. The device looks at no length, so a draft model has to know every position that the model does.
    """
    if (capture and runner.graphs is None) or runner.backend.name not in (("triton",) if capture else ("triton", "torch")):
        return None
    if config.draft is not None and config.draft.max_model_len < config.max_model_len:
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

"""From scheduled sequences to the exact tensors of a step, through the model, to sampled tokens."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from nanovllm.config import Config
from nanovllm.engine.cache_size import CacheShape, fit_blocks, most_draws
from nanovllm.engine.compile_ahead import compile_ahead
from nanovllm.engine.cuda_graphs import DecodeGraphs
from nanovllm.engine.device_masks import DeviceMasks, MaskMaker
from nanovllm.engine.draft_rows import one_token_each
from nanovllm.engine.launched import Drawn, Launched
from nanovllm.engine.logprobs import LogprobReport, prompt_reports, sampled_report
from nanovllm.engine.model_loader import load_model
from nanovllm.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from nanovllm.engine.sequence import Sequence
from nanovllm.engine.short_steps import ShortSteps, draws_plainly
from nanovllm.engine.step_graphs import StepGraphs
from nanovllm.engine.step_inputs import Layout, StepInputs, to_device
from nanovllm.layers.attention import select_backend
from nanovllm.layers.logits_processors import LogitsProcessors
from nanovllm.layers.sampler import NOT_FINITE, Sample, SamplingBatch, finite_rows
from nanovllm.layers.tensor_parallel import TensorParallel
from nanovllm.layers.token_bitmask import TokenBitmask
from nanovllm.utils.context import Context
from nanovllm.utils.torch_state import in_own_torch_state


class ModelRunner:
    """Runs batches on a device. The only room that touches one.

    Owns the model's weights and the KV cache, [num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim]; of a model
    that is split, one rank's share, as `tp` says. It never decides what runs: that stands in the ScheduledBatch it is given.
    """

    def __init__(self, config: Config, tp: TensorParallel = TensorParallel()):
        hf = config.hf_config
        self.device, self.dtype = config.device, config.dtype
        self.block_size = config.kvcache_block_size
        self.eos_token_ids, self.vocab_size = config.eos_token_ids, hf.vocab_size
        self.backend = select_backend(config.attention_backend, device=self.device, dtype=self.dtype,
                                      head_dim=hf.head_dim, block_size=self.block_size)
        loaded = load_model(config, self.backend, tp)
        self.model, self.own_sampler = loaded.model, loaded.sampler
        self.row_kernels, self._apply_bitmask = loaded.row_kernels, loaded.apply_bitmask
        self.sampler: Sample = self.own_sampler  # may be replaced
        self.failure: str | None = None
        self.graphs: DecodeGraphs | None = None
        self.step_graphs: StepGraphs | None = None
        self._drawn: torch.Tensor | None = None  # the tokens last drawn
        self._drawn_by: dict[int, int] = {}      # by seq_id, where its token stands among them
        self._masks = MaskMaker(self.device, self.vocab_size, self.eos_token_ids)
        self.cache_shape = CacheShape(hf.num_hidden_layers, self.block_size, loaded.num_kv_heads, hf.head_dim, self.dtype)
        self.bytes_per_block = self.cache_shape.bytes_per_block
        if self.device.type == "cuda" and tp.size == 1:
            compile_ahead(self, config)
        self.num_blocks = (config.num_kvcache_blocks
                           or tp.smallest(fit_blocks(self.model, self.sampler, self.cache_shape, config), self.device))
        self.kv_cache = self.cache_shape.allocate(self.num_blocks, self.device)
        self.short_steps = ShortSteps.of(self.model, self.kv_cache, self.block_size)
        if self.device.type == "cuda" and not config.enforce_eager and self.backend.name != "torch":
            self.graphs = self.decode_graphs(config)
            if self.backend.name == "triton":
                self.step_graphs = self.mixed_step_graphs(config)
            # Python's full garbage collections look at every object of every module, for some 70 ms in which no step is
            # launched. What is there by now is here to stay, so they may leave it out.
            gc.collect()
            gc.freeze()

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        """After an error of the device itself, such as a failed assertion, it does nothing any more."""
        try:
            yield
        except torch.AcceleratorError as error:
            self.failure = f"the device does nothing any more after: {str(error).partition(chr(10))[0]}"
            raise

    def __repr__(self) -> str:
        dtype, mebibytes = str(self.dtype).removeprefix("torch."), self.num_blocks * self.bytes_per_block / 2**20
        return (f"ModelRunner({self.device}, {dtype}, attention={self.backend.name}, {self.num_blocks} blocks x "
                f"{self.block_size} tokens, {mebibytes:.0f} MiB)")

    def close(self) -> None:
        """Let go of the weights and the cache, and hand their memory back to the device."""
        self.reset()
        if self.graphs:
            gc.unfreeze()
        for name in ("model", "kv_cache", "graphs", "step_graphs", "short_steps", "sampler", "own_sampler"):
            setattr(self, name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def run(self, batch: ScheduledBatch) -> list[int]:
        """One step, start to end: the token drawn for each item that samples, in the batch's order."""
        return self.collect(self.launch(batch))

    @in_own_torch_state
    @torch.inference_mode()
    def launch(self, batch: ScheduledBatch) -> Launched:
        """Enqueue a step and return at once. See `Runner.launch` for what is left to `draw`."""
        with self._noting_failure():
            launched = Launched(batch, self._launch_forward(batch))
            if not batch.masks_wait:
                launched.draw()
            return launched

    @in_own_torch_state
    @torch.inference_mode()
    def draw(self, launched: Launched) -> None:
        """Enqueue the draws of a step whose masks had to wait."""
        with self._noting_failure():
            launched.draw()

    def _launch_forward(self, batch: ScheduledBatch) -> Callable[[], Drawn]:
        """Enqueue a step up to its logits; returns what enqueues the draws."""
        if self.graphs:
            if all(item.samples and item.num_tokens == 1 + item.num_drafts for item in batch.items):
                items = one_token_each(batch.items)
                logits = self.graphs.launch(items, self._drawn, self._drawn_by)
                self._drawn, self._drawn_by = self.graphs.state.drawn, self.graphs.rows.row_of
                return partial(self._draw_decodes, self.graphs, batch, items, logits)
            self.graphs.rows.invalidate()
        if self.short_steps and self.short_steps.fits(batch):
            return self._launch_short(self.short_steps, batch)
        inputs = self.prepare(batch)
        hidden = self.forward(inputs)
        reports = prompt_reports(batch, hidden, self.model.compute_logits)
        if inputs.sampling is None:  # nothing but unfinished prompt chunks
            return partial(Drawn, hidden.new_empty(0, dtype=torch.int64), reports)
        logits = self.model.compute_logits(hidden[inputs.context.last_rows])
        return partial(self._draw_rows, batch, logits, inputs.sampling, reports)

    def _launch_short(self, steps: ShortSteps, batch: ScheduledBatch) -> Callable[[], Drawn]:
        """A step on a CPU, where the tokens last drawn are at hand. It draws, too, unless somebody asks for more than noise."""
        waiting = any(item.seq.num_pending_tokens for item in batch.items)
        last = self._drawn.tolist() if waiting and self._drawn is not None else []
        pending = {seq_id: max(0, last[row]) for seq_id, row in self._drawn_by.items() if last}  # below 0: see `prepare`
        draws = batch.draws
        plainly = self.sampler is self.own_sampler and all(draws_plainly(seq.sampling_params) for seq, _ in draws)
        logits, token_ids, last_tokens = steps.launch(batch, pending, draws_too=plainly)
        if plainly:
            return partial(self._note_drawn, batch, token_ids, [])
        last_ids = torch.tensor(last_tokens, dtype=torch.int64, device=self.device)
        return partial(self._draw_rows, batch, logits, self._sampling(draws, last_ids), [])

    def _draw_rows(self, batch: ScheduledBatch, logits: torch.Tensor, sampling: SamplingBatch, reports: list[LogprobReport]
                   ) -> Drawn:
        """Draws from logits whose rows are the batch's draws."""
        self._add_mask(sampling, self._masks.masks_of(batch))
        token_ids = self._draw(logits, sampling)
        return self._note_drawn(batch, token_ids, reports + sampled_report(batch, logits, token_ids))

    def _note_drawn(self, batch: ScheduledBatch, token_ids: torch.Tensor, reports: list[LogprobReport]) -> Drawn:
        self._drawn = token_ids
        self._drawn_by = {seq.seq_id: row for row, (seq, _) in enumerate(batch.draws)}
        return Drawn(token_ids, reports)

    def _draw_decodes(self, graphs: DecodeGraphs, batch: ScheduledBatch, items: list[ScheduledSequence], logits: torch.Tensor
                      ) -> Drawn:
        """Of a step of one token each: the graphs draw for all, and rows that ask for more draw again from its logits."""
        state, rows = graphs.state, graphs.rows
        resampled = rows.resampled if self.sampler is self.own_sampler else list(range(len(items)))
        masks = self._masks.masks_of(batch)
        masks_of_graphs = masks and masks.besides(resampled)
        if masks_of_graphs:
            masked_rows, = to_device([rows.rows[masks_of_graphs.draws]], self.device)
            graphs.draw_masked(logits, masked_rows, masks_of_graphs.bits)
        graphs.draw_filtered(logits)
        reports = []
        if resampled:
            again = ScheduledBatch([items[i] for i in resampled])
            its_rows, = to_device([rows.rows[resampled]], self.device)
            its_logits = logits[its_rows]
            sampling = self._sampling(again.draws, state.input_ids[its_rows])
            self._add_mask(sampling, masks and masks.among(resampled))
            token_ids = self._draw(its_logits, sampling)
            state.drawn[its_rows] = token_ids
            reports = sampled_report(again, its_logits, token_ids)
        return Drawn(state.drawn[:len(logits)], reports, rows.rows)

    def collect(self, launched: Launched) -> list[int]:
        """Wait for the step that `launch` enqueued; its log-probabilities go to the sequences that asked for them."""
        with self._noting_failure():
            return launched.wait()

    def reset(self) -> None:
        """Forget the tokens last drawn, after a step that failed: sequences that run next bring their own."""
        self._drawn, self._drawn_by = None, {}
        if self.graphs:
            self.graphs.rows.reset()

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        """The final hidden states, [num_tokens, hidden_size]; there may be rows of padding behind them."""
        if self.step_graphs and inputs.graph_size:
            return self.step_graphs.replay(inputs.graph_size)
        return self.model(inputs.input_ids, inputs.positions, self.kv_cache, inputs.context)

    def prepare(self, batch: ScheduledBatch) -> StepInputs:
        """The step's tensors on the device, with the tokens that only the device knows put in their places."""
        layout = Layout.of(batch.items, self.block_size)
        source = np.array([self._drawn_by[seq_id] for seq_id in layout.pending_ids], np.int64)
        rows = (layout.last_rows, layout.pending, source)
        size = self.step_graphs.size_for(batch) if self.graphs and self.step_graphs else None
        if self.step_graphs and size:
            last_rows, pending, source_rows = to_device(rows, self.device)
            input_ids, positions, context = self.step_graphs.write_inputs(layout, batch.num_decodes, size, last_rows)
        else:
            arrays = (layout.input_ids, layout.positions, layout.cu_seqlens_q, layout.context_lens, layout.block_tables,
                      layout.slot_mapping, *rows)
            (input_ids, positions, cu_seqlens_q, context_lens, block_tables, slot_mapping, last_rows, pending,
             source_rows) = to_device(arrays, self.device)
            context = Context(
                cu_seqlens_q, context_lens, block_tables, slot_mapping,
                max_seqlen_q=max(item.num_tokens for item in batch.items), max_seqlen_k=int(layout.context_lens.max()),
                num_decodes=batch.num_decodes, last_rows=last_rows)
        if self._drawn is not None and layout.pending_ids:
            input_ids[pending] = self._drawn[source_rows].clamp(min=0)  # below 0: it has ended, and its row is dropped
        draws = batch.draws
        sampling = self._sampling(draws, input_ids[context.last_rows]) if draws else None
        return StepInputs(input_ids, positions, context, sampling, size)

    def _add_mask(self, sampling: SamplingBatch, masks: DeviceMasks | None) -> None:
        if masks is not None:
            rows, = to_device([masks.draws], self.device)
            sampling.processors = sampling.processors or LogitsProcessors()
            sampling.processors.bitmask = TokenBitmask(rows, masks.bits, self._apply_bitmask)

    def _draw(self, logits: torch.Tensor, sampling: SamplingBatch) -> torch.Tensor:
        finite = None if self.sampler is self.own_sampler else finite_rows(logits)
        token_ids = self.sampler(logits, sampling)
        if finite is not None:  # a sampler of your own need not look, and may have written to its scores
            token_ids = token_ids.masked_fill(~finite, NOT_FINITE)
        return token_ids

    def _sampling(self, draws: list[tuple[Sequence, int]], last_tokens: torch.Tensor) -> SamplingBatch:
        """draws: whose token each row is to draw, and for which position. last_tokens: [num_rows] int64, the token before
        that position, from the device: the host may not know it yet."""
        params = [seq.sampling_params for seq, _ in draws]
        num_prompt_tokens = [seq.num_prompt_tokens for seq, _ in draws]
        processors = None
        if any(p.changes_scores for p in params):
            # A draft is history for those behind it.
            histories = [(seq.token_ids + seq.draft_token_ids)[:position - 1] for seq, position in draws]
            processors = LogitsProcessors.from_rows(params, histories, num_prompt_tokens, last_tokens, self.eos_token_ids,
                                                    self.vocab_size)
        offsets = [position - seq.num_prompt_tokens for seq, position in draws]
        return SamplingBatch.from_params(params, [seq.seed for seq, _ in draws], offsets, self.device, processors)

    def decode_graphs(self, config: Config, capture: bool = True) -> DecodeGraphs:
        """For as many rows as may decode at once, drafted positions included."""
        sampler = self.own_sampler
        return DecodeGraphs(self.model, sampler.draw, sampler.filtered_draw, self._apply_bitmask, self.row_kernels,
                            self.kv_cache, max_num_seqs=most_draws(config), max_model_len=config.max_model_len, capture=capture)

    def mixed_step_graphs(self, config: Config, capture: bool = True) -> StepGraphs:
        """For the `triton` backend, whose tiles of queries they list."""
        backend: Any = self.backend
        hf = config.hf_config
        per_tile = backend.queries_per_tile(self.dtype, hf.num_attention_heads // hf.num_key_value_heads)
        return StepGraphs(self.model, self.kv_cache, max_tokens=config.max_num_batched_tokens, queries_per_tile=per_tile,
                          max_num_seqs=config.max_num_seqs, max_model_len=config.max_model_len, capture=capture)

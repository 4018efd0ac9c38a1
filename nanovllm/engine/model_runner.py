"""From scheduled sequences to the exact tensors of a step, through the model, to sampled tokens."""

from dataclasses import dataclass

import numpy as np
import torch

from nanovllm.config import Config
from nanovllm.engine.scheduler import ScheduledBatch, ScheduledSequence
from nanovllm.layers.attention import select_backend
from nanovllm.layers.sampler import Sampler, SamplingBatch
from nanovllm.models.qwen3 import Qwen3ForCausalLM
from nanovllm.utils.checks import check
from nanovllm.utils.context import Context
from nanovllm.utils.loader import load_weights

CPU_CACHE_BYTES = 512 << 20  # without a GPU the cache shares the machine's memory: take a little, unless told


@dataclass(slots=True)
class StepInputs:
    """The tensors of one step. input_ids, positions: [num_tokens]; context: how attention reads the paged cache."""

    input_ids: torch.Tensor
    positions: torch.Tensor
    context: Context
    sampling: SamplingBatch | None


class ModelRunner:
    """Runs batches on a device. The only room that touches one.

    Owns the model's weights and the KV cache, [num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim]. It never
    decides what runs: that stands in the ScheduledBatch it is given.
    """

    def __init__(self, config: Config):
        hf = config.hf_config
        self.device, self.dtype = config.device, config.dtype
        self.block_size = config.kvcache_block_size
        self.backend = select_backend(config.attention_backend, device=self.device, dtype=self.dtype,
                                      head_dim=hf.head_dim, block_size=self.block_size)
        self.model = Qwen3ForCausalLM(hf, self.backend, device=self.device, dtype=self.dtype)
        load_weights(self.model, config.model)
        self.model.eval()
        self.sampler = Sampler(seed=config.seed, device=self.device)
        self._block_shape = (self.block_size, hf.num_key_value_heads, hf.head_dim)
        self._num_layers = hf.num_hidden_layers
        self.num_blocks = config.num_kvcache_blocks or self._fit_blocks(config)
        try:
            self.kv_cache = self._new_cache(self.num_blocks)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise RuntimeError(
                f"the KV cache of {self.num_blocks} blocks ({self.num_blocks * self.bytes_per_block / 2**30:.2f} GiB) does "
                f"not fit on {self.device}; lower num_kvcache_blocks or gpu_memory_utilization.") from error

    def __repr__(self) -> str:
        return (f"ModelRunner({self.device}, {str(self.dtype).removeprefix('torch.')}, attention={self.backend.name}, "
                f"{self.num_blocks} blocks x {self.block_size} tokens, {self.num_blocks * self.bytes_per_block / 2**20:.0f} MiB)")

    @property
    def bytes_per_block(self) -> int:
        return self._num_layers * 2 * int(np.prod(self._block_shape)) * self.dtype.itemsize

    def close(self) -> None:
        """Let go of the weights and the cache, and hand their memory back to the device."""
        self.model = self.kv_cache = self.sampler = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def run(self, batch: ScheduledBatch) -> list[int]:
        """One step, start to end: the token drawn for each item that samples, in the batch's order."""
        return self.collect(self.launch(batch))

    @torch.inference_mode()
    def launch(self, batch: ScheduledBatch) -> torch.Tensor:
        """Enqueue a step and return at once; the drawn tokens, [num_sampled] int64, are still on the device."""
        inputs = self.prepare(batch)
        logits = self.forward(inputs)
        if inputs.sampling is None:  # nothing but unfinished prompt chunks
            return torch.empty(0, dtype=torch.int64)
        return self.sampler(logits, inputs.sampling)

    def collect(self, token_ids: torch.Tensor) -> list[int]:
        """Wait for the step that `launch` enqueued."""
        return token_ids.tolist()

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        """Logits of the rows that will be sampled, [num_sampled, vocab_size]."""
        hidden = self.model(inputs.input_ids, inputs.positions, self.kv_cache, inputs.context)
        return self.model.compute_logits(hidden[inputs.context.last_rows])

    def prepare(self, batch: ScheduledBatch) -> StepInputs:
        """Lay the scheduled tokens of all sequences end to end: one long row, no padding."""
        items = batch.items
        lens = [item.num_tokens for item in items]
        starts = [item.start for item in items]
        cu_seqlens_q = np.concatenate(([0], np.cumsum(lens))).astype(np.int32)
        input_ids = np.concatenate([item.seq.token_ids[item.start:item.start + item.num_tokens] for item in items])
        positions = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lens)])
        context_lens = np.array(starts, np.int32) + np.array(lens, np.int32)
        tables = np.zeros((len(items), max(len(item.seq.block_table) for item in items)), np.int32)
        for row, item in zip(tables, items):
            row[:len(item.seq.block_table)] = item.seq.block_table
        sampled = [(i, item.seq) for i, item in enumerate(items) if item.samples]
        context = Context(
            cu_seqlens_q=self._tensor(cu_seqlens_q), context_lens=self._tensor(context_lens),
            block_tables=self._tensor(tables), slot_mapping=self._tensor(self._slots(items, tables, positions, lens)),
            max_seqlen_q=max(lens), max_seqlen_k=int(context_lens.max()), num_decodes=batch.num_decodes,
            last_rows=self._tensor(np.array([cu_seqlens_q[i + 1] - 1 for i, _ in sampled], np.int64)))
        sampling = SamplingBatch.from_params([seq.sampling_params for _, seq in sampled],
                                             [seq.num_output_tokens for _, seq in sampled], self.device) if sampled else None
        return StepInputs(self._tensor(input_ids.astype(np.int64)), self._tensor(positions.astype(np.int64)), context, sampling)

    def _slots(self, items: list[ScheduledSequence], tables: np.ndarray, positions: np.ndarray, lens: list[int]) -> np.ndarray:
        """Where each token's key and value go: slot = block * block_size + offset; -1 for what the cache already holds."""
        owner = np.repeat(np.arange(len(items)), lens)
        slots = tables[owner, positions // self.block_size].astype(np.int64) * self.block_size + positions % self.block_size
        cached = np.array([item.seq.num_cached_tokens for item in items])
        slots[positions < cached[owner]] = -1  # shared blocks are never written, not even with equal values
        return slots

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)

    def _new_cache(self, num_blocks: int) -> torch.Tensor:
        return torch.zeros(self._num_layers, 2, num_blocks, *self._block_shape, dtype=self.dtype, device=self.device)

    def _fit_blocks(self, config: Config) -> int:
        """As many blocks as the memory holds, at least one request of max_model_len, at most what all could ever use."""
        per_seq = -(-config.max_model_len // self.block_size)
        useful = per_seq * config.max_num_seqs
        if self.device.type == "cpu":
            return min(max(per_seq, CPU_CACHE_BYTES // self.bytes_per_block), useful)
        budget = self._free_memory(config)
        blocks = min(budget // self.bytes_per_block, useful)
        check(blocks >= per_seq, "memory for the KV cache", f"{budget / 2**30:.2f} GiB",
              f"at least {per_seq * self.bytes_per_block / 2**30:.2f} GiB, one request of max_model_len={config.max_model_len}",
              "raise gpu_memory_utilization, lower max_model_len or free memory on the GPU")
        return blocks

    @torch.inference_mode()
    def _free_memory(self, config: Config) -> int:
        """Bytes left for the cache: our share of the card, less our weights and the peak of the largest step.

        Counts only this engine's own memory, and never more than is free: another process on the card is its own affair.
        """
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        n, longest = config.max_num_batched_tokens, min(config.max_model_len, config.max_num_batched_tokens)
        lens = [longest] * (n // longest) + ([n % longest] if n % longest else [])
        lens = lens[:config.max_num_seqs]
        # Every block table entry points at block 0 and nothing is stored, so one block of cache is enough to read from.
        context = Context(
            cu_seqlens_q=self._tensor(np.cumsum([0, *lens]).astype(np.int32)), context_lens=self._tensor(np.array(lens, np.int32)),
            block_tables=torch.zeros(len(lens), -(-longest // self.block_size), dtype=torch.int32, device=self.device),
            slot_mapping=torch.full((sum(lens),), -1, dtype=torch.int64, device=self.device),
            max_seqlen_q=longest, max_seqlen_k=longest, num_decodes=0 if longest > 1 else len(lens),
            last_rows=torch.zeros(config.max_num_seqs, dtype=torch.int64, device=self.device))
        tokens = torch.zeros(sum(lens), dtype=torch.int64, device=self.device)
        hidden = self.model(tokens, tokens, self._new_cache(1), context)
        self.model.compute_logits(hidden[context.last_rows]).float().softmax(-1)
        peak = torch.cuda.max_memory_allocated(self.device) - before
        del hidden
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        return int(min(total * config.gpu_memory_utilization - before, free) - peak)

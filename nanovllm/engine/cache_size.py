"""How large the KV cache is: the bytes of a block, and how many blocks the device's memory leaves room for."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from nanovllm.config import Config
from nanovllm.engine.cuda_graphs import batch_sizes
from nanovllm.errors import EngineError
from nanovllm.layers.attention_backends import TorchBackend
from nanovllm.layers.sampler import Sample
from nanovllm.layers.sampling_memory import sample_worst
from nanovllm.models.causal_lm import CausalLM
from nanovllm.models.registry import model_class
from nanovllm.utils.checks import check
from nanovllm.utils.context import Context

CPU_CACHE_BYTES = 512 << 20  # without a CUDA GPU the cache shares the machine's memory: take a little, unless told

GRAPH_BYTES = 512 << 20  # activations of a thousand tokens, and what the driver keeps of some sixty graphs


@dataclass(frozen=True)
class CacheShape:
    """What a KV cache looks like but for its length: [num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim]."""

    num_layers: int
    block_size: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_block(self) -> int:
        """Keys and values of all layers."""
        return self.num_layers * 2 * self.block_size * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def allocate(self, num_blocks: int, device: torch.device) -> Tensor:
        """A cache of zeros. Raises EngineError when it does not fit."""
        try:
            return torch.zeros(self.num_layers, 2, num_blocks, self.block_size, self.num_kv_heads, self.head_dim,
                               dtype=self.dtype, device=device)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            raise EngineError(
                f"the KV cache of {num_blocks} blocks ({num_blocks * self.bytes_per_block / 2**30:.2f} GiB) does not fit on "
                f"{device}; lower num_kvcache_blocks or gpu_memory_utilization.") from error


def fit_blocks(model: CausalLM, sampler: Sample, shape: CacheShape, config: Config) -> int:
    """As many blocks as the memory holds, at least one request of max_model_len, at most what all could ever use."""
    per_seq = -(-config.max_model_len // shape.block_size)
    useful = per_seq * config.max_num_seqs
    if config.device.type != "cuda":
        return min(max(per_seq, CPU_CACHE_BYTES // shape.bytes_per_block), useful)
    at_rest, with_each_block = _draft_memory(config)
    budget = _free_memory(model, sampler, shape, config) - at_rest
    blocks = min(budget // (shape.bytes_per_block + with_each_block), useful)
    check(blocks >= per_seq, "memory for the KV cache", f"{budget / 2**30:.2f} GiB",
          f"at least {per_seq * shape.bytes_per_block / 2**30:.2f} GiB, one request of max_model_len={config.max_model_len}",
          "raise gpu_memory_utilization, lower max_model_len or free memory on the GPU")
    return blocks


def most_draws(config: Config) -> int:
    """The most rows that one step draws: a token for each sequence, and one more for each draft."""
    drafts = config.speculative_config.disable_by_batch_size if config.speculative_config else 0
    return min(config.max_num_seqs, config.max_num_batched_tokens) + drafts  # no step has room for more sequences


@torch.inference_mode()
def _free_memory(model: CausalLM, sampler: Sample, shape: CacheShape, config: Config) -> int:
    """Bytes left for the cache: our share of the card, less our weights and the peak of the largest step.

    That step is run: the most tokens through the model, and the most rows sampled with everything that one may ask for.

    Counts only this engine's own memory, and never more than is free: another process on the card is its own affair.
    """
    device = config.device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    hidden, logits = largest_step(model, shape, config)
    sample_worst(sampler, logits, config.max_model_len)
    peak = torch.cuda.max_memory_allocated(device) - before
    del hidden, logits
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return int(min(total * config.gpu_memory_utilization - before, free) - peak - _graph_memory(config))


def largest_step(model: CausalLM, shape: CacheShape, config: Config) -> tuple[Tensor, Tensor]:
    """The most tokens that a step may have, in sequences as long as may be, and the logits of the most rows that it may draw.

    Returns the hidden states, [num_tokens, hidden_size], and the logits, [num_rows, vocab_size].
    """
    device = config.device
    n, longest = config.max_num_batched_tokens, min(config.max_model_len, config.max_num_batched_tokens)
    lens = [longest] * (n // longest) + ([n % longest] if n % longest else [])
    lens = lens[:config.max_num_seqs]
    # Every block table entry points at block 0 and nothing is stored, so one block of cache is enough to read from.
    starts = [0, *accumulate(lens)]
    context = Context(
        cu_seqlens_q=torch.tensor(starts, dtype=torch.int32, device=device),
        context_lens=torch.tensor(lens, dtype=torch.int32, device=device),
        block_tables=torch.zeros(len(lens), -(-longest // shape.block_size), dtype=torch.int32, device=device),
        slot_mapping=torch.full((sum(lens),), -1, dtype=torch.int64, device=device),
        max_seqlen_q=longest, max_seqlen_k=longest, num_decodes=0 if longest > 1 else len(lens),
        last_rows=torch.zeros(most_draws(config), dtype=torch.int64, device=device))
    tokens = torch.zeros(sum(lens), dtype=torch.int64, device=device)
    hidden = model(tokens, tokens, shape.allocate(1, device), context)
    return hidden, model.compute_logits(hidden[context.last_rows])


def _graph_memory(config: Config) -> int:
    """Bytes that the graphs will hold for good: the logits of every batch size, and a little of everything else."""
    if config.enforce_eager:
        return 0
    vocab_size: int = config.hf_config.vocab_size
    num_rows = sum(batch_sizes(most_draws(config)))
    return num_rows * vocab_size * config.dtype.itemsize + GRAPH_BYTES


def _draft_memory(config: Config) -> tuple[int, int]:
    """Bytes that a draft model will take, which is loaded later: weights and graphs, and of its own cache a block's."""
    draft = config.draft
    if draft is None:
        return 0, 0
    hf = draft.hf_config
    with torch.device("meta"):
        weights = model_class(hf.architectures)(hf, TorchBackend(), device="meta", dtype=draft.dtype).parameters()
    at_rest = sum(weight.numel() * weight.element_size() for weight in weights) + _graph_memory(draft)
    shape = CacheShape(hf.num_hidden_layers, draft.kvcache_block_size, hf.num_key_value_heads, hf.head_dim, draft.dtype)
    return at_rest, shape.bytes_per_block

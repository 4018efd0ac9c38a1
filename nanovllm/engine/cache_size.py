"""How many blocks the KV cache may have: what the device's memory leaves when weights and the largest step are in it."""

from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from nanovllm.config import Config
from nanovllm.utils.checks import check
from nanovllm.utils.context import Context

if TYPE_CHECKING:
    from nanovllm.engine.model_runner import ModelRunner

CPU_CACHE_BYTES = 512 << 20  # without a GPU the cache shares the machine's memory: take a little, unless told

GRAPH_BYTES = 256 << 20  # activations of a few hundred tokens, and what the driver keeps of two dozen graphs


def fit_blocks(runner: "ModelRunner", config: Config) -> int:
    """As many blocks as the memory holds, at least one request of max_model_len, at most what all could ever use."""
    per_seq = -(-config.max_model_len // runner.block_size)
    useful = per_seq * config.max_num_seqs
    if runner.device.type == "cpu":
        return min(max(per_seq, CPU_CACHE_BYTES // runner.bytes_per_block), useful)
    budget = _free_memory(runner, config)
    blocks = min(budget // runner.bytes_per_block, useful)
    check(blocks >= per_seq, "memory for the KV cache", f"{budget / 2**30:.2f} GiB",
          f"at least {per_seq * runner.bytes_per_block / 2**30:.2f} GiB, one request of max_model_len={config.max_model_len}",
          "raise gpu_memory_utilization, lower max_model_len or free memory on the GPU")
    return blocks


@torch.inference_mode()
def _free_memory(runner: "ModelRunner", config: Config) -> int:
    """Bytes left for the cache: our share of the card, less our weights and the peak of the largest step.

    Counts only this engine's own memory, and never more than is free: another process on the card is its own affair.
    """
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(runner.device)
    before = torch.cuda.memory_allocated(runner.device)
    n, longest = config.max_num_batched_tokens, min(config.max_model_len, config.max_num_batched_tokens)
    lens = [longest] * (n // longest) + ([n % longest] if n % longest else [])
    lens = lens[:config.max_num_seqs]
    # Every block table entry points at block 0 and nothing is stored, so one block of cache is enough to read from.
    starts = [0, *accumulate(lens)]
    context = Context(
        cu_seqlens_q=torch.tensor(starts, dtype=torch.int32, device=runner.device),
        context_lens=torch.tensor(lens, dtype=torch.int32, device=runner.device),
        block_tables=torch.zeros(len(lens), -(-longest // runner.block_size), dtype=torch.int32, device=runner.device),
        slot_mapping=torch.full((sum(lens),), -1, dtype=torch.int64, device=runner.device),
        max_seqlen_q=longest, max_seqlen_k=longest, num_decodes=0 if longest > 1 else len(lens),
        last_rows=torch.zeros(config.max_num_seqs, dtype=torch.int64, device=runner.device))
    tokens = torch.zeros(sum(lens), dtype=torch.int64, device=runner.device)
    hidden = runner.model(tokens, tokens, runner.new_cache(1), context)
    runner.model.compute_logits(hidden[context.last_rows]).float().softmax(-1)
    peak = torch.cuda.max_memory_allocated(runner.device) - before
    del hidden
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(runner.device)
    return int(min(total * config.gpu_memory_utilization - before, free) - peak - _graph_memory(runner, config))


def _graph_memory(runner: "ModelRunner", config: Config) -> int:
    """Bytes that the decode graphs will hold for good: the logits of the largest batch, and a little of everything else."""
    if config.enforce_eager:
        return 0
    return config.max_num_seqs * runner.vocab_size * runner.dtype.itemsize + GRAPH_BYTES

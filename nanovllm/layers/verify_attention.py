"""Attention for checking drafts, said plainly: the last few queries of each sequence over its whole paged context."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend_queries(q: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables: Tensor, context_lens: Tensor,
                   query_lens: Tensor, scale: float) -> Tensor:
    """`kernels/paged_verify.py` does the same with one read of a sequence's keys.

    q: `[num_seqs * queries, num_heads, head_dim]`, as many rows for each sequence, of which the first query_lens are queries.
    They stand at its last positions, `context_lens - query_lens` and behind, and each sees the keys up to its own. Returns
    the same shape; rows of no query, and of a padding sequence (context length 0), are zeros.
    """
    num_seqs, block_size = len(context_lens), k_cache.shape[1]
    out, queries = torch.zeros_like(q), len(q) // num_seqs
    for i, (length, num_queries) in enumerate(zip(context_lens.tolist(), query_lens.tolist(), strict=True)):
        if length == 0 or num_queries == 0:
            continue
        rows, blocks = slice(i * queries, i * queries + num_queries), block_tables[i, :-(-length // block_size)]
        k, v = (cache[blocks].flatten(0, 1)[:length].transpose(0, 1)[None] for cache in (k_cache, v_cache))
        causal = torch.ones(num_queries, length, dtype=torch.bool, device=q.device).tril(length - num_queries)
        seen = F.scaled_dot_product_attention(q[rows].transpose(0, 1)[None], k, v, attn_mask=causal, scale=scale,
                                              enable_gqa=True)
        out[rows] = seen[0].transpose(0, 1)
    return out

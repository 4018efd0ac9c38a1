"""What attention must know about one step's batch."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class Context:
    """One step's batch as attention sees it: variable-length queries over a paged cache.

    Owns no memory of its own and decides nothing: the model runner fills it in and hands it
    down through every layer explicitly, so nothing about a step lives in a global.

    Sequence `i` owns query rows `cu_seqlens_q[i]:cu_seqlens_q[i + 1]`. Its query `j` of `n` sits
    at position `context_lens[i] - n + j` and sees the keys 0 up to and including that position.
    The keys and values of this step are stored first; attention then reads everything from the
    paged cache. A padding sequence (CUDA graphs run fixed batch sizes) has context length 0.
    """

    cu_seqlens_q: Tensor  # [num_seqs + 1] int32, where each sequence's query tokens start
    context_lens: Tensor  # [num_seqs] int32, keys each sequence sees at the end of this step
    block_tables: Tensor  # [num_seqs, max_blocks] int32, rows padded with 0
    slot_mapping: Tensor  # [num_tokens] int64, where each token's key goes; -1 = not stored
    max_seqlen_q: int
    max_seqlen_k: int
    num_decodes: int  # the first num_decodes sequences have exactly one query token; with query_lens see there
    last_rows: Tensor  # [num_sampled] int64, rows of the hidden states whose logits are wanted
    # [num_tiles, 2] int32: cut by the host, the chunks' tiles of queries, each as (sequence behind the decodes, first query);
    # -1 in one that is empty. None: the backend cuts them. Only the triton backend reads it; see `engine.step_graphs`.
    tiles: Tensor | None = None
    # [num_seqs] int32, in a step that checks drafts: every sequence has the same number of rows, of which so many are queries.
    query_lens: Tensor | None = None

"""The decode batch on the device: a row for each running sequence. `layers/row_state.py` advances it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nanovllm.utils.filters import NO_TOP_K

RECORD = ("row", "num_cached_tokens", "stored_from", "num_prompt_tokens", "seed", "temperature",
          "top_k", "top_p", "min_p", "token")


@dataclass(slots=True)
class RowState:
    """One entry per row. `write_rows` sets the first group; `advance` computes the second, which the model reads, from it.

    cached: [num_rows] int32, tokens in the cache before the step to come; -1 marks an empty row.
    stored_from: [num_rows] int32, positions before it lie in shared blocks and are never written.
    num_prompt_tokens: [num_rows] int32. seeds: [num_rows] int64. temperatures: [num_rows] float32, 0 is greedy.
    top_k: [num_rows] int32; top_p, min_p: [num_rows] float32; NO_TOP_K, 1 and 0 where they are off.
    drawn: [num_rows] int64, the token each row drew last. block_tables: [num_rows, max_blocks] int32.

    input_ids, positions, slot_mapping, offsets: [num_rows] int64. context_lens: [num_rows] int32; 0 in an empty row.
    """

    cached: Tensor
    stored_from: Tensor
    num_prompt_tokens: Tensor
    seeds: Tensor
    temperatures: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    drawn: Tensor
    block_tables: Tensor
    input_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    offsets: Tensor
    context_lens: Tensor

    @classmethod
    def empty(cls, num_rows: int, max_blocks: int, device: torch.device | str) -> "RowState":
        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(num_rows, *shape, dtype=dtype, device=device)

        narrow, wide, real = torch.int32, torch.int64, torch.float32
        return cls(zeros(narrow) - 1, zeros(narrow), zeros(narrow), zeros(wide), zeros(real),
                   zeros(narrow) + NO_TOP_K, zeros(real) + 1, zeros(real), zeros(wide),
                   zeros(narrow, max_blocks), zeros(wide), zeros(wide), zeros(wide) - 1, zeros(wide), zeros(narrow))

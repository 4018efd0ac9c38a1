"""What the engine asks of a model, whatever family it is of."""

from typing import Protocol

from torch import Tensor

from nanovllm.utils.context import Context


class CausalLM(Protocol):
    """A decoder-only model over a paged cache: tokens go in, hidden states come out, and logits of those that are asked for."""

    def __call__(self, input_ids: Tensor, positions: Tensor, kv_cache: Tensor, context: Context) -> Tensor:
        """input_ids, positions: [num_tokens]; kv_cache: [num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim].

        Returns the final hidden states, [num_tokens, hidden_size].
        """

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden: [num_rows, hidden_size] -> [num_rows, vocab_size]."""

"""A model of ours by itself, with a paged cache that a test lays out."""

import torch

from nanovllm.config import load_hf_config
from nanovllm.layers.attention import select_backend
from nanovllm.models.registry import model_class
from nanovllm.utils.context import Context
from nanovllm.utils.loader import load_weights

BLOCK_SIZE = 4


def our_model(folder, config=None):
    """Our model of a folder, computed plainly on the CPU in float32; config: instead of the folder's own."""
    config = load_hf_config(folder) if config is None else config
    backend = select_backend("torch", device="cpu", dtype=torch.float32, head_dim=config.head_dim, block_size=BLOCK_SIZE)
    architectures = getattr(config, "architectures", None) or ["Qwen3ForCausalLM"]
    model = model_class(architectures)(config, backend, device="cpu", dtype=torch.float32)
    load_weights(model, folder)
    return model.eval()


class Cache:
    """A paged cache for a few sequences, each with its own blocks, interleaved so that no two of one are neighbours."""

    def __init__(self, config, num_seqs: int, blocks_per_seq: int = 16):
        self.kv = torch.full((config.num_hidden_layers, 2, num_seqs * blocks_per_seq, BLOCK_SIZE, config.num_key_value_heads,
                              config.head_dim), float("nan"))
        self.tables = torch.arange(num_seqs * blocks_per_seq, dtype=torch.int32).view(blocks_per_seq, num_seqs).T.contiguous()

    @torch.inference_mode()
    def run(self, model, pieces: list[tuple[int, list[int], int]]) -> list[torch.Tensor]:
        """pieces: (sequence, token ids, position of the first); decodes come first. Returns the logits of each piece's rows."""
        lens = [len(ids) for _, ids, _ in pieces]
        positions = torch.cat([torch.arange(start, start + len(ids)) for _, ids, start in pieces])
        tables = self.tables[[seq for seq, _, _ in pieces]]
        owner = torch.repeat_interleave(torch.arange(len(pieces)), torch.tensor(lens))
        slots = tables[owner, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
        context_lens = [start + len(ids) for _, ids, start in pieces]
        context = Context(
            cu_seqlens_q=torch.tensor([0, *lens]).cumsum(0).int(), context_lens=torch.tensor(context_lens, dtype=torch.int32),
            block_tables=tables, slot_mapping=slots, max_seqlen_q=max(lens), max_seqlen_k=max(context_lens),
            num_decodes=sum(n == 1 for n in lens), last_rows=torch.arange(sum(lens)))
        hidden = model(torch.tensor([t for _, ids, _ in pieces for t in ids]), positions, self.kv, context)
        return list(model.compute_logits(hidden).split(lens))


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())

"""Logits against transformers in float32, whole prompts and in pieces; and configurations the model must refuse."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen3Config

from nanovllm.config import OFFLINE_MODEL
from nanovllm.layers.attention import select_backend
from nanovllm.models.qwen3 import Qwen3ForCausalLM
from nanovllm.utils.context import Context
from nanovllm.utils.loader import load_weights

from ..checkpoints import TINY, random_checkpoint, reference

BLOCK_SIZE = 4
LIMIT = 1e-4  # relative, float32
SHAPES = {  # GQA 1, 2, 4 and 8; head_dim 32, 64 and 128; tied or not; with biases or not; small and large bases
    "gqa1_hd32": dict(num_attention_heads=4, num_key_value_heads=4),
    "gqa2_hd64_bias": dict(head_dim=64, attention_bias=True),
    "gqa4_hd128_untied": dict(num_key_value_heads=1, head_dim=128, tie_word_embeddings=False),
    "gqa8_hd32_theta1e4": dict(num_attention_heads=8, num_key_value_heads=1,
                               rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
    "gqa2_hd128_deep_eps": dict(num_hidden_layers=5, num_attention_heads=2, num_key_value_heads=1, head_dim=128,
                                rms_norm_eps=1e-3),
    "gqa4_hd64_bias_untied": dict(num_attention_heads=8, num_key_value_heads=2, head_dim=64, attention_bias=True,
                                  tie_word_embeddings=False),
}


def our_model(folder, config) -> Qwen3ForCausalLM:
    backend = select_backend("torch", device="cpu", dtype=torch.float32, head_dim=config.head_dim, block_size=BLOCK_SIZE)
    model = Qwen3ForCausalLM(config, backend, device="cpu", dtype=torch.float32)
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


@pytest.fixture(scope="module", params=["offline", *SHAPES])
def models(request, tmp_path_factory):
    folder = OFFLINE_MODEL
    if request.param != "offline":
        folder = random_checkpoint(tmp_path_factory.mktemp(request.param), **SHAPES[request.param])
    theirs = reference(folder)
    return our_model(folder, theirs.config), theirs


def test_logits_of_prompts_served_together_equal_transformers(models):
    ours, theirs = models
    gen = torch.Generator().manual_seed(0)
    prompts = [torch.randint(96, (n,), generator=gen).tolist() for n in (1, 33, 4, 9)]
    logits = Cache(theirs.config, 4).run(ours, [(i, ids, 0) for i, ids in enumerate(prompts)])
    with torch.inference_mode():
        for row, ids in zip(logits, prompts, strict=True):
            assert error(row, theirs(torch.tensor([ids])).logits[0]) < LIMIT


def test_logits_in_chunks_and_decode_steps_equal_transformers(models):
    """Sequence 0 decodes while a later chunk of sequence 1 rides in the same step."""
    ours, theirs = models
    gen = torch.Generator().manual_seed(1)
    first, second = (torch.randint(96, (n,), generator=gen).tolist() for n in (12, 30))
    cache = Cache(theirs.config, 2)
    pieces = cache.run(ours, [(0, first[:10], 0), (1, second[:7], 0)])
    steps = [cache.run(ours, [(0, first[10:11], 10), (1, second[7:20], 7)]),
             cache.run(ours, [(0, first[11:], 11), (1, second[20:], 20)])]
    with torch.inference_mode():
        for i, ids in enumerate((first, second)):
            joined = torch.cat([pieces[i], *(step[i] for step in steps)])
            assert error(joined, theirs(torch.tensor([ids])).logits[0]) < LIMIT


def test_rope_theta_at_the_top_of_the_config_means_the_same(tmp_path):
    folder = random_checkpoint(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    theirs = reference(folder)
    fields = {name: getattr(theirs.config, name) for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "max_position_embeddings", "tie_word_embeddings", "attention_bias", "rms_norm_eps", "hidden_act")}
    ours = our_model(folder, SimpleNamespace(rope_theta=1e4, **fields))
    ids = list(range(40))
    logits, = Cache(theirs.config, 1).run(ours, [(0, ids, 0)])
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0]
    assert error(logits, expected) < LIMIT
    other = our_model(folder, SimpleNamespace(rope_theta=1e6, **fields))
    assert error(Cache(theirs.config, 1).run(other, [(0, ids, 0)])[0], expected) > LIMIT, "theta makes no difference"


@pytest.mark.parametrize(("change", "message"), [
    (dict(rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}), "rope_type='yarn'"),
    (dict(hidden_act="gelu"), "hidden_act='gelu'"),
    (dict(use_sliding_window=True, sliding_window=8), "use_sliding_window=True"),
])
def test_what_it_would_compute_wrongly_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Qwen3ForCausalLM(Qwen3Config(**TINY | change), None)


def test_parameters_are_made_where_and_as_told_and_no_default_changes():
    default = torch.get_default_dtype()
    model = Qwen3ForCausalLM(Qwen3Config(**TINY), None, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    assert torch.get_default_dtype() is default and torch.empty(1).device.type == "cpu"
    assert model.lm_head.weight is model.model.embed_tokens.weight

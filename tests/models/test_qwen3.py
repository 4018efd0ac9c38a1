"""Logits against transformers in float32, whole prompts and in pieces; and configurations the model must refuse."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen3Config

from nanovllm.config import OFFLINE_MODEL
from nanovllm.models.qwen3 import Qwen3ForCausalLM

from ..checkpoints import TINY, random_checkpoint, reference
from .paged import Cache, error, our_model

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
    (dict(rope_parameters={"rope_type": "longrope", "rope_theta": 1e6, "factor": 4.0, "long_factor": [1.0] * 16,
                           "short_factor": [1.0] * 16}), "rope_type='longrope'"),
    (dict(hidden_act="gelu"), "hidden_act='gelu'"),
    (dict(use_sliding_window=True, sliding_window=8, max_window_layers=1), "sliding_window=8.*max_model_len=8"),
    (dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
])
def test_what_it_would_compute_wrongly_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Qwen3ForCausalLM(Qwen3Config(**deepcopy(TINY) | change), None)


def test_parameters_are_made_where_and_as_told_and_no_default_changes():
    default = torch.get_default_dtype()
    model = Qwen3ForCausalLM(Qwen3Config(**TINY), None, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    assert torch.get_default_dtype() is default and torch.empty(1).device.type == "cpu"
    assert model.lm_head.weight is model.model.embed_tokens.weight

"""Norm, activation and rotary embedding against transformers' own modules or a formula written apart."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, Qwen3RotaryEmbedding, apply_rotary_pos_emb

from nanovllm.layers.activation import SiluAndMul
from nanovllm.layers.layernorm import RMSNorm
from nanovllm.layers.rotary_embedding import RotaryEmbedding, rope_theta

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_equals_transformers_and_leaves_its_inputs_alone_defect_19(dtype):
    torch.manual_seed(0)
    x, residual = (10 * torch.randn(4, 16)).to(dtype), torch.randn(4, 16).to(dtype)
    kept_x, kept_residual = x.clone(), residual.clone()
    ours, theirs = RMSNorm(16, 1e-6, dtype=dtype), Qwen3RMSNorm(16, eps=1e-6).to(dtype)
    ours.weight.copy_(torch.randn(16))
    theirs.weight.data.copy_(ours.weight)
    torch.testing.assert_close(ours(x), theirs(x))
    normed, total = ours(x, residual)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normed, theirs(x + residual))
    assert torch.equal(x, kept_x) and torch.equal(residual, kept_residual)
    assert normed.dtype == total.dtype == dtype


def test_silu_and_mul():
    gate, up = torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(SiluAndMul()(torch.cat((gate, up), -1)), gate * torch.sigmoid(gate) * up)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_rope_equals_transformers_far_out_and_out_of_order(head_dim, theta):
    torch.manual_seed(0)
    positions = torch.tensor([4095, 0, 1, 700, 3])
    q, k = torch.randn(5, 4, head_dim), torch.randn(5, 2, head_dim)
    kept = q.clone()
    config = Qwen3Config(head_dim=head_dim, rope_parameters={"rope_type": "default", "rope_theta": theta},
                         max_position_embeddings=4096)
    cos, sin = Qwen3RotaryEmbedding(config)(q, positions[None])
    expected = [t.transpose(0, 1) for pair in [apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)]
                for t in (pair[0][0], pair[1][0])]
    ours = RotaryEmbedding(head_dim, 4096, theta)(positions, q, k)
    torch.testing.assert_close(ours[0], expected[0])
    torch.testing.assert_close(ours[1], expected[1])
    assert torch.equal(q, kept)


def test_rope_scores_depend_on_distance_alone():
    torch.manual_seed(0)
    rotary, q, k = RotaryEmbedding(32, 128, 1e4), torch.randn(1, 1, 32), torch.randn(1, 1, 32)

    def score(at_q: int, at_k: int) -> float:
        return float((rotary(torch.tensor([at_q]), q)[0] * rotary(torch.tensor([at_k]), k)[0]).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


@pytest.mark.parametrize("config", [
    SimpleNamespace(rope_theta=5e5),
    SimpleNamespace(rope_theta=5e5, rope_scaling=None),
    SimpleNamespace(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
], ids=["rope_theta", "rope_theta, null scaling", "rope_parameters"])
def test_both_spellings_of_theta(config):
    assert rope_theta(config) == 5e5


@pytest.mark.parametrize("config", [
    SimpleNamespace(rope_theta=5e5, rope_scaling={"rope_type": "longrope", "factor": 4.0}),
    SimpleNamespace(rope_theta=5e5, rope_scaling={"type": "longrope", "factor": 4.0}),
    SimpleNamespace(rope_parameters={"rope_type": "longrope", "rope_theta": 5e5, "factor": 4.0}),
])
def test_rope_of_an_unknown_kind_is_refused_not_ignored_defect_22(config):
    with pytest.raises(ValueError, match=r"rope_type='longrope'.*default, linear, dynamic, yarn, llama3"):
        rope_theta(config)


def test_two_models_have_their_own_tables_defect_22():
    first, second = RotaryEmbedding(32, 64, 1e4), RotaryEmbedding(32, 64, 1e6)
    x = torch.randn(1, 1, 32)
    assert not torch.allclose(first(torch.tensor([40]), x)[0], second(torch.tensor([40]), x)[0])

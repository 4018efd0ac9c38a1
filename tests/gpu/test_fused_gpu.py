"""The fused kernels and the model made of them on a real GPU, against float32 and float64 on fresh random inputs."""

from copy import deepcopy

import pytest
import torch
from transformers import Qwen3Config

from nanovllm.kernels.linear import linear, norm_linear
from nanovllm.kernels.norm_rope_store import norm_rope_store
from nanovllm.kernels.prefill_linear import gated_linear, inverse_rms, qkv_linear
from nanovllm.kernels.rms_norm import rms_norm
from nanovllm.kernels.sample import draw
from nanovllm.kernels.silu_and_mul import silu_and_mul
from nanovllm.layers import noise, sampler
from nanovllm.layers.attention import select_backend
from nanovllm.layers.rotary_embedding import RotaryEmbedding
from nanovllm.models.fused import FEW_TOKENS, FusedModel
from nanovllm.models.qwen3 import Qwen3ForCausalLM
from tests.layers.paged_cases import paged_case

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def random(*shape, dtype=torch.bfloat16, scale=1.0):
    return (scale * torch.randn(*shape, device="cuda")).to(dtype)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(autouse=True)
def poisoned_memory():
    """What torch.empty hands out next is NaN, so an output that a kernel forgets to write shows."""
    blocks = [torch.full((1 << 20,), float("nan"), device="cuda") for _ in range(16)]
    del blocks


def norm32(x, weight, eps=1e-6):
    x = x.double()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_tokens", "size"), [(1, 1024), (300, 1024), (7, 2560), (64, 48)])
def test_norm_and_gate(num_tokens, size, dtype):
    x, residual, weight = (random(*shape, dtype=dtype) for shape in ((num_tokens, size), (num_tokens, size), (size,)))
    out, total = rms_norm(x, residual, weight, 1e-6)
    assert error(total, x.double() + residual.double()) < TOLERANCE[dtype]
    assert error(out, norm32(total, weight)) < TOLERANCE[dtype]
    assert error(rms_norm(x, None, weight, 1e-6)[0], norm32(x, weight)) < TOLERANCE[dtype]
    gate_up = random(num_tokens, 2 * size, dtype=dtype)
    gate, up = gate_up.double().chunk(2, 1)
    assert error(silu_and_mul(gate_up), gate * gate.sigmoid() * up) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(16, 8, 128), (6, 2, 64), (3, 1, 32)])
def test_norm_rope_store(num_heads, num_kv_heads, head_dim, dtype):
    case = paged_case([(1, 300), (40, 60), (1, 0), (1, 77)], num_heads=num_heads, num_kv_heads=num_kv_heads,
                      head_dim=head_dim, block_size=16, dtype=dtype, device="cuda")  # fmt: skip
    qkv = random(len(case.q), (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
    positions = torch.randint(4096, (len(qkv),), device="cuda")
    q_weight, k_weight = random(head_dim, dtype=dtype), random(head_dim, dtype=dtype)
    rotary = RotaryEmbedding(head_dim, 4096, 1e6, device="cuda")
    q, k, v = (t.unflatten(1, (-1, head_dim)) for t in qkv.clone().split(
        [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim], 1))  # fmt: skip
    q, k = rotary(positions, norm32(q, q_weight), norm32(k, k_weight))
    before = case.kv_cache.clone()
    found = norm_rope_store(qkv, positions, q_weight, k_weight, 1e-6, rotary.cos, rotary.sin, *case.kv_cache,
                            case.context.slot_mapping)  # fmt: skip
    assert error(found, q) < TOLERANCE[dtype]
    slots = case.context.slot_mapping
    stored, cache = slots >= 0, case.kv_cache.flatten(1, 2)
    assert error(cache[0, slots[stored]], k[stored]) < TOLERANCE[dtype]
    assert torch.equal(cache[1, slots[stored]], v[stored])
    before.flatten(1, 2)[:, slots[stored]] = cache[:, slots[stored]]
    assert torch.equal(case.kv_cache.nan_to_num(7.0), before.nan_to_num(7.0)), "it wrote where no slot says so"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens", FEW_TOKENS)
@pytest.mark.parametrize(("out_features", "in_features"), [(4096, 1024), (1024, 3072), (96, 64), (1000, 2560)])
def test_products_of_few_tokens(out_features, in_features, num_tokens, dtype):
    x, stream = random(num_tokens, in_features, dtype=dtype), random(num_tokens, out_features, dtype=dtype)
    weight = random(out_features, in_features, dtype=dtype, scale=in_features**-0.5)
    wide = weight.double()
    assert error(linear(x, weight), x.double() @ wide.T) < TOLERANCE[dtype]
    expected = stream + x.double() @ wide.T
    assert error(linear(x, weight, stream), expected) < TOLERANCE[dtype]
    normed = norm32(x, torch.ones(in_features, device="cuda"))
    assert error(norm_linear(x, 1e-6, weight), normed @ wide.T) < TOLERANCE[dtype]
    gate, up = (normed @ wide.T).chunk(2, 1)
    assert error(norm_linear(x, 1e-6, weight, gated=True), gate * gate.sigmoid() * up) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("num_tokens", [2048, 3001, 100])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim", "hidden", "inner"),
                         [(16, 8, 128, 1024, 3072), (8, 2, 64, 320, 640)])
def test_projections_of_long_prompts(num_heads, num_kv_heads, head_dim, hidden, inner, num_tokens):
    x, gate_up = random(num_tokens, hidden, scale=3.0), random(2 * inner, hidden, scale=hidden**-0.5)
    scale = inverse_rms(x, 1e-6)
    normed = norm32(x, torch.ones(hidden, device="cuda"))
    gate, up = (normed @ gate_up.double().T).chunk(2, 1)
    assert error(gated_linear(x, gate_up, scale), gate * gate.sigmoid() * up) < 1e-2

    weight = random((num_heads + 2 * num_kv_heads) * head_dim, hidden, scale=hidden**-0.5)
    q_weight, k_weight = random(head_dim), random(head_dim)
    rotary = RotaryEmbedding(head_dim, 4096, 1e6, device="cuda")
    positions, slots = torch.randint(4096, (num_tokens,), device="cuda"), torch.randperm(4096, device="cuda")[:num_tokens]
    slots[::5] = -1
    cache = torch.full((2, 16, 256, num_kv_heads, head_dim), float("nan"), dtype=torch.bfloat16, device="cuda")
    found = qkv_linear(x, weight, scale, positions, q_weight, k_weight, 1e-6, rotary.cos, rotary.sin, *cache, slots)
    q, k, v = (t.unflatten(1, (-1, head_dim)) for t in (normed @ weight.double().T).split(
        [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim], 1))  # fmt: skip
    q, k = rotary(positions, norm32(q, q_weight), norm32(k, k_weight))
    assert error(found, q) < 1e-2
    stored, flat = slots >= 0, cache.flatten(1, 2)
    assert error(flat[0, slots[stored]], k[stored]) < 1e-2 and error(flat[1, slots[stored]], v[stored]) < 1e-2
    assert int(flat.isnan().any(-1).any(-1).sum()) == 2 * (4096 - int(stored.sum())), "it wrote where no slot says so"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "vocab_size"), [(1, 151_936), (37, 151_936), (256, 50_001), (5, 17)])
def test_draws_are_those_of_the_plain_sampler(num_rows, vocab_size, dtype):
    logits = random(num_rows, vocab_size, dtype=dtype, scale=3.0)
    temperatures = torch.rand(num_rows, device="cuda") * 1.5
    temperatures[::3] = 0
    seeds, offsets = torch.randint(2**62, (num_rows,), device="cuda"), torch.randint(5000, (num_rows,), device="cuda")
    found, plain = draw(logits, temperatures, seeds, offsets), sampler.draw(logits, temperatures, seeds, offsets)
    # Two tokens may come so near that rounding decides: then the one taken must score as high as the best.
    greedy = (temperatures == 0)[:, None]
    scores = logits.double() / temperatures[:, None].double().masked_fill(greedy, 1)
    scores += noise.gumbel_noise(seeds, offsets, vocab_size).double().masked_fill(greedy, 0)
    lost = scores.max(1).values - scores.gather(1, found[:, None])[:, 0]
    assert float(lost.max()) < 1e-4 and float((found == plain).double().mean()) > 0.95
    assert torch.equal(found[::3], logits[::3].argmax(1)) or dtype == torch.bfloat16


def test_bits_of_noise_are_those_of_the_cpu():
    seeds, offsets = torch.randint(2**62, (50,)), torch.randint(5000, (50,))
    assert torch.equal(noise.random_bits(seeds.cuda(), offsets.cuda(), 4096).cpu(), noise.random_bits(seeds, offsets, 4096))


@pytest.mark.parametrize("num_seqs", [1, 2, 3, 4, 9])
def test_the_fused_model_in_a_graph_is_as_near_to_float32_as_the_plain_model(num_seqs):
    """A graph, because there kernels launched early really overlap: a missing wait would show as a wrong number.

    The two round in different places, and over six layers lie as far from each other as each from the truth.
    """
    config = Qwen3Config(vocab_size=5000, hidden_size=1024, intermediate_size=3072, num_hidden_layers=6,
                         num_attention_heads=16, num_key_value_heads=8, head_dim=128, max_position_embeddings=2048,
                         tie_word_embeddings=True, attention_bias=False)  # fmt: skip
    backend = select_backend("triton", device="cuda", dtype=torch.bfloat16, head_dim=128, block_size=64)
    with torch.inference_mode():
        model = Qwen3ForCausalLM(config, backend, device="cuda", dtype=torch.bfloat16).eval()
        for parameter in model.parameters():
            parameter.normal_(0, 0.02) if parameter.ndim > 1 else parameter.normal_(1, 0.1)
        plain, exact = deepcopy(model), deepcopy(model).float()  # before its norms are folded into its weights
        fused = FusedModel(model)
        lengths = torch.randint(1, 300, (num_seqs,)).tolist()
        case = paged_case([(1, length) for length in lengths], num_decodes=num_seqs, num_heads=16, num_kv_heads=8, head_dim=128,
                          block_size=64, dtype=torch.bfloat16, device="cuda")  # fmt: skip
        context = case.context
        cache = torch.randn(6, *case.kv_cache.shape, dtype=torch.bfloat16, device="cuda")
        positions, tokens = torch.tensor(lengths, device="cuda") - 1, torch.randint(5000, (num_seqs,), device="cuda")

        def logits(form, kv_cache):
            return form.compute_logits(form(tokens, positions, kv_cache, context))

        mine = cache.clone()
        logits(fused, mine)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = logits(fused, mine)
        for _ in range(5):
            tokens.random_(0, 5000)
            mine.copy_(cache)
            expected = logits(exact, cache.float())
            captured.fill_(float("nan"))
            graph.replay()
            limit = error(logits(plain, cache.clone()), expected)
            assert 0 < limit < 3e-2 and error(captured, expected) < 1.5 * limit

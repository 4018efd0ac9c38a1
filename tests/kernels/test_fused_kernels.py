"""Each fused kernel against the plain layers that it stands for, in the interpreter when there is no GPU."""

import pytest
import torch

from nanovllm.layers import sampler
from nanovllm.layers.activation import SiluAndMul
from nanovllm.layers.layernorm import RMSNorm
from nanovllm.layers.rotary_embedding import RotaryEmbedding

DTYPES = [torch.float32, torch.float16]  # the interpreter does not compute bfloat16 correctly; tests/gpu does
CLOSE = {torch.float32: dict(rtol=1e-5, atol=1e-5), torch.float16: dict(rtol=4e-3, atol=4e-3)}
EPS = 1e-6


def random(*shape, dtype, device):
    return torch.randn(*shape).to(device, dtype)


def norm(size, dtype, device) -> RMSNorm:
    layer = RMSNorm(size, EPS, dtype=dtype, device=device)
    layer.weight.copy_(torch.randn(size))
    return layer


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [16, 48, 1024])
def test_norm(device, size, dtype):
    from nanovllm.kernels.rms_norm import rms_norm

    x, residual = random(5, size, dtype=dtype, device=device), random(5, size, dtype=dtype, device=device)
    kept, layer = (x.clone(), residual.clone()), norm(size, dtype, device)
    normed, total = rms_norm(x, residual, layer.weight, EPS)
    torch.testing.assert_close((normed, total), layer(x, residual), **CLOSE[dtype])
    normed, same = rms_norm(x, None, layer.weight, EPS)
    torch.testing.assert_close(normed, layer(x), **CLOSE[dtype])
    assert same is x and torch.equal(x, kept[0]) and torch.equal(residual, kept[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [3, 1500])
def test_silu_and_mul(device, size, dtype):
    from nanovllm.kernels.silu_and_mul import silu_and_mul

    x = random(4, 2 * size, dtype=dtype, device=device)
    torch.testing.assert_close(silu_and_mul(x), SiluAndMul()(x), **CLOSE[dtype])


def scales(stream):
    """1 / rms of each row, [num_tokens, 1]."""
    return torch.rsqrt(stream.pow(2).mean(-1, keepdim=True) + EPS)


def test_what_reads_a_product_of_the_stream_scales_it(device):
    """The norm's number, applied behind the projection instead of before it."""
    from nanovllm.kernels.norm_rope_store import norm_rope_store
    from nanovllm.kernels.silu_and_mul import silu_and_mul

    stream = 5 * random(4, 48, dtype=torch.float32, device=device)
    stream[1] *= 1e-3  # where eps counts
    x = random(4, 2 * 1500, dtype=torch.float32, device=device)
    torch.testing.assert_close(silu_and_mul(x, stream, EPS), SiluAndMul()(x * scales(stream)), **CLOSE[torch.float32])

    num_heads, num_kv_heads, head_dim = 3, 2, 16
    qkv = random(4, (num_heads + 2 * num_kv_heads) * head_dim, dtype=torch.float32, device=device)
    q_norm, k_norm = norm(head_dim, torch.float32, device), norm(head_dim, torch.float32, device)
    rotary = RotaryEmbedding(head_dim, 100, 1e4, device=device)
    positions, slots = torch.tensor([3, 50, 0, 99], device=device), torch.tensor([0, 5, 2, -1], device=device)
    results = []
    for products, rest in ((qkv * scales(stream), ()), (qkv.clone(), (stream, EPS))):
        cache = torch.zeros(2, 2, 4, num_kv_heads, head_dim, device=device)
        q = norm_rope_store(products, positions, q_norm.weight, k_norm.weight, EPS, rotary.cos, rotary.sin, *cache, slots,
                            *rest)  # fmt: skip
        results.append((q, cache))
    torch.testing.assert_close(results[1], results[0], **CLOSE[torch.float32])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(6, 2, 32), (4, 4, 64), (3, 1, 16)])
def test_norm_rope_store(device, num_heads, num_kv_heads, head_dim, dtype):
    from nanovllm.kernels.norm_rope_store import norm_rope_store

    sizes = [heads * head_dim for heads in (num_heads, num_kv_heads, num_kv_heads)]
    qkv, positions = random(6, sum(sizes), dtype=dtype, device=device), torch.tensor([0, 99, 5, 7, 31, 2], device=device)
    q_norm, k_norm = norm(head_dim, dtype, device), norm(head_dim, dtype, device)
    rotary = RotaryEmbedding(head_dim, 100, 1e4, device=device)
    cache, slots = torch.zeros(2, 4, 4, num_kv_heads, head_dim, dtype=dtype, device=device), [3, -1, 0, 15, 9, 8]
    q, k, v = (t.unflatten(1, (-1, head_dim)) for t in qkv.clone().split(sizes, 1))
    q, k = rotary(positions, q_norm(q), k_norm(k))
    expected = cache.clone()
    for token, slot in enumerate(slots):
        if slot >= 0:
            expected.flatten(1, 2)[0, slot], expected.flatten(1, 2)[1, slot] = k[token], v[token]
    found = norm_rope_store(qkv, positions, q_norm.weight, k_norm.weight, EPS, rotary.cos, rotary.sin, *cache,
                            torch.tensor(slots, device=device))  # fmt: skip
    torch.testing.assert_close(found, q, **CLOSE[dtype])
    torch.testing.assert_close(cache, expected, **CLOSE[dtype])
    with pytest.raises(ValueError, match="must be contiguous"):
        norm_rope_store(qkv[:, ::2], positions, q_norm.weight, k_norm.weight, EPS, rotary.cos, rotary.sin, *cache,
                        torch.tensor(slots, device=device))  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 45])
def test_projections_of_long_prompts(device, num_tokens, dtype):
    from nanovllm.kernels import prefill_linear
    from nanovllm.kernels.norm_rope_store import norm_rope_store

    num_heads, num_kv_heads, head_dim, close = 4, 2, 32, CLOSE[dtype]
    x, gate_up = random(num_tokens, 128, dtype=dtype, device=device), random(192, 128, dtype=dtype, device=device) / 11
    scale = prefill_linear.inverse_rms(x, EPS)
    torch.testing.assert_close(scale, x.float().pow(2).mean(-1).add(EPS).rsqrt(), **CLOSE[torch.float32])
    normed = x.float() * scale[:, None]
    found = prefill_linear.gated_linear(x, gate_up, scale, tokens=32, features=32)
    torch.testing.assert_close(found, SiluAndMul()((normed @ gate_up.float().T).to(dtype)), **close)

    weight = random((num_heads + 2 * num_kv_heads) * head_dim, 128, dtype=dtype, device=device) / 11
    q_norm, k_norm = norm(head_dim, dtype, device), norm(head_dim, dtype, device)
    rotary = RotaryEmbedding(head_dim, 100, 1e4, device=device)
    positions, slots = torch.randint(100, (num_tokens,), device=device), torch.randperm(48, device=device)[:num_tokens]
    slots[::7] = -1
    rest = (positions, q_norm.weight, k_norm.weight, EPS, rotary.cos, rotary.sin)
    caches = torch.full((2, 2, 3, 16, num_kv_heads, head_dim), 7.0, dtype=dtype, device=device)
    expected = norm_rope_store((normed @ weight.float().T).to(dtype), *rest, *caches[0], slots)
    found = prefill_linear.qkv_linear(x, weight, scale, *rest, *caches[1], slots, tokens=32)
    torch.testing.assert_close(found, expected, **close)
    torch.testing.assert_close(caches[1], caches[0], **close)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_tokens", "out_features", "in_features"), [(1, 40, 96), (2, 34, 1024), (4, 6, 48)])
def test_products_of_few_tokens(device, num_tokens, out_features, in_features, dtype):
    from nanovllm.kernels.linear import linear, norm_linear

    x, residual = (random(num_tokens, in_features, dtype=dtype, device=device) for _ in range(2))
    weight = random(out_features, in_features, dtype=dtype, device=device) * in_features**-0.5
    layer, close = norm(in_features, dtype, device), CLOSE[dtype]
    layer.weight.fill_(1)  # it lies in the projection's

    def product(x):
        return (x.float() @ weight.float().T).to(dtype)

    torch.testing.assert_close(linear(x, weight), product(x), **close)
    stream = residual.repeat(1, -(-out_features // in_features))[:, :out_features].contiguous()
    expected = stream + product(x)
    assert linear(x, weight, stream) is stream
    torch.testing.assert_close(stream, expected, **close)
    normed = layer(x)
    torch.testing.assert_close(norm_linear(x, EPS, weight), product(normed), **close)
    gated = SiluAndMul()(product(normed))
    torch.testing.assert_close(norm_linear(x, EPS, weight, gated=True), gated, **close)


@pytest.mark.parametrize(("num_rows", "vocab_size", "splits"), [(1, 5000, None), (7, 5000, 1), (7, 2049, 2), (3, 30, None)])
def test_draws_are_those_of_the_plain_sampler(device, num_rows, vocab_size, splits):
    from nanovllm.kernels.sample import draw

    logits = 3 * random(num_rows, vocab_size, dtype=torch.float32, device=device)
    temperatures = torch.linspace(0, 2, num_rows, device=device)
    seeds, offsets = torch.arange(num_rows, device=device) + 2**40, torch.arange(num_rows, device=device)
    tokens = draw(logits, temperatures, seeds, offsets, splits=splits)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, sampler.draw(logits, temperatures, seeds, offsets))
    batch = sampler.SamplingBatch(temperatures, seeds, offsets)
    assert torch.equal(sampler.Sampler(draw)(logits, batch), sampler.Sampler()(logits, batch))


def test_of_equal_scores_the_first_wins(device):
    from nanovllm.kernels.sample import draw

    logits = torch.zeros(2, 6000, device=device)
    logits[0, [17, 2500, 5999]], logits[1, 1:] = 1.0, float("-inf")
    zeros = torch.zeros(2, dtype=torch.int64, device=device)
    assert draw(logits, torch.tensor([0.0, 0.7], device=device), zeros, zeros, masked=True).tolist() == [17, 0]

"""What stands between two matrix products, three ways: the plain layers, the same through torch.compile, and our kernels.

Each must agree with the plain layers before it is timed, in a CUDA graph, so that neither Python nor launches count.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import roofline
from nanovllm.kernels import norm_rope_store, rms_norm, sample, silu_and_mul
from nanovllm.layers import sampler
from nanovllm.layers.activation import SiluAndMul
from nanovllm.layers.layernorm import RMSNorm
from nanovllm.layers.rotary_embedding import RotaryEmbedding, rope_theta

# Its name, two functions, and what both are called with.
Stretch = tuple[str, Callable[..., Any], Callable[..., Any], tuple[torch.Tensor, ...]]


def microseconds(call: Callable[[], object], count: int = 20) -> float:
    """Time of one call on the GPU. count: of calls in one graph."""
    call()  # what is done once only, such as compiling, cannot be captured
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
        for _ in range(count):
            call()
    return roofline.seconds(graph.replay) / count * 1e6


def layer_stretches(shape: Any, num_tokens: int, device: str = "cuda", dtype: torch.dtype = torch.bfloat16
                    ) -> Iterator[Stretch]:
    """The three of a layer of a Qwen3. shape: its config."""
    own: dict[str, Any] = {"device": device, "dtype": dtype}
    hidden, inner, dim = shape.hidden_size, shape.intermediate_size, shape.head_dim
    heads, kv_heads = shape.num_attention_heads, shape.num_key_value_heads
    norm, q_norm, k_norm = (RMSNorm(size, shape.rms_norm_eps, **own) for size in (hidden, dim, dim))
    for layer in (norm, q_norm, k_norm):
        layer.weight.uniform_(0.5, 1.5)  # not 1, or who forgot it would pass
    rope = RotaryEmbedding(dim, num_tokens, rope_theta(shape), device=device)

    def plain(qkv: Tensor, positions: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        q, k, v = qkv.unflatten(-1, (-1, dim)).split([heads, kv_heads, kv_heads], 1)
        q, k = rope(positions, q_norm(q), k_norm(k))
        return q, keys.index_copy_(0, slots, k), values.index_copy_(0, slots, v)

    def ours(qkv: Tensor, positions: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        q = norm_rope_store.norm_rope_store(qkv, positions, q_norm.weight, k_norm.weight, q_norm.eps, rope.cos, rope.sin,
                                            keys.unsqueeze(1), values.unsqueeze(1), slots)  # in blocks of one token each
        return q, keys, values

    yield ("add, RMSNorm", norm, lambda x, residual: rms_norm.rms_norm(x, residual, norm.weight, norm.eps),
           tuple(torch.randn(num_tokens, hidden, **own) for _ in range(2)))
    yield ("head norms, RoPE, store to the cache", plain, ours,
           (torch.randn(num_tokens, (heads + 2 * kv_heads) * dim, **own), torch.arange(num_tokens, device=device),
            torch.randperm(num_tokens, device=device), *(torch.randn(num_tokens, kv_heads, dim, **own) for _ in range(2))))
    yield "SiLU, times up", SiluAndMul(), silu_and_mul.silu_and_mul, (torch.randn(num_tokens, 2 * inner, **own),)


def draw_stretch(shape: Any, num_rows: int, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> Stretch:
    """The one behind the last product of a step, the LM head's."""
    seeds, offsets = torch.randint(2**60, (2, num_rows), device=device)
    logits = torch.randn(num_rows, shape.vocab_size, device=device, dtype=dtype)
    return "draw", sampler.draw, sample.draw, (logits, torch.full((num_rows,), 0.6, device=device), seeds, offsets)


def require_equal(found: Any, expected: Any) -> None:
    """AssertionError if results differ by more than roundings to their dtype explain; of draws, more than one in a hundred."""
    for a, b in [(found, expected)] if isinstance(expected, torch.Tensor) else zip(found, expected, strict=True):
        if a.is_floating_point():
            places = 4 * torch.finfo(a.dtype).eps
            torch.testing.assert_close(a, b, rtol=places, atol=places * float(b.abs().max()))
        else:  # two logits may be so near each other that the last place of a logarithm decides
            assert (a != b).float().mean() <= 0.01, f"{int((a != b).sum())} of {len(a)} draws differ"


def measure(stretch: Stretch, time: Callable[[Callable[[], object]], float] = microseconds) -> dict[str, Any]:
    """A row of the results. Where torch.compile fails its time is None, and "compiled error" says why."""
    name, plain, ours, inputs = stretch
    expected = plain(*(x.clone() for x in inputs))  # copies, since caches are written to, and by ours the queries too
    require_equal(ours(*(x.clone() for x in inputs)), expected)
    row = {"stretch": name, "tokens": len(inputs[0]), "eager us": time(lambda: plain(*inputs)), "compiled us": None}
    try:
        compiled = torch.compile(plain, fullgraph=True, dynamic=False)
        require_equal(compiled(*(x.clone() for x in inputs)), expected)
        row["compiled us"] = time(lambda: compiled(*inputs))
    except Exception as error:
        row["compiled error"] = f"{type(error).__name__}: {str(error)[:500]}"
    return row | {"ours us": time(lambda: ours(*inputs))}


def rows(shape: Any) -> list[dict[str, Any]]:
    return list(map(measure, (*layer_stretches(shape, 256), *layer_stretches(shape, 16_384), draw_stretch(shape, 256))))

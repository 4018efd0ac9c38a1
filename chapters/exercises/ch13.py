"""Chapter 13: bytes on the wire, the row-parallel bias, and who holds which key/value head."""

import threading

import torch

from nanovllm.layers.linear import QKVParallelLinear
from nanovllm.layers.tensor_parallel import TensorParallel

from .ranks import MeetingPlace, in_ranks
from .verdict import Wrong, check, require


@check("bytes on the wire")
def check_step_bytes(step_bytes):
    """step_bytes(num_tokens, hidden_size, num_layers, bytes_per_number) -> bytes that all-reduces sum up in one step."""
    for case in ((1, 1024, 28, 2), (256, 4096, 36, 2), (7, 256, 6, 4), (3, 64, 1, 2)):
        num_tokens, hidden_size, num_layers, width = case
        one = num_tokens * hidden_size * width
        right, got = one * (2 * num_layers + 1), step_bytes(*case)
        hint = f"{num_tokens} tokens, hidden size {hidden_size}, {num_layers} layers, {width} bytes: {right}, not {got}."
        if got == one * 2 * num_layers:
            hint += " The embedding is split too: its sum is missing."
        elif got == one * (num_layers + 1) or got == one * num_layers:
            hint += " A layer has two sums, one behind attention and one behind the feed-forward network."
        require(got == right, hint)
    return "four models: one sum behind the embedding and two a layer."


@check("the row-parallel bias")
def check_row_linear(RowLinear):
    """RowLinear(weight, bias, tp)(x): weight, bias and x whole; this rank uses its share. Equal to x Wᵀ + b on every rank."""
    torch.manual_seed(0)
    for size, out_features, in_features in ((1, 3, 4), (2, 5, 8), (4, 7, 8)):
        weight, bias, x = torch.randn(out_features, in_features), torch.randn(out_features), torch.randn(6, in_features)
        right = x @ weight.T + bias

        def run(tp, weight=weight, bias=bias, x=x, share_of=in_features):
            before = weight.clone(), bias.clone()
            share = share_of // tp.size
            mine = x[:, tp.rank * share:(tp.rank + 1) * share]  # what a column-parallel layer before this one leaves here
            got = RowLinear(weight, bias, tp)(mine)
            require(torch.equal(weight, before[0]) and torch.equal(bias, before[1]), "the weights were changed in place.")
            return got

        try:
            results = in_ranks(run, size, MeetingPlace(size, patience=3))
        except threading.BrokenBarrierError:
            raise Wrong(f"{size} ranks: one rank waits in `all_reduce` for others that do not come. A sum needs every rank: "
                        "each must call it as often as the others, whatever its number.") from None
        for rank, got in enumerate(results):
            case = f"{size} ranks, rank {rank}"
            require(tuple(got.shape) == tuple(right.shape), f"{case}: shape {tuple(got.shape)}, not {tuple(right.shape)}.")
            if not torch.allclose(got, right, atol=1e-4):
                left = got - right
                if size > 1 and torch.allclose(left, (size - 1) * bias.expand_as(left), atol=1e-4):
                    require(False, f"{case}: every number is too large by {size - 1} times the bias. It was added by each "
                                   "rank, and then the sum was taken.")
                if torch.allclose(left, -bias.expand_as(left), atol=1e-4):
                    require(False, f"{case}: the bias is missing.")
                require(False, f"{case}: off by up to {left.abs().max():.3f}; is it a partial sum?")
    return "one, two and four ranks: the bias counts once."


@check("who holds which head")
def check_heads_of(heads_of):
    """heads_of(rank, size, num_heads, num_kv_heads) -> (query heads, kv heads) of a rank, both as lists in order."""
    for size, num_heads, num_kv_heads in ((1, 4, 2), (2, 16, 8), (4, 8, 4), (4, 8, 2), (8, 16, 2), (8, 8, 1)):
        group = num_heads // num_kv_heads
        for rank in range(size):
            q = list(range(rank * num_heads // size, (rank + 1) * num_heads // size))
            kv = sorted({head // group for head in q})
            got = tuple(list(heads) for heads in heads_of(rank, size, num_heads, num_kv_heads))
            case = f"{num_heads} query and {num_kv_heads} kv heads on {size} ranks, rank {rank}"
            hint = f"{case}: query heads {q} and kv heads {kv}, not {got[0]} and {got[1]}."
            if got[0] == q and len(got[1]) == 0:
                hint += " Query heads without keys can attend to nothing: where kv heads are few, several ranks hold one."
            elif got[0] == q and set(got[1]) - set(kv):
                hint += " It holds heads that none of its query heads looks at."
            require(got == (q, kv), hint)
            layer = QKVParallelLinear(8, num_heads, num_kv_heads, 2, False, TensorParallel(rank, size), device="meta")
            require((layer.num_heads, layer.num_kv_heads) == (len(q), len(kv)), f"{case}: the engine's own layer disagrees")
    return "six splits, some with a kv head on several ranks; the engine's own layer holds as many."

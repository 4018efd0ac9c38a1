"""Split layers, rank by rank in one process: what the ranks hold and compute must add up to the whole layer."""

import pytest
import torch
import torch.nn.functional as F

from nanovllm.layers.embed_head import ParallelLMHead, VocabParallelEmbedding
from nanovllm.layers.linear import ColumnParallelLinear, QKVParallelLinear, ReplicatedLinear, RowParallelLinear
from nanovllm.layers.tensor_parallel import TensorParallel


class OneOf(TensorParallel):
    """A rank whose collectives do nothing, so that a test can add or join the ranks' results itself."""

    def all_reduce(self, tensor):
        return tensor

    def all_gather(self, tensor, dim=-1):
        return tensor


def ranks(size: int) -> list[OneOf]:
    return [OneOf(rank, size) for rank in range(size)]


def fill(layer, name: str, tensor: torch.Tensor, part: str | None = None) -> None:
    dim, index, count = layer.share(name, part)
    layer.target(name, part).copy_(tensor.chunk(count, dim)[index])


def test_replicated_linear_is_the_whole_product():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 8), torch.randn(6, 8), torch.randn(6)
    layer = ReplicatedLinear(8, 6, bias=True)
    fill(layer, "weight", weight)
    fill(layer, "bias", bias)
    torch.testing.assert_close(layer(x), F.linear(x, weight, bias))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_merged_columns_join_to_the_whole_product(size):
    torch.manual_seed(0)
    x, gate, up = torch.randn(3, 8), torch.randn(12, 8), torch.randn(12, 8)
    gate_bias, up_bias = torch.randn(12), torch.randn(12)
    gates, ups = [], []
    for tp in ranks(size):
        layer = ColumnParallelLinear(8, {"gate": 12, "up": 12}, True, tp)
        assert layer.weight.shape == (24 // size, 8)
        for part, weight, bias in (("gate", gate, gate_bias), ("up", up, up_bias)):
            fill(layer, "weight", weight, part)
            fill(layer, "bias", bias, part)
        first, second = layer(x).chunk(2, -1)
        gates.append(first)
        ups.append(second)
    torch.testing.assert_close(torch.cat(gates, -1), F.linear(x, gate, gate_bias))
    torch.testing.assert_close(torch.cat(ups, -1), F.linear(x, up, up_bias))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_rows_add_up_and_the_bias_counts_once(size):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 8), torch.randn(6, 8), torch.randn(6)
    total = torch.zeros(3, 6)
    for tp, share in zip(ranks(size), x.chunk(size, -1), strict=True):
        layer = RowParallelLinear(8, 6, True, tp)
        fill(layer, "weight", weight)
        fill(layer, "bias", bias)
        total += layer(share)
    torch.testing.assert_close(total, F.linear(x, weight, bias))


@pytest.mark.parametrize(("size", "num_kv_heads"), [(1, 2), (2, 2), (4, 2), (8, 2), (8, 1), (2, 8)])
def test_every_query_head_finds_its_kv_head_on_its_own_rank(size, num_kv_heads):
    num_heads, head_dim = 8, 2
    # Row r of head h is filled with h, so that a result tells which heads a rank holds.
    q = torch.arange(num_heads).repeat_interleave(head_dim).float()[:, None].expand(-1, 4)
    k = torch.arange(num_kv_heads).repeat_interleave(head_dim).float()[:, None].expand(-1, 4)
    held_queries = []
    for tp in ranks(size):
        layer = QKVParallelLinear(4, num_heads, num_kv_heads, head_dim, False, tp)
        for part, weight in (("q", q), ("k", k), ("v", k + 100)):
            fill(layer, "weight", weight, part)
        pieces = layer.weight[:, 0].split(list(layer.sizes.values()))
        queries, keys, values = (piece.view(-1, head_dim)[:, 0].int() for piece in pieces)
        assert (len(queries), len(keys)) == (layer.num_heads, layer.num_kv_heads)
        group = layer.num_heads // layer.num_kv_heads
        wanted = queries // (num_heads // num_kv_heads)
        assert keys.repeat_interleave(group).tolist() == wanted.tolist()
        assert (values - 100).tolist() == keys.tolist()
        held_queries += queries.tolist()
    assert held_queries == list(range(num_heads))


def test_a_size_that_does_not_divide_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"gate features=10.*tensor_parallel_size=4"):
        ColumnParallelLinear(8, {"gate": 10}, False, OneOf(0, 4))
    with pytest.raises(ValueError, match="num_key_value_heads"):
        QKVParallelLinear(8, 6, 4, 2, False, OneOf(0, 6))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_vocabulary_split_over_ranks(size):
    torch.manual_seed(0)
    table, ids, hidden = torch.randn(12, 5), torch.tensor([0, 11, 3, 3, 7]), torch.randn(2, 5)
    embedded, logits = torch.zeros(5, 5), []
    for tp in ranks(size):
        embedding, head = VocabParallelEmbedding(12, 5, tp), ParallelLMHead(12, 5, tp)
        fill(embedding, "weight", table)
        fill(head, "weight", table)
        embedded += embedding(ids)
        logits.append(head(hidden))
    torch.testing.assert_close(embedded, table[ids])
    torch.testing.assert_close(torch.cat(logits, -1), hidden @ table.T)


def test_at_size_one_collectives_are_the_identity_defect_1():
    tensor = torch.randn(2)
    assert TensorParallel().all_reduce(tensor) is tensor
    assert TensorParallel().all_gather(tensor) is tensor

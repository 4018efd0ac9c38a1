"""Chapter 13: how many cards to serve a model with, a feed-forward network on several ranks, and a draw without a gather."""

import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nanovllm.config import OFFLINE_MODEL, load_hf_config
from nanovllm.layers.attention_backends import TorchBackend
from nanovllm.layers.tensor_parallel import TensorParallel
from nanovllm.models.qwen3 import Qwen3ForCausalLM
from nanovllm.utils.context import Context
from nanovllm.utils.loader import load_weights

from .ranks import MeetingPlace, in_ranks
from .verdict import Wrong, check, require

SIZES = (1, 2, 4, 8)
GIGA, MICRO = 10**9, 1e-6
DEPLOYMENTS = (  # weights (GB), cache (GB), layers, room of a card (GB), µs per round of a ring
    (16.4, 60, 36, 70, 2), (1.2, 2, 28, 70, 40), (1.2, 2, 28, 70, 2), (16.4, 10, 36, 70, 2), (65, 12, 64, 70, 2),
    (65, 12, 64, 70, 40), (140, 80, 80, 70, 2), (600, 40, 80, 70, 2), (16.4, 0, 36, 70, 40), (1.2, 100, 28, 70, 5),
    (16.4, 0, 36, 70, 12.85))


def _step_seconds(size: int, weights: float, cache: float, num_layers: int, bandwidth: float, round_seconds: float,
                  room: float, embedding: int = 1, rounds: int = 2) -> float:
    sums = (2 * num_layers + embedding) * rounds * (size - 1) * round_seconds
    return (weights + cache) / size / bandwidth + sums


@check("how many cards")
def check_best_size(best_size):
    """best_size(weights, cache, num_layers, room, bandwidth, round_seconds) -> 1, 2, 4 or 8 cards, or None if none will do."""
    for weights, cache, layers, room, micros in DEPLOYMENTS:
        case = (weights * GIGA, cache * GIGA, layers, room * GIGA, 4.4e12, micros * MICRO)
        told = (f"weights {weights:g} GB, cache {cache:g} GB, {layers} layers, {room} GB of room, 4.4 TB/s, "
                f"{micros:g} µs per round")
        fits = [size for size in SIZES if (case[0] + case[1]) / size <= case[3]]

        def fastest(sizes, case=case, **other):
            costs = dict(zip(("weights", "cache", "num_layers", "room", "bandwidth", "round_seconds"), case)) | other
            return min(sizes, key=lambda cards: _step_seconds(cards, **costs), default=None)

        right, got = fastest(fits), best_size(*case)
        hint = f"{told}: {right}, not {got}."
        if got in SIZES and got not in fits:
            hint += f" Its share of weights and cache, {(weights + cache) / got:.0f} GB, does not fit."
        elif not fits:
            hint += " Even an eighth does not fit."
        elif got == fits[0] != right:
            hint += " It fits, but more cards would be faster: each reads less."
        elif got == fastest(fits, weights=case[0], cache=0):
            hint += " A step reads the cache as well as the weights."
        elif got == fastest(fits, embedding=0):
            hint += " The embedding is split, too: its sum is missing."
        elif got == fastest(fits, rounds=1):
            hint += " A ring goes around twice: once to add, once to pass the finished parts on."
        elif got == 8:
            hint += " A ring of many ranks has many rounds: seven times as many for eight ranks as for two."
        require(got == right, hint)
    return f"{len(DEPLOYMENTS)} deployments: small and large models, slow and fast links, one that fits nowhere."


def _ranks(size: int) -> str:
    return f"{size} ranks" if size > 1 else "one rank"


def _held_bytes(thing: object) -> int:
    """Bytes of the memory that an object's tensors keep alive, each piece counted once."""
    storages: dict[int, int] = {}

    def look(value: object) -> None:
        if isinstance(value, Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, (list, tuple, set)):
            for one in value:
                look(one)
        elif isinstance(value, dict):
            look(list(value.values()))
        elif hasattr(value, "__dict__") and not isinstance(value, (TensorParallel, type)):
            look(vars(value))

    look(thing)
    return sum(storages.values())


@check("a feed-forward network on several ranks")
def check_parallel_mlp(ParallelMLP):
    """ParallelMLP(gate, up, down, bias, tp)(x): weights and x whole; down(silu(gate x) * up x) + bias, whole, on every rank."""
    torch.manual_seed(0)
    for size, hidden, wide in ((1, 6, 8), (2, 6, 12), (4, 10, 16)):
        gate, up, down, bias, x = (torch.randn(*shape) for shape in ((wide, hidden), (wide, hidden), (hidden, wide), (hidden,),
                                                                     (5, hidden)))
        right = (nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T + bias
        place = MeetingPlace(size, patience=3)

        def run(tp, weights=(gate, up, down, bias), x=x):
            own = [weight.clone() for weight in weights]
            network = ParallelMLP(*own, tp)
            held = _held_bytes(network)
            got = network(x.clone())
            require(all(torch.equal(a, b) for a, b in zip(own, weights)), "the weights were changed in place.")
            return got, held

        try:
            results = in_ranks(run, size, place)
        except threading.BrokenBarrierError:
            raise Wrong(f"{_ranks(size)}: one rank waits in `all_reduce` for others that do not come. A sum needs every rank: "
                        "each must call it as often as the others, whatever its number.") from None
        for rank, (got, held) in enumerate(results):
            _check_output(got, right, bias, f"{_ranks(size)}, rank {rank}", size)
            share = 4 * (3 * hidden * wide // size + hidden)
            hint = f"{_ranks(size)}, rank {rank}: it keeps {held} bytes of weights alive, and its share is {share}."
            if held >= 4 * 3 * hidden * wide:
                hint += " A slice is a view, and a view keeps the whole tensor: `.clone()` copies the share alone."
            require(size == 1 or held <= 1.1 * share, hint)
        require(size == 1 or place.num_sums == 1, f"{_ranks(size)}: {place.num_sums} sums. One is enough: cut gate and up by "
                                                  "output features, and down by input features.")
    return "one, two and four ranks: a share of the weights each, one sum, and the bias once."


def _check_output(got: Tensor, right: Tensor, bias: Tensor, case: str, size: int) -> None:
    require(tuple(got.shape) == tuple(right.shape), f"{case}: shape {tuple(got.shape)}, not {tuple(right.shape)}.")
    if torch.allclose(got, right, atol=1e-4):
        return
    left = got - right
    if size > 1 and torch.allclose(left, (size - 1) * bias.expand_as(left), atol=1e-4):
        raise Wrong(f"{case}: every number is too large by {size - 1} times the bias. It was added by each rank, and then the "
                    "sum was taken.")
    if torch.allclose(left, -bias.expand_as(left), atol=1e-4):
        raise Wrong(f"{case}: the bias is missing.")
    raise Wrong(f"{case}: off by up to {left.abs().max():.3f}; is it a partial sum, or are gate and up cut apart?")


class _InItsPlace(nn.Module):
    """A reader's network where the model has its own."""

    def __init__(self, network: Callable[[Tensor], Tensor]):
        super().__init__()
        self._network = (network,)  # not a module's parameter, whatever it is

    def forward(self, x: Tensor) -> Tensor:
        return self._network[0](x)


def run_with(ParallelMLP) -> str:
    """The offline model on two ranks, with the reader's network in every layer, beside the model alone.

    Raises RuntimeError when a next token differs.
    """
    config, tokens, int32 = load_hf_config(OFFLINE_MODEL), torch.arange(100, 124), torch.int32
    context = Context(cu_seqlens_q=torch.tensor([0, 24], dtype=int32), context_lens=torch.tensor([24], dtype=int32),
                      block_tables=torch.tensor([[0, 1]], dtype=int32), slot_mapping=torch.arange(24), max_seqlen_q=24,
                      max_seqlen_k=24, num_decodes=0, last_rows=torch.arange(24))

    def loaded(tp: TensorParallel) -> Qwen3ForCausalLM:
        model = Qwen3ForCausalLM(config, TorchBackend(), tp, dtype=torch.float32)
        load_weights(model, OFFLINE_MODEL)
        return model

    def scores(model: Qwen3ForCausalLM, tp: TensorParallel) -> Tensor:
        cache = torch.zeros(config.num_hidden_layers, 2, 2, 16, config.num_key_value_heads // tp.size, config.head_dim)
        return model.compute_logits(model(tokens, torch.arange(24), cache, context))

    with torch.inference_mode():
        whole = loaded(TensorParallel())
        alone = scores(whole, TensorParallel())

    def run(tp: TensorParallel) -> Tensor:
        model = loaded(tp)
        for layer, complete in zip(model.model.layers, whole.model.layers):
            gate, up = complete.mlp.gate_up_proj.weight.chunk(2)
            layer.mlp = _InItsPlace(ParallelMLP(gate.clone(), up.clone(), complete.mlp.down_proj.weight.clone(),
                                                torch.zeros(config.hidden_size), tp))
        return scores(model, tp)

    place = MeetingPlace(2, patience=20)
    for rank, logits in enumerate(in_ranks(run, 2, place)):
        if not torch.equal(logits.argmax(-1), alone.argmax(-1)):
            raise RuntimeError(f"rank {rank}: at {int((logits.argmax(-1) != alone.argmax(-1)).sum())} of 24 positions another "
                               "token is likeliest than in the model alone")
    return f"{config.num_hidden_layers} layers on two ranks with your network: {place.num_sums} sums, the same 24 next tokens"


class _Scales(MeetingPlace):
    """A meeting place that counts the numbers each rank brings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.numbers = [0] * self.size

    def exchange(self, rank: int, tensor: Tensor) -> list[Tensor]:
        self.numbers[rank] += tensor.numel()
        return super().exchange(rank, tensor)


def _scores(rows: int, vocab: int, kind: str, draw: torch.Generator) -> Tensor:
    if kind == "bfloat16":  # 8 bits of precision: no place to put a token's id
        return torch.randn(rows, vocab, generator=draw).bfloat16()
    scores = torch.randn(rows, vocab, generator=draw) - 20  # all below zero
    if kind == "ties":
        scores[:, [3, vocab // 2 + 1, vocab - 1]] = 1.0
    if kind == "masked":
        scores[:, : vocab // 2 + 5] = -torch.inf
    return scores


@check("a draw without a gather")
def check_draw_in_parts(draw_in_parts):
    """draw_in_parts(scores, tp): this rank's [rows, vocab / size] scores -> [rows] token ids of the highest, on every rank."""
    draw, most = torch.Generator().manual_seed(0), 0
    for size, rows, vocab, kind in ((1, 3, 16, "plain"), (2, 5, 64, "plain"), (4, 6, 4096, "plain"), (2, 4, 64, "ties"),
                                    (4, 4, 64, "masked"), (2, 8, 4096, "bfloat16")):
        whole = _scores(rows, vocab, kind, draw)
        right, place = whole.argmax(-1).tolist(), _Scales(size, patience=3)

        def run(tp, whole=whole):
            return draw_in_parts(whole.chunk(tp.size, -1)[tp.rank].clone(), tp)

        try:
            results = in_ranks(run, size, place)
        except threading.BrokenBarrierError:
            raise Wrong(f"{_ranks(size)}: one rank waits for others that do not come. Each must exchange as often as the "
                        "others, whatever its scores are.") from None
        case = f"{rows} rows of {vocab} scores ({kind}) on {_ranks(size)}"
        for rank, got in enumerate(results):
            require(isinstance(got, Tensor) and tuple(got.shape) == (rows,), f"{case}: {rows} token ids are wanted, [{rows}]; "
                                                                             f"rank {rank} returns {_shape(got)}.")
            require(got.tolist() == right, f"{case}, rank {rank}: tokens {right}, not {got.tolist()}."
                    + _why(got.tolist(), right, whole, vocab // size, kind))
        most = max(most, *place.numbers) if size > 1 else most
        require(max(place.numbers) <= 2 * rows, f"{case}: a rank brought {max(place.numbers)} numbers. Two per row are enough: "
                                                "how high its best score is, and whose.")
    return f"ties, masks and bfloat16 on up to four ranks; at most {most} numbers sent by a rank, of up to {6 * 1024} it has."


def _shape(got: object) -> str:
    return f"shape {tuple(got.shape)}" if isinstance(got, Tensor) else repr(got)


def _why(got: list, right: list, whole: Tensor, share: int, kind: str) -> str:
    if got == [token % share for token in right]:
        return " These are places within a rank's share: add where the share begins."
    if kind == "ties":
        return " Of equally high scores the one with the lowest id wins."
    if kind == "bfloat16":
        return " A bfloat16 holds whole numbers exactly up to 256: an id must travel in another tensor, or as another type."
    if kind == "plain" and whole.max() < 0:
        return " All scores are below zero here; does a zero stand in for what a rank does not have?"
    return ""

"""Draws behind filters, found without a sort, are those of the plain form, which sorts: whatever the filters, ties or not."""

import pytest
import torch

from nanovllm.layers import filters as plain
from nanovllm.layers import sampler
from nanovllm.utils.filters import NO_TOP_K, WEIGHT_BITS, Filters

triton = pytest.importorskip("triton")
tl = triton.language
from nanovllm.kernels import sample  # noqa: E402
from nanovllm.kernels.filtered_draw import Cut, filtered_draw  # noqa: E402
from nanovllm.kernels.threshold import softmax_weight  # noqa: E402


@triton.jit
def weights_kernel(out_ptr, scores_ptr, highest, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out_ptr + i, softmax_weight(tl.load(scores_ptr + i), highest))


def rules(top_k=None, top_p=None, min_p=None, count=1, device="cpu") -> Filters:
    """The same for `count` rows, or a list for each."""
    def column(values, dtype):
        if values is None:
            return None
        values = values if isinstance(values, list) else [values] * count
        return torch.tensor(values, dtype=dtype, device=device)[:, None]

    return Filters(torch.arange(count, device=device), column(top_k, torch.int64), column(top_p, torch.float32),
                   column(min_p, torch.float32))


def logits_of(kind: str, num_rows: int, vocab_size: int, dtype, device) -> torch.Tensor:
    logits = 3 * torch.randn(num_rows, vocab_size)
    if kind == "ties":
        logits = logits.round()  # a dozen values, one of them 0 with both its signs
    elif kind == "peaked":
        logits *= 6
    elif kind == "equal":
        logits = torch.full_like(logits, -1.25)
    elif kind == "forbidden":
        logits[:, 3::4] = float("-inf")
    elif kind == "sorted":  # the likely ones side by side
        logits = logits.sort(-1, descending=True).values
    return logits.to(device, dtype)


def same(logits, filters, cut=None):
    """Both forms, each from its own draw without filters."""
    num_rows = len(logits)
    temperatures = torch.linspace(0.3, 2, num_rows, device=logits.device)
    seeds, offsets = torch.randint(2**62, (num_rows,), device=logits.device), torch.arange(num_rows, device=logits.device)
    row = logits, temperatures, seeds, offsets
    expected = sampler.filtered_draw(*row, filters, sampler.draw(*row, masked=True))
    assert torch.equal(filtered_draw(*row, filters, sample.draw(*row, masked=True), cut), expected), cut


KINDS = ["normal", "ties", "peaked", "equal", "forbidden", "sorted"]
CUTS = {"row": Cut(tile=512, few=1, capacity=1), "usual": None, "small": Cut(tile=128, few=16, capacity=64),
        "many rows": Cut(tile=512, group=16)}
ASKED = [(k, p, m) for k in (NO_TOP_K, 1, 5, 60, 398, 400, 5000) for p in (1.0, 1e-6, 0.3, 0.9, 0.999)
         for m in (0.0, 0.2)][1:]  # without the one that filters nothing


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_those_of_the_plain_form(device, kind, cut):
    """Any mix of rows: each k and p with each other, some of them off; without a GPU another few of them for every case."""
    place = list(CUTS.values()).index(cut) * len(KINDS) + KINDS.index(kind)
    asked = ASKED if device == "cuda" else ASKED[place % 12::12]
    top_k, top_p, min_p = (list(column) for column in zip(*asked))
    same(logits_of(kind, len(asked), 400, torch.float32, device), rules(top_k, top_p, min_p, len(asked), device), cut)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_every_k_and_many_p(device, dtype):
    vocab_size = 96 if device == "cuda" else 12
    logits = logits_of("normal", vocab_size, vocab_size, dtype, device)
    same(logits, rules(list(range(1, vocab_size + 1)), count=vocab_size, device=device), Cut(tile=64))
    shares = torch.logspace(-6, -1e-4, vocab_size).tolist()
    same(logits, rules(top_p=shares, count=vocab_size, device=device), Cut(tile=64, capacity=4))
    same(logits, rules(min_p=shares, count=vocab_size, device=device), Cut(tile=64, capacity=4))


@pytest.mark.parametrize("top_k", [1, 20, 50, 399])
@pytest.mark.parametrize("capacity", [16, 2048])
def test_rows_that_allow_fewer_tokens_than_top_k(device, top_k, capacity):
    """As structured outputs make them: 20 tokens are allowed, or one. Some of them have equal scores."""
    logits = logits_of("ties", 4, 400, torch.float32, device)
    allowed = torch.zeros(400, dtype=torch.bool, device=device)
    allowed[7::20] = True
    logits[:3, ~allowed] = float("-inf")
    logits[3, 1:] = float("-inf")
    for top_p, min_p in ((1.0, 0.0), (0.7, 0.0), (0.999, 0.1), (1e-6, 0.0)):
        same(logits, rules(top_k, top_p, min_p, 4, device), Cut(tile=128, few=16, capacity=capacity))


@pytest.mark.unmeasured
def test_what_is_drawn_without_filters_stays_where_they_leave_it_and_else_is_drawn_again(device):
    """A flat row of 3,000 tokens has more candidates than there is room for, so top-p and min-p go through all of it."""
    num_rows = 12 if device == "cuda" else 5
    logits = (0.05 * torch.randn(num_rows, 3000)).to(device)
    for top_p, min_p in ((0.95, 0.0), (0.3, 0.0), (0.02, 0.0), (1.0, 0.99), (0.5, 0.97)):
        same(logits, rules(None, top_p, min_p, num_rows, device), Cut(tile=1024, few=16, capacity=64))
        same(logits, rules(2500, top_p, min_p, num_rows, device), Cut(tile=1024, few=16, capacity=64))


def test_weights_are_those_of_the_plain_form_to_the_bit(device):
    scores = torch.cat((torch.tensor([0.0, -0.0, -1e-30, -1e-7, float("-inf")]), -60 * torch.rand(4091))).to(device)
    out = torch.empty(4096, dtype=torch.int64, device=device)
    weights_kernel[(1,)](out, scores, 0.0, SIZE=4096, enable_fp_fusion=False)
    assert torch.equal(out, plain.softmax_weights(scores[None])[0])
    exact = (scores.double().exp() * 2.0**WEIGHT_BITS)
    assert float(((out - exact).abs() / (exact * 3e-6 + 1)).max()) < 1


def test_rows_without_filters_and_rows_that_are_not_finite_keep_their_token(device):
    logits, zeros = torch.randn(4, 500, device=device), torch.zeros(4, dtype=torch.int64, device=device)
    logits[3, 17] = float("nan")
    filters = rules([NO_TOP_K, 1, NO_TOP_K, 3], [1.0] * 4, [0.0] * 4, 4, device)
    temperatures = torch.tensor([0.0, 1.0, 1.0, 1.0], device=device)
    for draw in (filtered_draw, sampler.filtered_draw):
        tokens = torch.tensor([7, 8, 9, -1], device=device)
        assert draw(logits, temperatures, zeros, zeros, filters, tokens) is tokens
        assert tokens.tolist() == [7, int(logits[1].argmax()), 9, -1]


def test_whatever_the_number_of_rows_triton_compiles_no_kernel_anew(monkeypatch):
    """A pointer that is not a multiple of 16 is another kernel to Triton, which then compiles in the middle of serving."""
    from nanovllm.kernels import filtered_draw as module

    seen = []

    class Recorder:
        def __getitem__(self, grid):
            return lambda *arguments, **options: seen.extend(a for a in arguments if isinstance(a, torch.Tensor))

    for kernel in ("_survey_kernel", "_gather_kernel", "_choose_kernel"):
        monkeypatch.setattr(module, kernel, Recorder())
    for num_rows in (1, 2, 3, 7, 33):
        seeds, offsets, tokens = torch.zeros(3, num_rows, dtype=torch.int64).unbind()
        filtered_draw(torch.zeros(num_rows, 64), torch.ones(num_rows), seeds.clone(), offsets.clone(),
                      rules(top_k=3, count=num_rows), tokens.clone())
    assert len(seen) > 5 * 30 and all(tensor.data_ptr() % 16 == 0 for tensor in seen)

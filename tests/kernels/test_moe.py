"""Router and grouped product of the experts, in Triton's interpreter or on a GPU, against the loop in `layers/moe.py`."""

import pytest
import torch

from nanovllm.layers import moe as plain
from nanovllm.layers.tensor_parallel import TensorParallel


def case(num_tokens, num_experts, num_active, hidden, size, device, seed=0, lopsided=False):
    """(x, logits, experts module), float32; lopsided: nearly all tokens choose the same few experts."""
    generator = torch.Generator(device).manual_seed(seed)

    def random(*shape, scale=1.0):
        return scale * torch.randn(*shape, generator=generator, device=device)

    experts = plain.Experts(num_experts, hidden, size, TensorParallel(), device=device, dtype=torch.float32)
    experts.gate_up_proj.data.copy_(random(num_experts, 2 * size, hidden, scale=hidden**-0.5))
    experts.down_proj.data.copy_(random(num_experts, hidden, size, scale=size**-0.5))
    logits = random(num_tokens, num_experts)
    if lopsided:
        logits[:, :num_active] += 20
    return random(num_tokens, hidden), logits, experts


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("num_experts", "num_active"), [(4, 1), (4, 4), (64, 8), (12, 3)])
def test_router(device, num_experts, num_active, normalize):
    from nanovllm.kernels.moe import route

    _, logits, _ = case(9, num_experts, num_active, 16, 16, device)
    experts, weights = route(logits, num_active, normalize)
    expected, expected_weights = plain.route(logits, num_active, normalize)
    assert torch.equal(experts.long(), expected)
    torch.testing.assert_close(weights, expected_weights)


def test_of_equal_experts_each_is_taken_once(device):
    from nanovllm.kernels.moe import route

    experts, weights = route(torch.zeros(2, 8, device=device), 3, True)
    assert experts.tolist() == [[0, 1, 2]] * 2 and weights.sum().item() == pytest.approx(2)


SHAPES = {  # tokens, experts, active, hidden, size: odd ones, one token alone, more pairs than fit one block
    "one token": (1, 8, 2, 64, 48), "a decode batch": (5, 64, 8, 48, 16), "odd sizes": (7, 12, 3, 40, 24),
    "one expert": (20, 1, 1, 32, 32), "a prompt": (300, 4, 2, 64, 64),
}


@pytest.mark.parametrize("lopsided", [False, True], ids=["spread", "lopsided"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_grouped_product_equals_the_loop(device, shape, lopsided):
    from nanovllm.kernels.moe import grouped_experts

    x, logits, module = case(*shape, device, lopsided=lopsided)
    experts, weights = plain.route(logits, shape[2], True)
    expected = module(x, experts, weights)
    chosen = experts.int(), weights, module.gate_up_proj, module.down_proj
    torch.testing.assert_close(grouped_experts(x, *chosen), expected, rtol=1e-4, atol=1e-5)
    stream = torch.ones_like(x)
    assert grouped_experts(x, *chosen, add_to=stream) is stream
    torch.testing.assert_close(stream, expected + 1, rtol=1e-4, atol=1e-5)


def test_what_one_token_gets_does_not_depend_on_the_others(device):
    """Bit for bit while the tiles stay the same: each row is multiplied by itself, and sums run in the order of the choices."""
    from nanovllm.kernels.moe import grouped_experts, route

    x, logits, module = case(40, 16, 4, 64, 32, device)
    weights = module.gate_up_proj, module.down_proj
    together = grouped_experts(x, *route(logits, 4, True), *weights)
    order = torch.randperm(40, device=device)[:13]
    alone = grouped_experts(x[order].contiguous(), *route(logits[order].contiguous(), 4, True), *weights)
    assert torch.equal(alone, together[order])

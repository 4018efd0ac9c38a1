"""The fused model in half precision is as near to float32 as the plain one is, though it rounds in other places."""

from copy import deepcopy
from statistics import median
from types import SimpleNamespace

import pytest
import torch

from nanovllm.layers.attention_backends import TritonBackend
from nanovllm.models.qwen3 import Qwen3ForCausalLM
from nanovllm.models.registry import model_class
from tests.checkpoints import TINY, TINY_EXPERTS
from tests.layers.paged_cases import paged_case

CONFIG = SimpleNamespace(**TINY | {"intermediate_size": 128, "hidden_act": "silu", "rms_norm_eps": 1e-6})
FAMILIES = {"Qwen3Moe": TINY_EXPERTS | {"mlp_only_layers": [1], "decoder_sparse_step": 1}, "Llama": {"mlp_bias": False},
            "Qwen2": {}, "Llama with all biases": {"attention_bias": True, "mlp_bias": True}}


@torch.inference_mode()
def errors(seed, sequences, device, prompt_tokens=None, family="Qwen3", **overrides) -> tuple[float, float]:
    """Of the plain model's and the fused model's logits, against float32. prompt_tokens: what is a long prompt to it."""
    from nanovllm.models.fused import FusedModel

    dtype = torch.bfloat16 if device == "cuda" else torch.float16  # the interpreter does not compute bfloat16 correctly
    torch.manual_seed(seed)
    config = SimpleNamespace(**vars(CONFIG) | overrides)
    model = model_class([f"{family}ForCausalLM"])(config, TritonBackend(), device=device, dtype=dtype).eval()
    for parameter in model.parameters():  # norms far from one, as trained ones are
        parameter.normal_(0, 0.3) if parameter.ndim > 1 else parameter.uniform_(0.1, 4)
    exact = deepcopy(model).float()
    decodes = len(sequences) if all(n == 1 for n, _ in sequences) else 0
    case = paged_case(sequences, num_decodes=decodes, num_heads=4, num_kv_heads=2, head_dim=32, block_size=16, dtype=dtype,
                      device=device, seed=seed)  # fmt: skip
    positions = torch.tensor([length - n + i for n, length in sequences for i in range(n)], device=device)
    tokens = torch.randint(96, (len(positions),), device=device)
    cache = torch.randn(2, *case.kv_cache.shape, device=device).to(dtype)

    def logits(form, kv_cache):
        return form.compute_logits(form(tokens, positions, kv_cache.clone(), case.context)).double()

    def error(form):
        return float((logits(form, cache) - expected).norm() / expected.norm())

    expected = logits(exact, cache.float())
    plain = error(model)
    fused = FusedModel(model)  # which folds the norms into the model's weights
    fused.prompt_tokens = prompt_tokens or fused.prompt_tokens
    return plain, error(fused)


BATCHES = {"decode": [(1, 5), (1, 30), (1, 12)], "chunks": [(3, 9), (4, 4)], "few": [(1, 17), (1, 9), (1, 30), (1, 3)]}


@pytest.mark.parametrize("sequences", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_folding_the_norms_costs_no_accuracy(device, sequences, bias):
    plain, fused = zip(*(errors(seed, sequences, device, attention_bias=bias) for seed in range(6)))
    assert 0 < sum(plain) / 6 < 0.02 and sum(fused) < 1.5 * sum(plain)  # one case alone says little


def test_a_long_prompt_costs_no_accuracy(device):
    plain, fused = zip(*(errors(seed, BATCHES["chunks"], device, prompt_tokens=1) for seed in range(6)))
    assert 0 < sum(plain) / 6 < 0.02 and sum(fused) < 1.5 * sum(plain)


@pytest.mark.parametrize("way", ["chunks", "few", "a long prompt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_as_near_to_float32(device, family, way):
    sequences, prompt_tokens = BATCHES.get(way, BATCHES["chunks"]), 1 if way == "a long prompt" else None
    if prompt_tokens and "biases" in family:
        pytest.skip("a bias behind the gate keeps a model from the kernels of long prompts")
    name, *_ = family.split()
    plain, fused = zip(*(errors(seed, sequences, device, prompt_tokens, name, **FAMILIES[family]) for seed in range(3)))
    # Not the mean: where two experts are nearly as likely, rounding alone may make one form take the other expert. On an H200
    # the plain form of the mixture in bf16 lay at 0.024 for that reason.
    assert 0 < median(plain) < (0.05 if "Moe" in name else 0.02) and median(fused) < 2 * median(plain)


def test_a_model_that_does_not_fit_the_tiles_goes_without(device):
    from nanovllm.models.fused import FusedModel

    def prompt_tokens(**overrides):
        config = SimpleNamespace(**vars(CONFIG) | overrides)
        return FusedModel(Qwen3ForCausalLM(config, TritonBackend(), device=device, dtype=torch.float16)).prompt_tokens

    assert prompt_tokens() == 1024
    assert min(prompt_tokens(**odd) for odd in ({"intermediate_size": 32}, {"hidden_size": 48}, {"head_dim": 16})) > 1e9

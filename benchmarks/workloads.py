"""What is served in the measurements: a model of Qwen3-0.6B's shape, and the requests that it gets."""

import json
from pathlib import Path
from random import Random
from typing import Any

import torch

from nanovllm import SamplingParams

SHAPE = dict(vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
             num_key_value_heads=8, head_dim=128, max_position_embeddings=40_960, tie_word_embeddings=True, rms_norm_eps=1e-6,
             attention_bias=False, hidden_act="silu", rope_parameters={"rope_type": "default", "rope_theta": 1e6})
SHAPES: dict[str, dict[str, Any]] = {
    "1.7B": SHAPE | dict(hidden_size=2048, intermediate_size=6144),
    "4B": SHAPE | dict(hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32),
    "8B": SHAPE | dict(hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36, num_attention_heads=32,
                       tie_word_embeddings=False)}
CONFIG = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "bfloat16", "eos_token_id": None}
FILTERS: dict[str, dict[str, Any]] = {
    "none": {}, "top_k 50, top_p 0.95": {"top_k": 50, "top_p": 0.95}, "top_p 0.95": {"top_p": 0.95},
    "min_p 0.05": {"min_p": 0.05}}  # fmt: skip
Requests = tuple[list[list[int]], list[SamplingParams]]


def write_checkpoint(folder: Path, device: str = "cpu", **overrides: Any) -> Path:
    """A folder as `save_pretrained` writes it, with random bf16 weights and no tokenizer: prompts are token ids."""
    from safetensors.torch import save_file

    shape: dict[str, Any] = SHAPE | overrides
    hidden, heads, kv_heads = shape["hidden_size"], shape["num_attention_heads"], shape["num_key_value_heads"]
    head_dim, inner = shape["head_dim"], shape["intermediate_size"]
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (heads * head_dim, hidden), "self_attn.k_proj": (kv_heads * head_dim, hidden),
        "self_attn.v_proj": (kv_heads * head_dim, hidden), "self_attn.o_proj": (hidden, heads * head_dim),
        "self_attn.q_norm": (head_dim,), "self_attn.k_norm": (head_dim,), "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner)}  # fmt: skip
    shapes = {f"layers.{i}.{name}": size for i in range(shape["num_hidden_layers"]) for name, size in layer.items()}
    shapes |= {"embed_tokens": (shape["vocab_size"], hidden), "norm": (hidden,)}
    draw = torch.Generator(device).manual_seed(0)
    weights = {}
    for name, size in shapes.items():
        weight = torch.randn(size, generator=draw, device=device) * 0.02 if len(size) > 1 else torch.ones(size)
        weights[f"model.{name}.weight"] = weight.to("cpu", torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | shape, indent=1), encoding="utf-8")
    return folder


def write_config(folder: Path, shape: str) -> Path:
    """A folder for `load_format="dummy"`: Qwen3 in one of SHAPES, without weights."""
    (folder / "config.json").write_text(json.dumps(CONFIG | SHAPES[shape], indent=1), encoding="utf-8")
    return folder


def _random_prompt(draw: Random, length: int) -> list[int]:
    return [draw.randint(0, 10_000) for _ in range(length)]


def mixed(count: int, seed: int = 0) -> Requests:
    """nano-vllm's bench.py: 100 to 1024 tokens in, 100 to 1024 out; with 256 requests and seed 0, 133,966 out."""
    draw = Random(seed)
    prompts = [_random_prompt(draw, draw.randint(100, 1024)) for _ in range(count)]
    return prompts, [SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=draw.randint(100, 1024)) for _ in range(count)]


def one(seed: int, num_in: int = 128, num_out: int = 256) -> Requests:
    return [_random_prompt(Random(seed), num_in)], [SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=num_out)]


def prefill(seed: int, count: int = 64, length: int = 1024) -> Requests:
    """Prompts alone: each draws a single token."""
    draw = Random(seed)
    return [_random_prompt(draw, length) for _ in range(count)], [SamplingParams(temperature=0.6, max_tokens=1)] * count


def long(seed: int, num_out: int = 1) -> Requests:
    """8 prompts of 16,384 tokens."""
    draw = Random(seed)
    params = SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=num_out)
    return [_random_prompt(draw, 16_384) for _ in range(8)], [params] * 8


def shared_prompt(seed: int, count: int = 256) -> Requests:
    """One system prompt of 512 tokens before every request's own 32 to 128; 64 to 128 tokens out."""
    draw = Random(seed)
    system = _random_prompt(draw, 512)
    prompts = [system + _random_prompt(draw, draw.randint(32, 128)) for _ in range(count)]
    return prompts, [SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=draw.randint(64, 128)) for _ in range(count)]


def steady(seed: int, count: int, mean: int) -> Requests:
    """Contexts spread evenly over 0.5 to 1.5 times the mean, in random order, that go on decoding."""
    draw = Random(seed)
    lengths = [round(mean * (0.5 + (i + 0.5) / count)) for i in range(count)]
    draw.shuffle(lengths)
    return ([_random_prompt(draw, length) for length in lengths],
            [SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=1024)] * count)

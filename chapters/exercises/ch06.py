"""Chapter 06: a model's size from its config, a norm that keeps its hands off its input, and two orders of RoPE's pairs."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import Qwen3Config

from nanovllm import LLM, SamplingParams
from nanovllm.engine.step_inputs import StepInputs
from nanovllm.layers.layernorm import RMSNorm
from nanovllm.layers.rotary_embedding import RotaryEmbedding
from nanovllm.models.qwen3 import Qwen3ForCausalLM

from .from_config import from_config_alone
from .verdict import check, require

_SHAPE = dict(vocab_size=151936, num_key_value_heads=8, head_dim=128, attention_bias=False)
# As the checkpoints' own config.json say; no weights are needed to count them.
QWEN3 = {
    "Qwen3-0.6B": Qwen3Config(**_SHAPE, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
                              tie_word_embeddings=True),
    "Qwen3-4B": Qwen3Config(**_SHAPE, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
                            tie_word_embeddings=True),
    "Qwen3-8B": Qwen3Config(**_SHAPE, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
                            tie_word_embeddings=False),
}


def parameters_by_kind(config) -> dict[str, int]:
    """How many numbers a Qwen3 of this config holds in each kind of module. Counted on the meta device: none exists."""
    model = Qwen3ForCausalLM(config, None, device="meta")
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():  # a shared table comes once
        kind = name.split(".")[-2]
        counts[kind] = counts.get(kind, 0) + parameter.numel()
    return counts


def inputs_of(llm: LLM, prompts: list[list[int]]) -> StepInputs:
    """The tensors of one prefill step over `prompts`, laid out by the engine; the requests are withdrawn at once."""
    seqs = [llm.engine.add_request(list(prompt)) for prompt in prompts]
    try:
        return llm.engine.model_runner.prepare(llm.engine.scheduler.schedule())
    finally:
        for seq in seqs:
            llm.engine.abort(seq.seq_id)


@torch.inference_mode()
def streams(llm: LLM, inputs: StepInputs) -> list[Tensor]:
    """The residual stream after the embedding and after each layer of the package's model, [num_tokens, hidden_size] each."""
    found, model = [], llm.engine.model_runner.model.model
    hooks = [model.embed_tokens.register_forward_hook(lambda module, args, out: found.append(out.clone()))]
    hooks += [layer.register_forward_hook(lambda module, args, out: found.append(out[0] + out[1])) for layer in model.layers]
    try:
        llm.engine.model_runner.forward(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def check_same_as_qwen3(qwen3: Callable[[Tensor], Tensor], llm: LLM) -> str:
    """The chapter's model beside the package's, on random tokens. Raises when their logits part."""
    runner, draw = llm.engine.model_runner, torch.Generator().manual_seed(0)
    lengths = (1, 2, 17, 90)
    for length in lengths:
        ids = torch.randint(llm.config.hf_config.vocab_size, (length,), generator=draw)
        inputs = inputs_of(llm, [ids.tolist()])
        with torch.inference_mode():
            theirs = runner.model.compute_logits(runner.forward(inputs))
            mine = qwen3(ids.to(theirs.device))
        worst = ((mine - theirs).abs().max() / theirs.abs().max()).item()
        if not worst < 1e-4:
            raise ValueError(f"{length} random tokens: the logits differ by {worst:.1e} of the largest, 1e-4 is allowed")
    return (f"random texts of {', '.join(map(str, lengths))} tokens: the same logits, "
            f"{llm.config.hf_config.vocab_size} per token")


class LeanNorm:
    """A root-mean-square norm that allocates as little as it can. weight: [size]; called as `RMSNorm` is."""

    def __init__(self, weight: Tensor, eps: float):
        self.weight, self.eps = weight, eps

    def __call__(self, x: Tensor, residual: Tensor | None = None):
        wide = x.float()
        if residual is not None:
            wide += residual
        total = wide.to(x.dtype)
        wide *= torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        normed = wide.to(x.dtype) * self.weight
        return normed if residual is None else (normed, total)


@contextmanager
def using_norm(model: nn.Module, norm_cls: Callable) -> Iterator[None]:
    """While it lasts, every RMSNorm of `model` computes with `norm_cls(weight, eps)`."""
    norms = [module for module in model.modules() if isinstance(module, RMSNorm)]
    for module in norms:
        module.forward = norm_cls(module.weight, module.eps)
    try:
        yield
    finally:
        for module in norms:
            del module.forward


def speak_with(norm_cls: Callable, prompt: list[int], dtype: str, max_tokens: int = 24) -> str:
    """What the engine says to `prompt` when all its norms are the reader's, in this dtype."""
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    with LLM(dtype=dtype, attention_backend="torch", enforce_eager=True, num_kvcache_blocks=64) as llm:
        with using_norm(llm.engine.model_runner.model, norm_cls):
            return llm.generate([prompt], params, use_tqdm=False)[0].text


@check("count the parameters")
def check_num_parameters(num_parameters):
    """num_parameters(config) -> how many numbers a Qwen3 of this config holds."""
    for name, config in QWEN3.items():
        right, got = sum(parameters_by_kind(config).values()), from_config_alone(num_parameters, config)
        hint = f"{name} has {right:,} parameters, not {got:,}."
        table, gap = config.vocab_size * config.hidden_size, got - right
        norms = config.num_hidden_layers * 2 * (config.hidden_size + config.head_dim) + config.hidden_size
        if abs(gap) == table:
            hint += (" The difference is one table of vocab_size x hidden_size: "
                     f"tie_word_embeddings is {config.tie_word_embeddings}.")
        elif 0 < -gap <= norms:
            hint += f" {-gap:,} are missing, no more than the norms hold ({norms:,}): have you all five kinds of them?"
        elif config.hidden_size // config.num_attention_heads != config.head_dim:
            hint += f" Is a head as wide as config.head_dim, {config.head_dim}? It is not hidden_size / num_attention_heads."
        require(got == right, hint)
    return ", ".join(f"{name}: {num_parameters(config):,}" for name, config in QWEN3.items())


def _show(row: Tensor) -> str:
    return "[" + ", ".join(f"{v:.2f}" for v in row.flatten()[:3].tolist()) + ", …]"


@check("a norm that keeps its hands off")
def check_norm(MyNorm):
    """MyNorm(weight, eps): called with x, or with x and a residual, in any dtype, as `RMSNorm` is."""
    draw = torch.Generator().manual_seed(0)
    cases = [(dtype, with_residual, scale) for dtype in (torch.bfloat16, torch.float16, torch.float32)
             for with_residual in (False, True) for scale in (1.0, 300.0)]
    for dtype, with_residual, scale in cases:
        name = str(dtype).removeprefix("torch.")
        case = f"{name}, values around {scale:.0f}, {'with' if with_residual else 'without'} a residual: "
        reference = RMSNorm(64, 1e-6, dtype=dtype)
        reference.weight.copy_(1 + 0.2 * torch.randn(64, generator=draw))
        x, residual = ((scale * torch.randn(3, 64, generator=draw)).to(dtype) for _ in range(2))
        kept_x, kept_residual = x.clone(), residual.clone()
        norm = MyNorm(reference.weight, 1e-6)
        out = norm(x, residual) if with_residual else norm(x)
        require(isinstance(out, tuple) == with_residual, case + "return the normed x alone, and with a residual the pair "
                                                                "(norm of the sum, the sum).")
        normed, total = out if with_residual else (out, None)
        # What holds of the whole call comes before what holds of its numbers.
        for what, now, before in (("x", x, kept_x), ("residual", residual, kept_residual)):
            require(torch.equal(now, before), case + f"the {what} you were given began with {_show(before)}, after the call "
                                                     f"with {_show(now)}. Whoever still needs {what} reads the wrong numbers.")
        require(normed.dtype == dtype, case + f"the result is {str(normed.dtype).removeprefix('torch.')}, not {name}.")
        tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
        if with_residual:
            require(torch.equal(total, kept_x + kept_residual),
                    case + f"the sum begins with {_show(kept_x + kept_residual)}, and your second value with {_show(total)}. "
                           "Does something write to it after it was made?")
        right = reference(kept_x + kept_residual if with_residual else kept_x)
        hint = case + f"row 0 is {_show(right)}, not {_show(normed)}."
        if dtype is torch.float16 and scale > 1 and not torch.allclose(normed, right, rtol=tolerance, atol=tolerance):
            hint += " 300² is 90,000, and float16 ends at 65,504: square and sum in float32."
        require(torch.allclose(normed, right, rtol=tolerance, atol=tolerance), hint)
    return f"{len(cases)} cases in bfloat16, float16 and float32: right numbers, and nothing overwritten"


def _interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE as GPT-J has it: neighbours 2i and 2i + 1 are a pair. x: [num_tokens, num_heads, head_dim]."""
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)


@check("two orders of pairs")
def check_to_halves(to_halves):
    """to_halves(weight, head_dim): the rows of an interleaved checkpoint's projection, in `RotaryEmbedding`'s order."""
    draw = torch.Generator().manual_seed(0)
    for num_heads, head_dim in ((1, 8), (3, 8), (2, 16)):
        weights = [torch.randn(num_heads * head_dim, 12, generator=draw) for _ in range(2)]
        moved = [to_halves(w.clone(), head_dim) for w in weights]
        case = f"{num_heads} heads of {head_dim}: "
        require(moved[0].shape == weights[0].shape, case + f"shape {list(moved[0].shape)} instead of {list(weights[0].shape)}.")
        came_from = [(row == weights[0]).all(-1).nonzero().flatten().tolist() for row in moved[0]]
        lost = next((r for r, found in enumerate(came_from) if len(found) != 1), None)
        require(lost is None, case + f"row {lost} of yours is no row of the checkpoint. Only the order of the rows changes: "
                                     "a row is an output channel, with all of its inputs.")
        order = [found[0] for found in came_from]
        require(len(set(order)) == len(order), case + f"some rows of the checkpoint come twice: {order}.")
        stray = next((r for r, source in enumerate(order) if r // head_dim != source // head_dim), None)
        require(stray is None, case + f"row {stray}, of head {(stray or 0) // head_dim}, came from row {order[stray or 0]}, of "
                                      f"another head. Each head has its own pairs.")
        x, rotary = torch.randn(9, 12, generator=draw), RotaryEmbedding(head_dim, 16, 100.0)
        cos, sin = rotary.cos[:9, None], rotary.sin[:9, None]
        q, k = (_interleaved((x @ w.T).unflatten(-1, (num_heads, head_dim)), cos, sin) for w in weights)
        right = torch.einsum("qhd,khd->hqk", q, k)
        q, k = rotary(torch.arange(9), *((x @ w.T).unflatten(-1, (num_heads, head_dim)) for w in moved))
        got = torch.einsum("qhd,khd->hqk", q, k)
        hint = case + f"the attention scores are not the checkpoint's; your first head's rows came from {order[:head_dim]}."
        if order[:head_dim] == [i // 2 + (i % 2) * head_dim // 2 for i in range(head_dim)]:
            hint += " That is the way back, from halves to neighbours."
        elif order == list(range(len(order))):
            hint += " Nothing moved."
        require(torch.allclose(got, right, atol=1e-3 * math.sqrt(head_dim)), hint)
    return "heads of 8 and 16, one to three of them: the attention scores of the interleaved checkpoint"

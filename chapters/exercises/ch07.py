"""Chapter 07: where a tensor goes, a loader that accounts for every one, and the way back to a checkpoint."""

import random
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Qwen3Config

import nanovllm.engine.model_loader
from nanovllm import LLM, SamplingParams
from nanovllm.config import OFFLINE_MODEL
from nanovllm.models.qwen3 import Qwen3ForCausalLM
from nanovllm.utils.context import Context
from nanovllm.utils.loader import load_weights
from visualizations.figures.name_map import name_map

from .from_config import from_config_alone
from .verdict import check, require

BLOCK_SIZE = 16
_TINY = dict(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=32, max_position_embeddings=128, tie_word_embeddings=True, attention_bias=False)
TIED = Qwen3Config(**_TINY)
UNTIED = Qwen3Config(**_TINY | {"tie_word_embeddings": False, "attention_bias": True})
WIDE = Qwen3Config(**_TINY | {"num_attention_heads": 8, "num_key_value_heads": 1, "intermediate_size": 160})


def checkpoint(config, seed: int = 0) -> dict[str, Tensor]:
    """A random checkpoint of this shape, with the names and shapes that transformers gives its tensors."""
    with torch.device("meta"):
        state = transformers.Qwen3ForCausalLM(config).state_dict()
    draw = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(tensor.shape, generator=draw) for name, tensor in state.items()}
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return tensors


def unfilled(config) -> Qwen3ForCausalLM:
    """A model none of whose numbers are set: NaN, so that what a loader forgets can be seen."""
    model = Qwen3ForCausalLM(config, None, device="cpu", dtype=torch.float32)
    for parameter in model.parameters():
        parameter.fill_(torch.nan)
    return model


@torch.inference_mode()
def compute(model: Qwen3ForCausalLM, ids: list[int]) -> dict[str, Tensor]:
    """Name -> output of the embedding, of each layer (the residual stream after it) and of the head; one text, no engine."""
    weight, attention = model.model.embed_tokens.weight, model.model.layers[0].self_attn.attn
    num_tokens, num_blocks = len(ids), -(-len(ids) // BLOCK_SIZE)

    def integers(values, dtype=torch.int32):
        return torch.tensor(values, dtype=dtype, device=weight.device)

    cache = torch.zeros(len(model.model.layers), 2, num_blocks, BLOCK_SIZE, attention.num_kv_heads, attention.head_dim,
                        dtype=weight.dtype, device=weight.device)
    context = Context(
        cu_seqlens_q=integers([0, num_tokens]), context_lens=integers([num_tokens]),
        block_tables=integers([list(range(num_blocks))]), slot_mapping=integers(range(num_tokens), torch.int64),
        max_seqlen_q=num_tokens, max_seqlen_k=num_tokens, num_decodes=int(num_tokens == 1),
        last_rows=integers([num_tokens - 1], torch.int64))
    return _watched(model.model, lambda: model.compute_logits(
        model(integers(ids, torch.int64), integers(range(num_tokens), torch.int64), cache, context)))


@torch.inference_mode()
def compute_reference(model, ids: list[int]) -> dict[str, Tensor]:
    """The same of a transformers model."""
    found = _watched(model.model, lambda: model(torch.tensor([ids], device=model.device)).logits)
    return {name: tensor[0] for name, tensor in found.items()}


def _watched(model: nn.Module, logits_of: Callable[[], Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(name):
        def hook(module, args, out):
            found[name] = out[0] + out[1] if isinstance(out, tuple) and len(out) == 2 else (
                out[0] if isinstance(out, tuple) else out).clone()
        return hook

    parts = {"embed_tokens": model.embed_tokens} | {f"layers.{i}": layer for i, layer in enumerate(model.layers)}
    hooks = [module.register_forward_hook(keep(name)) for name, module in parts.items()]
    try:
        found["logits"] = logits_of()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Name -> largest difference, as a share of the largest number that the reference has there."""
    return {name: ((ours[name].float() - t.float()).abs().max() / t.float().abs().max()).item() for name, t in theirs.items()}


def speak(model: Qwen3ForCausalLM, tokenizer, text: str, num_tokens: int = 12) -> str:
    """The likeliest continuation of `text`, the naive way."""
    ids = tokenizer.encode(text)
    start = len(ids)
    for _ in range(num_tokens):
        ids.append(compute(model, ids)["logits"][-1].argmax().item())
    return tokenizer.decode(ids[start:])


def complaint(model: nn.Module, tensors: dict[str, Tensor], load: Callable = load_weights) -> str:
    """What `load_weights` says of these tensors, saved as a file; the file's folder is called "checkpoint" here."""
    with tempfile.TemporaryDirectory() as folder:
        save_file({name: t.contiguous() for name, t in tensors.items()}, Path(folder) / "model.safetensors")
        try:
            load(model, folder)
        except ValueError as error:
            return str(error).replace(folder, "checkpoint")
    return "loaded without a word"


def check_same_as_load_weights(load: Callable) -> str:
    """The chapter's load(model, tensors) beside the package's, on whole checkpoints. Raises when a parameter differs."""
    filled = 0
    for config in (TIED, UNTIED, WIDE):
        mine, theirs, tensors = unfilled(config), unfilled(config), checkpoint(config)
        load(mine, tensors)
        if (said := complaint(theirs, tensors)) != "loaded without a word":
            raise ValueError(said)
        for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            if not torch.equal(a, b):
                raise ValueError(f"{name} differs")
            filled += 1
    return f"three checkpoints, {filled} parameters: the same numbers in all of them"


@check("where a tensor goes")
def check_place_of(place_of):
    """place_of(name, config) -> (parameter, first row, one past the last row) in the engine's model."""
    tried = 0
    for label, config in (("4 heads, 2 KV heads", TIED), ("8 heads, 1 KV head", WIDE), ("with biases", UNTIED)):
        model = Qwen3ForCausalLM(config, None, device="meta")
        shapes = [(name, tuple(t.shape)) for name, t in checkpoint(config).items()]
        for place in name_map(model, shapes):
            right, got = (place.parameter, place.start, place.stop), tuple(from_config_alone(place_of, place.name, config))
            tried += 1
            hint = (f"{label} of {config.head_dim}, hidden_size {config.hidden_size}, intermediate_size "
                    f"{config.intermediate_size}: {place.name} {list(place.shape)} goes to {right}, not {got}.")
            if got[0] != right[0]:
                hint += " Look at Qwen3ForCausalLM.packed_modules."
            elif got[2] - got[1] != place.shape[0]:
                hint += f" It has {place.shape[0]} rows and you gave it {got[2] - got[1]}."
            else:
                hint += " What lies before it in the packed weight, and how many rows has that?"
            require(got == right, hint)
    return f"{tried} tensors of three checkpoints"


def _outcome(load, config, tensors: Iterable[tuple[str, Tensor]]) -> tuple[Qwen3ForCausalLM, str | None]:
    """The model after the reader's load, and its complaint, if it made one."""
    model = unfilled(config)
    try:
        load(model, tensors)
    except ValueError as error:
        return model, str(error)
    return model, None


def _require_named(said: str | None, name: str, trouble: str) -> None:
    require(said is not None, f"{trouble}, and your loader said nothing.")
    require(name in said, f"{trouble}: the error must name the tensor; it says {said!r}.")


@check("a loader that accounts for every tensor")
def check_load(load_strictly):
    """load_strictly(model, tensors): fill the model from (name, tensor) pairs; ValueError, by name, for whatever is wrong."""
    for config in (TIED, UNTIED, WIDE):
        pairs = list(checkpoint(config).items())
        random.Random(0).shuffle(pairs)
        model, said = _outcome(load_strictly, config, iter(pairs))
        require(said is None, f"a checkpoint with nothing wrong was refused: {said!r}.")
        reference = unfilled(config)
        complaint(reference, dict(pairs))
        for (name, mine), right in zip(model.named_parameters(), reference.parameters(), strict=True):
            require(not mine.isnan().any(), f"{name}: {int(mine.isnan().sum())} of {mine.numel()} numbers were never set.")
            require(torch.equal(mine, right), f"{name} holds other numbers than it should. Are the parts in the right rows?")
    attention, mlp = "model.layers.1.self_attn.", "model.layers.0.mlp."
    for config, name in ((TIED, "model.norm.weight"), (TIED, attention + "k_proj.weight"), (UNTIED, attention + "v_proj.bias"),
                         (TIED, mlp + "up_proj.weight"), (TIED, "model.embed_tokens.weight"), (UNTIED, "lm_head.weight")):
        tensors = checkpoint(config)
        del tensors[name]
        _, said = _outcome(load_strictly, config, tensors.items())
        _require_named(said, name, f"{name} is missing from the checkpoint")
    for name, shape in (("model.layers.2.input_layernorm.weight", (64,)), (attention + "q_proj.scales", (128,)),
                        ("visual.merger.weight", (4, 4)), (attention + "rotary.cos", (3,)), ("lm_head.bias", (96,))):
        _, said = _outcome(load_strictly, TIED, (checkpoint(TIED) | {name: torch.zeros(shape)}).items())
        _require_named(said, name, f"the checkpoint holds {name}, for which the model has no place")
    for name, shape in (("model.norm.weight", (1,)), (attention + "k_proj.weight", (32, 64)),
                        (attention + "q_norm.weight", (2, 32)), (mlp + "down_proj.weight", (96, 64)),
                        ("model.embed_tokens.weight", (97, 64))):
        right = list(checkpoint(TIED)[name].shape)
        _, said = _outcome(load_strictly, TIED, (checkpoint(TIED) | {name: torch.zeros(shape)}).items())
        _require_named(said, name, f"{name} comes with shape {list(shape)} instead of {right}")
    pairs = [*checkpoint(TIED).items(), ("model.norm.weight", torch.zeros(64))]
    _, said = _outcome(load_strictly, TIED, pairs)
    _require_named(said, "model.norm.weight", "model.norm.weight comes twice, with different numbers")
    broken = checkpoint(TIED) | {mlp + "down_proj.weight": torch.zeros(96, 64), "visual.merger.weight": torch.zeros(4, 4)}
    del broken["model.norm.weight"]
    _, said = _outcome(load_strictly, TIED, broken.items())
    for name in (mlp + "down_proj.weight", "visual.merger.weight", "model.norm.weight"):
        require(name in (said or ""), "one tensor has another shape, one is not the model's, and one is missing; who repairs "
                                      f"this checkpoint wants all three named at once, and {name} is not: {said!r}.")
    tensors = checkpoint(TIED)
    twice = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    _, said = _outcome(load_strictly, TIED, twice.items())
    require(said is None, "the embeddings are tied, and this writer saved the shared table a second time, as lm_head.weight. "
                          f"Many do, and it is harmless; your loader says {said!r}.")
    return "3 whole checkpoints; 6 with a tensor missing, 5 with one too many, 5 misshapen, 1 doubled, all refused by name"


@check("the way back")
def check_unpack(unpack):
    """unpack(model) -> {checkpoint name: tensor}, the inverse of loading."""
    for label, config in (("tied", TIED), ("untied, with biases", UNTIED), ("8 heads, 1 KV head", WIDE)):
        tensors = checkpoint(config)
        model = unfilled(config)
        complaint(model, tensors)
        got = unpack(model)
        missing, extra = sorted(tensors.keys() - got.keys()), sorted(got.keys() - tensors.keys())
        hint = f"{label}: "
        require(not extra, hint + f"{extra[:1]} is no name of a checkpoint of this kind." + (
            " The table is shared; one name for it is enough." if "lm_head.weight" in extra else ""))
        require(not missing, hint + f"{len(missing)} tensors are missing, the first is {missing[:1]}.")
        for name, right in tensors.items():
            require(got[name].shape == right.shape, hint + f"{name} has shape {list(got[name].shape)} instead of "
                                                           f"{list(right.shape)}.")
            require(torch.equal(got[name], right), hint + f"{name} has the right shape and other numbers.")
        with tempfile.TemporaryDirectory() as folder:
            save_file(got, Path(folder) / "model.safetensors", metadata={"format": "pt"})
            config.save_pretrained(folder)
            transformers.logging.disable_progress_bar()
            loaded = transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        require(all(torch.equal(loaded[name], right) for name, right in tensors.items()),
                hint + "transformers reads other numbers from the file than went into it.")
    return "three models unpacked, saved and read again by transformers: every number as it was"


def serve_with(load: Callable, prompt: list[int]) -> str:
    """Start the engine with the reader's load(model, tensors) in place of its loader; the text must be the same."""
    def from_folder(model, folder):
        with safe_open(Path(folder) / "model.safetensors", "pt") as file, torch.no_grad():
            load(model, ((name, file.get_tensor(name)) for name in file.keys()))

    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    settings = dict(model=OFFLINE_MODEL, dtype="float32", attention_backend="torch", enforce_eager=True, num_kvcache_blocks=32)
    with LLM(**settings) as llm:
        right = llm.generate([prompt], params, use_tqdm=False)[0].text
    loader = nanovllm.engine.model_loader
    ours, loader.load_weights = loader.load_weights, from_folder
    try:
        with LLM(**settings) as llm:
            text = llm.generate([prompt], params, use_tqdm=False)[0].text
    finally:
        loader.load_weights = ours
    if text != right:
        raise RuntimeError(f"with your loader the engine says {text!r} instead of {right!r}")
    return f"the engine with your loader: {text!r}"

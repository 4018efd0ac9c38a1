"""From the architecture that a config.json names to the class that runs it."""

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING

from nanovllm.errors import CheckpointError
from nanovllm.utils.checks import check

if TYPE_CHECKING:
    from nanovllm.models.qwen3 import Qwen3ForCausalLM

# The name in a config.json, which is the class's here, too -> its file. Imported when a checkpoint asks for it.
ARCHITECTURES = {"Qwen3ForCausalLM": "qwen3", "Qwen3MoeForCausalLM": "qwen3_moe", "Qwen2ForCausalLM": "qwen2",
                 "LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral"}


def model_class(architectures: Iterable[str]) -> type["Qwen3ForCausalLM"]:
    """The class of the first architecture that is implemented.

    Raises CheckpointError, naming those that are, when none is.
    """
    architectures = list(architectures)
    known = [name for name in architectures if isinstance(name, str) and name in ARCHITECTURES]
    check(bool(known), "architectures", architectures, f"one of {', '.join(ARCHITECTURES)}",
          "use a checkpoint of one of these families", error=CheckpointError)
    family = import_module(f"nanovllm.models.{ARCHITECTURES[known[0]]}")
    found: type[Qwen3ForCausalLM] = getattr(family, known[0])
    return found

"""Mistral: Llama without biases, and with a window that all layers have or none."""

from typing import Any, ClassVar

from nanovllm.models.llama import LlamaForCausalLM


class MistralForCausalLM(LlamaForCausalLM):
    """sliding_window: null means that attention is full; a config that leaves it out means 4096."""

    config_defaults: ClassVar[dict[str, Any]] = LlamaForCausalLM.config_defaults | {"sliding_window": 4096}

    @classmethod
    def sliding_window(cls, config: Any) -> int | None:
        window: int | None = config.sliding_window
        return window

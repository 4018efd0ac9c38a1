"""From a configuration to a model with its weights, in the fastest form that the device can run."""

from typing import Any, NamedTuple

from nanovllm.config import Config
from nanovllm.engine.cuda_graphs import RowKernels
from nanovllm.layers import row_state
from nanovllm.layers.attention import AttentionBackend
from nanovllm.layers.attention_backends import import_error
from nanovllm.layers.sampler import Sampler
from nanovllm.layers.tensor_parallel import TensorParallel
from nanovllm.layers.token_bitmask import ApplyBitmask, apply_bitmask
from nanovllm.models.causal_lm import CausalLM
from nanovllm.models.qwen3 import Qwen3ForCausalLM
from nanovllm.models.registry import model_class
from nanovllm.utils.loader import load_weights, random_weights


class LoadedModel(NamedTuple):
    """A model, and the functions that run beside it on the same device.

    row_kernels: what moves decode rows. apply_bitmask: what masks scores. num_kv_heads: of this rank's share.
    """

    model: CausalLM
    sampler: Sampler
    row_kernels: RowKernels
    apply_bitmask: ApplyBitmask
    num_kv_heads: int


def load_model(config: Config, backend: AttentionBackend, tp: TensorParallel) -> LoadedModel:
    """Make the model that the checkpoint's config.json names, and load its weights: of a split model, one rank's share.

    With our kernels, or plain for the `torch` backend. Raises CheckpointError for what cannot be read.
    """
    hf = config.hf_config
    model = model_class(hf.architectures)(hf, backend, tp, device=config.device, dtype=config.dtype)
    if config.load_format == "dummy":
        random_weights(model)
    else:
        load_weights(model, config.model)
    first_layer: Any = model.model.layers[0]
    num_kv_heads = first_layer.self_attn.attn.num_kv_heads
    return LoadedModel(*_fastest_form(model.eval(), backend, config.kvcache_block_size), num_kv_heads)


def _fastest_form(model: Qwen3ForCausalLM, backend: AttentionBackend, block_size: int
                  ) -> tuple[CausalLM, Sampler, RowKernels, ApplyBitmask]:
    if backend.name == "cpu":
        from nanovllm.kernels.cpu.draw import draw as draw_on_cpu
        from nanovllm.models import fused_cpu

        fused = fused_cpu.FusedCPUModel(model, block_size, takes_over=True) if fused_cpu.fits(model) else model
        return fused, Sampler(draw_on_cpu), row_state, apply_bitmask
    if backend.name == "torch" or import_error("triton"):
        return model, Sampler(), row_state, apply_bitmask
    from nanovllm.kernels import row_state as row_kernels
    from nanovllm.kernels.filtered_draw import filtered_draw
    from nanovllm.kernels.sample import draw
    from nanovllm.kernels.token_bitmask import apply_bitmask as apply_bitmask_fast
    from nanovllm.models.fused import FusedModel

    return FusedModel(model), Sampler(draw, filtered_draw), row_kernels, apply_bitmask_fast

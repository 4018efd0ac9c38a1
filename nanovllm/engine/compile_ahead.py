"""All kernels of an engine compiled together when it starts, and not one after another as each is first needed."""

import logging
from copy import copy
from typing import Any

import torch

from nanovllm.config import Config
from nanovllm.engine.cache_size import largest_step
from nanovllm.engine.cuda_graphs import batch_sizes
from nanovllm.layers.sampling_memory import worst_batch
from nanovllm.utils.row_state import RECORD

logger = logging.getLogger("nanovllm")
# The kernels of a decode step differ by batch size: few rows, many, and powers of two between (see `kernels/paged_decode.py`).
DECODE_SIZES = (1, 2, 4, 8, 40, 256)


@torch.inference_mode()
def compile_ahead(runner: Any, config: Config) -> None:
    """Compile what the steps of a start launch: the one that measures memory, and those that are captured as graphs.

    runner: a ModelRunner that has its model and no cache yet; it stays as it is. What is left out here, or fails, is compiled
    when it is first launched: the start takes longer, and is no other.
    """
    if not hasattr(runner.model, "of_few_layers"):  # the plain form launches no kernel of ours
        return
    try:
        from nanovllm.kernels.compile_together import compile_together

        compile_together(lambda: _steps_of_a_start(runner, config))
    except Exception as error:
        logger.warning("kernels are compiled one by one, as they could not be compiled together: %r", error)


def _steps_of_a_start(runner: Any, config: Config) -> None:
    """On few layers and a cache of one block: the same kernels in a fraction of the launches."""
    small = copy(runner)
    small.model, small.kv_cache = runner.model.of_few_layers(), runner.cache_shape.allocate(1, runner.device)
    _, logits = largest_step(small.model, runner.cache_shape, config)
    runner.sampler(logits, worst_batch(len(logits), config.max_model_len, runner.vocab_size, runner.device))
    if config.enforce_eager:
        return
    decodes = small.decode_graphs(config, capture=False)
    records, entries = (torch.zeros(1, n, dtype=torch.int64, device=runner.device) for n in (len(RECORD), 2))
    runner.row_kernels.write_rows(decodes.state, records, entries, decodes.state.drawn)
    largest = len(decodes.state.drawn)
    for size in sorted({*DECODE_SIZES} & {*batch_sizes(largest)} | {largest}):
        decodes.warm_up(size)
    if runner.backend.name == "triton":
        mixed = small.mixed_step_graphs(config, capture=False)
        for size in mixed.sizes:
            mixed.replay(size)

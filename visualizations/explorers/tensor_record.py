"""The exact tensors of a step as plain data, with whom each entry belongs to. Imports no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.utils.checks import check

TENSORS = ("input_ids", "positions", "slot_mapping", "cu_seqlens_q", "context_lens", "block_tables", "last_rows")


def x_ray(batch: ScheduledBatch, inputs: Any, block_size: int) -> dict[str, Any]:
    """What `ModelRunner.prepare` made of `batch`, for `TensorXRay`. Taken at once: a batch changes when its step ends.

    inputs: a `StepInputs` or a `step_inputs.Layout`, or anything with the seven tensors by these names (those of attention
    may be in its `context`): input_ids, positions, slot_mapping [num_tokens]; cu_seqlens_q [num_seqs + 1]; context_lens
    [num_seqs]; block_tables [num_seqs, longest]; last_rows [num_sampled]. They are shown as they are, right or wrong.
    Raises ValueError when a length cannot belong to the batch.
    """
    context = getattr(inputs, "context", inputs)
    tensors = {name: getattr(inputs if name in ("input_ids", "positions") else context, name) for name in TENSORS}
    step: dict[str, Any] = {"block_size": block_size, "tensors": {name: tensor.tolist() for name, tensor in tensors.items()},
            "dtypes": {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()},
            "sequences": [{"seq_id": i.seq.seq_id, "start": i.start, "num_tokens": i.num_tokens, "samples": i.samples,
                           "num_prompt_tokens": i.seq.num_prompt_tokens, "num_cached_tokens": i.seq.num_cached_tokens,
                           "pending": bool(i.samples and i.seq.num_pending_tokens), "reason": i.reason} for i in batch.items]}
    expected = {"input_ids": batch.num_tokens, "positions": batch.num_tokens, "slot_mapping": batch.num_tokens,
                "cu_seqlens_q": len(batch.items) + 1, "context_lens": len(batch.items), "block_tables": len(batch.items),
                "last_rows": sum(item.samples for item in batch.items)}
    for name, length in expected.items():
        check(len(step["tensors"][name]) == length, f"length of {name}", len(step["tensors"][name]), f"{length} for this batch",
              "prepare it from the same batch")
    return step


@contextmanager
def watch_tensors(llm: Any) -> Iterator[list[dict[str, Any]]]:
    """Every step that `llm` launches inside the block, x-rayed: `with watch_tensors(llm) as steps: llm.generate(...)`.

    Each step's tensors are prepared once more for it, also where a CUDA graph has buffers of its own.
    """
    runner = getattr(llm, "engine", llm).model_runner
    steps: list[dict[str, Any]] = []
    launch = runner.launch

    def watched(batch: ScheduledBatch) -> Any:
        steps.append(x_ray(batch, runner.prepare(batch), runner.block_size))
        return launch(batch)

    runner.launch = watched
    try:
        yield steps
    finally:
        del runner.launch  # the class's own again

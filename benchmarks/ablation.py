"""The engine with its parts taken away: from plain PyTorch to all of it, one part after another."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

from nanovllm import LLM
from nanovllm.engine.cuda_graphs import DecodeGraphs
from nanovllm.engine.model_runner import ModelRunner
from nanovllm.layers.attention import AttentionBackend
from nanovllm.layers.attention_backends import TorchBackend
from nanovllm.layers.batched_attention import BatchedTorchBackend
from nanovllm.layers.sampler import Sampler


def forms(llm: LLM) -> Iterator[tuple[str, int, Callable[[], None]]]:
    """Yields each form's name, for how many steps it is fast enough, and what makes the engine take it.

    Before each, and whatever happens at the end, the engine is as it was.
    """
    engine, runner = llm.engine, cast(ModelRunner, llm.engine.model_runner)
    model: Any = runner.model
    sampler, graphs, looks_ahead = runner.sampler, runner.graphs, engine._looks_ahead
    attentions = [layer.self_attn.attn for layer in model.model.model.layers]
    backend = attentions[0].backend

    def take(form: Any, draw: Any, attention: AttentionBackend, its_graphs: DecodeGraphs | None, ahead: bool) -> None:
        runner.reset()
        runner.model, runner.sampler, runner.graphs, engine._looks_ahead = form, draw, its_graphs, ahead
        for layer in attentions:
            layer.backend = attention

    for name, steps, parts in (
        ("plain PyTorch", 2, (model.model, Sampler(), TorchBackend(), None, False)),
        ("plain PyTorch, attention in groups", 30, (model.model, Sampler(), BatchedTorchBackend(), None, False)),
        ("+ paged attention in Triton", 30, (model.model, Sampler(), backend, None, False)),
        ("+ fused kernels and one-pass sampling", 30, (model, sampler, backend, None, False)),
        ("+ CUDA graphs", 60, (model, sampler, backend, graphs, False)),
        ("+ the next step scheduled while this one runs", 60, (model, sampler, backend, graphs, True)),
    ):  # fmt: skip
        try:
            yield name, steps, partial(take, *parts)
        finally:
            take(model, sampler, backend, graphs, looks_ahead)

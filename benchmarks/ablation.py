"""The engine with its parts taken away: from plain PyTorch to all of it, one part after another."""

from collections.abc import Iterator

from nanovllm import LLM
from nanovllm.layers.attention_backends import TorchBackend
from nanovllm.layers.sampler import Sampler


def forms(llm: LLM) -> Iterator[tuple[str, int]]:
    """Change the engine from form to form; yields each one's name and how many steps it is fast enough for.

    Whatever happens, the engine ends up as it was.
    """
    engine, runner = llm.engine, llm.engine.model_runner
    model, sampler, graphs, looks_ahead = runner.model, runner.sampler, runner.graphs, engine._looks_ahead
    attentions = [layer.self_attn.attn for layer in model.model.model.layers]
    backend = attentions[0].backend

    def take(form, draw, attention, its_graphs, ahead):
        runner.reset()
        runner.model, runner.sampler, runner.graphs, engine._looks_ahead = form, draw, its_graphs, ahead
        for layer in attentions:
            layer.backend = attention

    try:
        take(model.model, Sampler(), TorchBackend(), None, False)
        yield "plain PyTorch", 3
        take(model.model, Sampler(), backend, None, False)
        yield "+ paged attention in Triton", 30
        take(model, sampler, backend, None, False)
        yield "+ fused kernels and one-pass sampling", 30
        take(model, sampler, backend, graphs, False)
        yield "+ CUDA graphs", 60
        take(model, sampler, backend, graphs, True)
        yield "+ the next step scheduled while this one runs", 60
    finally:
        take(model, sampler, backend, graphs, looks_ahead)

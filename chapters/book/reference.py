"""The book's reference: every public class and function with its docstring, and the commands with their help."""

import contextlib
import inspect
import io
import os
from importlib import import_module
from pathlib import Path
from unittest import mock

from traitlets import HasTraits

import nanovllm
import visualizations

# A page each: title, what it is, and what stands on it, in the order in which a reader would ask for it.
PAGES = {
    "api": ("nanovllm", "What `from nanovllm import ...` gives you.", [f"nanovllm.{name}" for name in nanovllm.__all__]),
    "engine": ("The engine", "The parts that chapters 01 to 12 build.", [
        "nanovllm.config.Config", "nanovllm.engine.sequence.Sequence", "nanovllm.engine.sequence.SequenceStatus",
        "nanovllm.engine.sequence_drafts.SequenceDrafts",
        "nanovllm.engine.block_manager.BlockManager", "nanovllm.engine.scheduler.Scheduler",
        "nanovllm.engine.sequence_queues.SequenceQueues",
        "nanovllm.engine.scheduled_batch.ScheduledBatch", "nanovllm.engine.scheduled_batch.ScheduledSequence",
        "nanovllm.engine.llm_engine.LLMEngine", "nanovllm.engine.listener.Listener", "nanovllm.engine.listener.Step",
        "nanovllm.engine.runner.Runner", "nanovllm.engine.model_runner.ModelRunner",
        "nanovllm.engine.cuda_graphs.DecodeGraphs"]),
    "layers": ("Layers and models", "The network, in plain PyTorch.", [
        "nanovllm.models.qwen3.Qwen3ForCausalLM", "nanovllm.layers.attention.AttentionBackend",
        "nanovllm.layers.attention.Attention", "nanovllm.layers.sampler.Sampler", "nanovllm.layers.sampler.SamplingBatch",
        "nanovllm.layers.logits_processors.LogitsProcessors", "nanovllm.layers.linear.QKVParallelLinear",
        "nanovllm.layers.linear.ColumnParallelLinear", "nanovllm.layers.linear.RowParallelLinear",
        "nanovllm.layers.layernorm.RMSNorm", "nanovllm.layers.rotary_embedding.RotaryEmbedding",
        "nanovllm.layers.tensor_parallel.TensorParallel", "nanovllm.utils.context.Context"]),
    "tracing": ("Tracing", "What watches an engine.", [
        "nanovllm.tracing.trace.Trace", "nanovllm.tracing.step_record.StepRecord", "nanovllm.tracing.recorder.Recorder",
        "nanovllm.fleet.simulation.Simulation"]),
    "fleet": ("A fleet", "Many engines: what routes, serves, batches and simulates them.", [
        "nanovllm.fleet.router.Router", "nanovllm.fleet.router.Choice", "nanovllm.fleet.simulated_fleet.SimulatedFleet",
        "nanovllm.fleet.fleet_config.FleetConfig", "nanovllm.fleet.fleet_report.FleetReport",
        "nanovllm.fleet.cost_model.CostModel", "nanovllm.fleet.arrivals.Traffic", "nanovllm.fleet.arrivals.TraceFile",
        "nanovllm.fleet.batch_run.run_batch"]),
    "pictures": ("visualizations", "Figures and explorers, as chapters use them.",
                 [f"visualizations.{name}" for name in visualizations.__all__]),
}
COMMANDS = (("demo",), ("serve",), ("batch",), ("simulate",))  # of python -m nanovllm
BENCHMARKS = (("serve",),)  # of python -m benchmarks, those that a user of the engine wants, too
INDEX = """\
# Reference

Made from the docstrings of the source, and the commands' own help.

```{{toctree}}
:maxdepth: 1

{pages}
commands
```
"""


def write_pages(folder: Path) -> None:
    """Lay out the reference for Sphinx, as `folder`/*.md."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, (title, what, names) in PAGES.items():
        entries = "\n".join(_entry(name) for name in names)
        (folder / f"{stem}.md").write_text(f"# {title}\n\n{what}\n\n```{{eval-rst}}\n{entries}```\n", encoding="utf-8")
    helps = "\n".join(f"## python -m {program} {' '.join(command)}\n\n```text\n{help_of(*command, program=program)}```\n"
                      for program, commands in (("nanovllm", COMMANDS), ("benchmarks", BENCHMARKS)) for command in commands)
    (folder / "commands.md").write_text(f"# Commands\n\n{helps}", encoding="utf-8")
    (folder / "index.md").write_text(INDEX.format(pages="\n".join(PAGES)), encoding="utf-8")


def resolved(name: str) -> object:
    """What a dotted name in PAGES stands for. Raises AttributeError for one that is gone."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def modules() -> set[str]:
    """The modules whose source has a page: those of what the reference documents."""
    return {getattr(resolved(name), "__module__", "") for _, _, names in PAGES.values() for name in names}


def help_of(*command: str, program: str = "nanovllm") -> str:
    """What `python -m PROGRAM COMMAND --help` prints on a terminal of 100 columns."""
    main = import_module(f"{program}.__main__").main
    out = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS="100"), contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return out.getvalue()


def _entry(name: str) -> str:
    thing = resolved(name)
    if isinstance(thing, type):
        return f".. autoclass:: {name}{_widget_signature(thing)}\n   :members:\n\n"
    return f".. autofunction:: {name}\n\n"


def _widget_signature(cls: type) -> str:
    """A widget's own signature; Sphinx would show that of traitlets, which takes anything. Empty for other classes."""
    if not issubclass(cls, HasTraits):
        return ""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return str(inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters]))

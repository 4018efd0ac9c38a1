"""The house: which folder may import which, and that no two files import each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for package in ("nanovllm", "visualizations") for path in (ROOT / package).rglob("*.py"))

# From the ground up. A module may import from its own folder and from those below it.
FLOORS = [
    {"nanovllm.errors", "nanovllm.outputs"},
    {"nanovllm.utils"},
    {"nanovllm.speculative_config"},
    {"nanovllm.structured_outputs"},
    {"nanovllm.sampling_params"},
    {"nanovllm.kernels"},
    {"nanovllm.layers"},
    {"nanovllm.models"},
    {"nanovllm.config"},  # a family of models knows what its config.json means
    {"nanovllm.engine"},
    {"nanovllm.tracing", "nanovllm.parallel", "nanovllm.serving"},
    {"nanovllm.engine_parts"},
    {"nanovllm.llm"},
    {"nanovllm.async_llm"},
    {"nanovllm.server"},
    {"nanovllm.fleet"},
    {"visualizations.folding"},
    {"nanovllm.__main__", "visualizations.both_modes", "visualizations.listing"},
    {"visualizations.theme"},
    {"visualizations.figures"},
    {"visualizations.explorers"},
    {"visualizations.report"},
    {"visualizations.__main__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
WITHOUT_TORCH = ("nanovllm.engine.sequence", "nanovllm.engine.salted_sequence", "nanovllm.engine.block_manager",
                 "nanovllm.engine.scheduler",
                 "nanovllm.engine.sequence_queues", "nanovllm.engine.sequence_drafts", "nanovllm.engine.step_in_flight",
                 "nanovllm.engine.scheduled_batch", "nanovllm.engine.listener", "nanovllm.engine.decode_rows",
                 "nanovllm.engine.draft_rows", "nanovllm.engine.draft_records", "nanovllm.engine.drafts_control",
                 "nanovllm.engine.drafts_ngram", "nanovllm.engine.token_bitmasks",
                 "nanovllm.tracing.trace", "nanovllm.fleet.simulation",
                 "nanovllm.fleet.router", "nanovllm.fleet.simulated_fleet")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}
SAY_SO = {module for module, path in MODULES.items()
          if "Imports no torch." in (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")}


def room_of(module: str) -> str:
    """The folder below the package, or the file that stands in none."""
    return ".".join(module.split(".")[:2])


def imported(path: Path, at_import: bool = False) -> list[tuple[int, str]]:
    """(line, module of ours) of every import in a file; at_import: only of those that run when it is imported."""
    found, tree = [], ast.parse(path.read_text(encoding="utf-8"))
    lazy = {child for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ast.walk(node)}
    for node in ast.walk(tree):
        if at_import and node in lazy:
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.append((node.lineno, whole if whole in MODULES else node.module))
    return [(line, name) for line, name in found if name.split(".")[0] in ("nanovllm", "visualizations", "chapters", "tests",
                                                                           "training", "benchmarks")]


def test_every_room_has_a_floor():
    rooms = {room_of(module) for module in MODULES if "." in module}
    assert rooms == set(FLOOR_OF), "a room came or went: say in FLOORS on which floor it stands"


@pytest.mark.parametrize("module", [m for m in MODULES if "." in m])
def test_no_arrow_runs_up(module):
    own = FLOOR_OF[room_of(module)]
    for line, name in imported(MODULES[module]):
        if name == "nanovllm":  # the exported names, of the two faces
            assert own > FLOOR_OF["nanovllm.async_llm"], f"{module}:{line} imports the public face"
            continue
        room = room_of(name)
        assert room in FLOOR_OF, f"{module}:{line} imports {name}, which stands outside the house"
        assert room == room_of(module) or FLOOR_OF[room] < own, f"{module}:{line} imports {name}, from above or beside"


def test_no_two_files_import_each_other():
    arrows = {module: {name for _, name in imported(path) if name in MODULES and name != module}
              for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, "a circle: " + " -> ".join((*way[way.index(module):], module))
        if module not in done:
            for name in sorted(arrows[module]):
                visit(name, (*way, module))
            done.add(module)

    for module in arrows:
        visit(module, ())


def test_scheduling_tracing_and_simulation_import_no_torch():
    """And every other file that says so of itself."""
    code = ("import importlib, sys\nfor module in sys.argv[1:]:\n    importlib.import_module(module)\n"
            "    if 'torch' in sys.modules:\n        sys.exit(f'{module} imports torch')\n")
    modules = sorted({*WITHOUT_TORCH, *SAY_SO})
    ran = subprocess.run([sys.executable, "-c", code, *modules], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert len(modules) > 30 and ran.returncode == 0, ran.stderr


def test_the_reader_of_imports_sees_what_it_must(tmp_path):
    """The checks above would be worth nothing if they could not fail."""
    file = tmp_path / "a.py"
    code = "import nanovllm.llm\nfrom nanovllm import errors\n\n\ndef f():\n    from nanovllm.fleet import simulation\n"
    file.write_text(code, encoding="utf-8")
    names = [name for _, name in imported(file)]
    assert names[0] == "nanovllm.llm" and names[-1] == "nanovllm.fleet.simulation"
    assert [name for _, name in imported(file, at_import=True)] == names[:-1]

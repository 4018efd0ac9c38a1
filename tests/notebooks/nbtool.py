"""Keeps the committed outputs of notebooks true.

    python -m tests.notebooks.nbtool check     NOTEBOOK...   run, compare with what is committed, fail on a difference
    python -m tests.notebooks.nbtool update    NOTEBOOK...   run, write back; what did not change keeps its bytes
    python -m tests.notebooks.nbtool normalize NOTEBOOK...   canonical form only, nothing is run
    python -m tests.notebooks.nbtool run --to FOLDER NOTEBOOK...   run, as on another machine, and write to FOLDER a
                                                             copy with what came of every cell; nothing is compared

Tags on a cell: `volatile` (its outputs are timings or facts of the machine: run, not compared), `raises-exception`
(must fail, and does so in front of the reader), `skip-execution` (not run).
"""

import argparse
import copy
import json
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from traitlets.config import Config

from tests.notebooks.canonical import ANSI, WIDGET_VIEW, canonical, dumps, tags
from tests.notebooks.compare import RTOL, describe_difference, same_outputs
from visualizations.explorers.base import SAVED

CELL_SECONDS = 300  # a guard against hanging: on a busy machine Ray alone may take two minutes to start
DRIVE = (Path(__file__).parent / "drive.py").read_text(encoding="utf-8") + "\n\nmain()"
UNWANTED = ("MPLBACKEND", "COVERAGE_PROCESS_CONFIG")  # a kernel measured for what the suite covers would be slow
KERNEL_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # a set printed twice is printed alike
    "OMP_NUM_THREADS": "1",  # sums in one order; two notebooks at once do not fight for the cores
    "TQDM_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "COLUMNS": "100",
}


@dataclass
class Verdict:
    """What came of one notebook. `text` is what the file should hold, None when the run did not get to its end."""

    path: Path
    problems: list[str] = field(default_factory=list)
    text: str | None = None
    seconds: float = 0.0


def execute(notebook, folder: Path, cell_seconds: int = CELL_SECONDS):
    """Run every cell in a kernel of its own, in `folder`; returns a copy of the notebook with its new outputs.

    Raises CellExecutionError at the first cell that fails untagged, ValueError when a cell that must fail does not, and when
    an explorer on the page does not answer any more after the last cell.
    """
    notebook = copy.deepcopy(notebook)
    notebook.cells.append(nbformat.v4.new_code_cell(DRIVE))
    for cell in notebook.cells:
        if cell.cell_type == "code" and "skip-execution" not in tags(cell):
            cell.outputs, cell.execution_count = [], None

    environment = {name: value for name, value in os.environ.items() if name not in UNWANTED}
    environment.update(KERNEL_ENVIRONMENT)
    for last_try in (False, True):
        # Sockets in a folder of their own instead of TCP ports: several kernels start at once and cannot collide.
        sockets = tempfile.mkdtemp(prefix="nb-")
        config = Config()
        if os.name == "posix":
            config.KernelManager.transport = "ipc"
            config.KernelManager.ip = f"{sockets}/kernel"
        client = NotebookClient(
            notebook,
            config=config,  # through the config: nbclient only shuts down a kernel manager it made itself
            kernel_name="python3",
            timeout=cell_seconds,
            store_widget_state=False,
            record_timing=False,
            resources={"metadata": {"path": str(folder)}},
        )
        try:
            client.execute(env=environment)
            break
        except (CellExecutionError, CellTimeoutError, DeadKernelError):
            raise
        except RuntimeError:  # the kernel did not come up in time on a busy machine; the cells are not to blame
            if last_try:
                raise
        finally:
            shutil.rmtree(sockets, ignore_errors=True)

    driven = notebook.cells.pop().outputs
    for place, cell in enumerate(notebook.cells):
        if "raises-exception" in tags(cell) and not any(o.output_type == "error" for o in cell.outputs):
            raise ValueError(f"cell {place} ({headline(cell)}) is tagged raises-exception and raised nothing")
    said = "".join(output.text for output in driven if output.get("name") == "stdout")
    answers = json.loads(said.strip().splitlines()[-1])
    for place, cell in enumerate(notebook.cells):
        for data in (output.data for output in cell.get("outputs", []) if SAVED in output.get("data", {})):
            name = data[WIDGET_VIEW]["model_id"]
            if wrong := answers.get(name, "it was closed by a later cell"):
                raise ValueError(f"cell {place} ({headline(cell)}): its explorer is dead after Run All: {wrong}")
    return notebook


def merge(committed, now, rtol: float = RTOL) -> list[str]:
    """Give the cells of `now` their committed outputs wherever those still hold; say which do not. Both canonical."""
    problems = []
    for place, (old, new) in enumerate(zip(committed.cells, now.cells, strict=True)):
        if new.cell_type != "code":
            continue
        kept = same_outputs(old.outputs, new.outputs, rtol)
        if "volatile" in tags(new):
            kept = bool(old.outputs) == bool(new.outputs)
        if kept:
            new.outputs = old.outputs
            for output in new.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = new.execution_count
        else:
            what = "outputs are stale" if old.outputs else "no committed output"
            problems.append(f"cell {place} ({headline(new)}): {what}\n{describe_difference(old.outputs, new.outputs)}")
    return problems


def headline(cell) -> str:
    return (cell.source.strip().splitlines() or ["empty"])[0][:60]


def process(path: Path, command: str, cell_seconds: int = CELL_SECONDS, rtol: float = RTOL) -> Verdict:
    """Do one command's work on one notebook. Never writes; `Verdict.text` is what `update` or `run` would write."""
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    committed = canonical(nbformat.reads(text, 4))
    verdict = Verdict(path, text=dumps(committed))
    if command != "normalize":
        start = time.perf_counter()
        try:
            now = canonical(execute(committed, path.resolve().parent, cell_seconds))
        except CellExecutionError as error:
            verdict.text = None
            verdict.problems.append("a cell failed\n" + ANSI.sub("", str(error))[-2000:])
            return verdict
        except Exception as error:
            verdict.text = None
            verdict.problems.append(f"{type(error).__name__}: {str(error)[:800]}")
            return verdict
        finally:
            verdict.seconds = time.perf_counter() - start
        if command == "run":  # there, other outputs than the committed ones are no problem
            verdict.text = dumps(now)
            return verdict
        verdict.problems = merge(committed, now, rtol)
        verdict.text = dumps(now)
    if not verdict.problems and text != verdict.text:
        verdict.problems.append("not in canonical form")
    return verdict


def check(path: Path) -> list[str]:
    """The problems of a notebook: empty when it runs and shows what is committed."""
    return process(path, "check").problems


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("check", "update", "normalize", "run"))
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where run puts its copies; made if it is missing")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks at a time (default 2)")
    parser.add_argument("--timeout", type=int, default=CELL_SECONDS, help=f"seconds a cell may take (default {CELL_SECONDS})")
    parser.add_argument("--rtol", type=float, default=RTOL, help="relative tolerance of numbers (default 1e-3)")
    options = parser.parse_args(arguments)
    if (options.command == "run") != (options.to is not None):
        parser.error("run needs --to FOLDER, and no other command takes it")

    failed = 0
    work = partial(process, command=options.command, cell_seconds=options.timeout, rtol=options.rtol)
    with ProcessPoolExecutor(options.jobs) as pool:
        for verdict in pool.map(work, options.notebooks):
            state, details = "ok", []
            if options.command != "check" and verdict.text is not None:
                target = verdict.path if options.to is None else options.to / verdict.path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists() or target.read_text(encoding="utf-8") != verdict.text:
                    target.write_text(verdict.text, encoding="utf-8")
                    state = "wrote"
            elif verdict.problems:
                state, details = "FAIL", verdict.problems
                failed += 1
            print(f"{state:5} {verdict.path} ({verdict.seconds:.1f} s)")
            for problem in details:
                print("      " + problem.replace("\n", "\n      "))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The coverage that `make test` asks for: of all the tests together, and with what only a GPU runs left out by name."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["coverage"]
ON_A_GPU = {"class FlashAttnBackend:": {"layers/attention_backends.py"}, r"def compute_capability\(": {"layers/attention.py"},
            r"def _capture\(": {"engine/cuda_graphs.py", "engine/step_graphs.py", "engine/draft_graphs.py"},
            "if FAST:": {"kernels/noise.py", "kernels/threshold.py"}}
CODE = "def shown(wanted):\n    if wanted:\n        return 1\n    return 0\n"
TEST = "from measured import part\n\n\ndef test_it():\n    assert part.shown(True) == {}\n"
ELSEWHERE = """
import subprocess, sys

def test_it():
    code = "import os; from measured import part; part.shown(True); part.shown(False); os._exit(0)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
"""
AGAIN_AND_AGAIN = """
import os, sys, pytest

def layers(function):
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return 1 + max(map(layers, filter(callable, cells)), default=0)

before = layers(os._exit)

def check(measured):
    assert layers(os._exit) == before, "measuring was stopped and started, and each start left its mark on os._exit"
    assert (sys.gettrace() is not None) == measured == ("COVERAGE_PROCESS_CONFIG" in os.environ), "who measures?"
""" + "".join("\n@pytest.mark.unmeasured" * (number % 3 == 0) + f"\ndef test_{number}():\n    check({number % 3 > 0})\n"
              for number in range(9))


def test_the_floor_is_what_was_promised():
    assert SETTINGS["report"]["fail_under"] >= 92 and SETTINGS["run"]["source"] == ["nanovllm"]


def test_what_is_left_out_is_there_and_only_where_a_gpu_runs_it():
    """A name that nothing bears any more would leave out nothing, or one day something else."""
    for pattern in SETTINGS["report"]["exclude_also"]:
        found = {path.relative_to(ROOT / "nanovllm").as_posix() for path in (ROOT / "nanovllm").rglob("*.py")
                 if re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)}
        assert found, f"{pattern!r} matches no line of nanovllm"
        if pattern in ON_A_GPU or pattern.startswith(("def ", "class ")):
            assert found == ON_A_GPU[pattern], f"{pattern!r}: say where it stands, here and in pyproject.toml"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_test_measures_all_the_tests_and_no_part_of_them():
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "TEST_ARGS"))}

    def command(*arguments: str) -> str:
        said = subprocess.run(["make", "--dry-run", "test", *arguments], cwd=ROOT, env=outside, capture_output=True,
                              encoding="utf-8")
        assert said.returncode == 0, said.stderr
        return next(line.rstrip() for line in said.stdout.splitlines() if "-m pytest" in line)

    assert command().endswith("--cov --cov-report=") and "fail-under" not in command()  # pyproject.toml says how much
    assert "--cov" not in command("TEST_ARGS=tests/engine -x")


def measured_run(folder: Path, test: str, floor: int, plugins: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """pytest over one test of a small package, measured as ours is."""
    (folder / "measured").mkdir()
    (folder / "measured" / "part.py").write_text(CODE, encoding="utf-8")
    (folder / "test_part.py").write_text(test, encoding="utf-8")
    run = "".join(f"{name} = {value!r}\n" for name, value in (SETTINGS["run"] | {"source": ["measured"]}).items())
    (folder / "pyproject.toml").write_text(f"[tool.coverage.run]\n{run}\n[tool.coverage.report]\nfail_under = {floor}\n",
                                           encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST"))}
    environment |= {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # some take seconds
    return subprocess.run([sys.executable, "-m", "pytest", "-n", "1", "-p", "xdist", "-p", "pytest_cov",
                           "-p", "no:cacheprovider", *plugins, "--cov", "--cov-report="], cwd=folder, capture_output=True,
                          encoding="utf-8", env=environment)


@pytest.mark.parametrize("expected, floor, status, said, last", [
    (1, 70, 0, "Required test coverage of 70.0% reached", "1 passed"),
    (1, 90, 1, "FAIL Required test coverage of 90.0% not reached", "1 passed"),
    (2, 70, 1, "Required test coverage of 70.0% reached", "1 failed"),
])
def test_a_failed_test_and_a_missed_floor_fail_the_run_and_the_summary_ends_it(tmp_path, expected, floor, status, said, last):
    ran = measured_run(tmp_path, TEST.format(expected), floor)
    assert ran.returncode == status, ran.stdout + ran.stderr
    assert said in ran.stdout and last in ran.stdout.rstrip().splitlines()[-1], ran.stdout


def test_what_another_process_runs_counts_even_when_it_ends_at_once(tmp_path):
    ran = measured_run(tmp_path, ELSEWHERE, 100)
    assert ran.returncode == 0 and "Total coverage: 100.00%" in ran.stdout, ran.stdout + ran.stderr
    assert [path.name for path in tmp_path.glob(".coverage*")] == [".coverage"]


def test_measuring_stopped_is_stopped_and_started_again_leaves_a_process_its_one_way_out(tmp_path):
    """In a worker several measure, and one that stops lets the one before it go on. Coverage wraps os._exit at each start:
    after some nine hundred tests a child process died of recursion, not of exit."""
    ran = measured_run(tmp_path, AGAIN_AND_AGAIN, 0, plugins=("-p", "tests.conftest"))
    assert ran.returncode == 0 and "9 passed" in ran.stdout, ran.stdout + ran.stderr

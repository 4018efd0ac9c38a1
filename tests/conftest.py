"""What every test may count on: no network, one thread of arithmetic a process, and a GPU only where there is one."""

import os

# Before anything imports torch or transformers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import importlib.util
import signal
import threading

import pytest
import torch
from coverage import Coverage

# What a script starts in the background ignores interrupts, and so would the tests that raise some.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Without a GPU the kernels run in Triton's interpreter, which must be chosen before any test file defines one.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    if importlib.util.find_spec("triton"):
        from tests.quick_interpreter import replace_builtins_once

        replace_builtins_once()

HERE = os.path.dirname(__file__)
# What is dear to make is made once: one JupyterLab and Chromium, one Ray cluster at a time, half a gigabyte of weights ...
# The tests of a group run in one worker.
GROUPS = {"tests/browser/": "browser", "tests/fleet/test_ray.py": "ray", "17_fleet": "ray",
          "tests/parallel/test_tensor_parallel.py": "tensor parallel",
          "tests/test_batched_equals_alone.py": "batched equals alone", "tests/test_smollm2.py": "smollm2",
          "tests/test_llm.py": "transformers' words"}
# `make test` measures what of nanovllm runs, and Python is two to eight times as slow meanwhile. These tests are about
# something else, or go over lines that others run, too, and run at full speed; so do those marked `unmeasured`.
UNMEASURED = ("browser", "exercises", "notebooks", "visualizations", "test_autoreload.py", "test_batched_equals_alone.py",
              "test_benchmarks.py", "test_coverage.py", "test_examples.py", "test_faults.py", "test_imports.py", "test_llm.py",
              "test_locale.py", "test_offline_model.py", "test_packaging.py", "test_qwen3_as_released.py", "test_reference.py",
              "test_smollm2.py", "test_soak.py", "test_training.py", "test_training_grounding.py", "test_training_shapes.py")
# Of a test with parameters the first ones are measured, the others go over the same lines. Not in server/, whose threads
# outlive a test and would not be measured again, nor in what has a case for each line.
MEASURED_WHOLE = ("server", "serving", "test_structured_outputs.py")


def pytest_collection_modifyitems(items):
    """Tests in a folder carry its marker; those that need a GPU say so when they are skipped."""
    seen = set()
    for item in items:
        folder = os.path.relpath(item.path, HERE).split(os.sep)[0]
        if folder in ("gpu", "browser"):
            item.add_marker(folder)
        name = item.nodeid.partition("[")[0]
        if folder in UNMEASURED or (folder not in MEASURED_WHOLE and name in seen):
            item.add_marker("unmeasured")
        seen.add(name)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
    items.sort(key=lambda item: "/server/" in item.nodeid and item.get_closest_marker("unmeasured") is not None)


class Measuring:
    """Coverage, which goes on and off between tests: of an unmeasured one neither the fixtures are measured, which pytest-cov
    does not leave out, nor other processes.

    A worker has three who measure, two of them since its start as a process. Where one stops, the one before it goes on, so all
    must stop; pytest-cov's, the last, is enough afterwards. To start takes milliseconds, so it stays off until it is wanted.
    """

    def __init__(self):
        self._stopped: Coverage | None = None
        self._settings: str | None = None

    def stop(self) -> None:
        if last := Coverage.current():
            self._stopped, self._settings = last, os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
            while running := Coverage.current():
                running.stop()

    def go_on(self) -> None:
        if self._stopped:
            leave = os._exit  # each start wraps it once more: after hundreds, a process that ends would save hundreds of times
            self._stopped.start()
            os._exit, self._stopped = leave, None
            if self._settings is not None:
                os.environ["COVERAGE_PROCESS_CONFIG"] = self._settings


measuring = Measuring()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    measuring.stop() if item.get_closest_marker("unmeasured") else measuring.go_on()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Workers by GROUPS. The marker `xdist_group` does not reach xdist 3.8 under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Grouped(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((group for part, group in GROUPS.items() if part in nodeid), nodeid)

    return Grouped(config, log)

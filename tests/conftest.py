"""What every test may count on: no network, one thread of arithmetic a process, and a GPU only where there is one."""

import os

# Before anything imports torch or transformers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import pytest
import torch

# Without a GPU the kernels run in Triton's interpreter, which must be chosen before any test file defines one.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

HERE = os.path.dirname(__file__)


def pytest_collection_modifyitems(items):
    """Tests in a folder carry its marker; those that need a GPU say so when they are skipped."""
    for item in items:
        folder = os.path.relpath(item.path, HERE).split(os.sep)[0]
        if folder in ("gpu", "browser"):
            item.add_marker(folder)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
        if "17_fleet" in item.name:
            item.add_marker(pytest.mark.xdist_group("ray"))  # as tests/fleet: one cluster at a time
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.xdist_group("browser"))  # one JupyterLab and one Chromium serve them all

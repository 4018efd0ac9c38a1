"""What every test may count on: no network, one thread of arithmetic a process, and a GPU only where there is one."""

import os

# Before anything imports torch or transformers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import pytest

HERE = os.path.dirname(__file__)


def cuda_is_available() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items):
    """Tests in a folder carry its marker; those that need a GPU say so when they are skipped."""
    has_gpu = None
    for item in items:
        folder = os.path.relpath(item.path, HERE).split(os.sep)[0]
        if folder in ("gpu", "browser"):
            item.add_marker(folder)
        if item.get_closest_marker("gpu"):
            has_gpu = cuda_is_available() if has_gpu is None else has_gpu
            if not has_gpu:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.xdist_group("browser"))  # one JupyterLab and one Chromium serve them all

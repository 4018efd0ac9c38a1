"""Kernels run on a GPU where there is one, else in Triton's interpreter (see tests/conftest.py)."""

import pytest
import torch


@pytest.fixture
def device() -> str:
    pytest.importorskip("triton")
    return "cuda" if torch.cuda.is_available() else "cpu"

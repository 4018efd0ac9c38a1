"""Traces to draw: a real scheduler driven by a model that always says 7. No torch."""

import pytest

from nanovllm.tracing.trace import Trace
from tests.visualizations import samples


@pytest.fixture(scope="session")
def shared_trace() -> Trace:
    return samples.shared()[0]


@pytest.fixture(scope="session")
def preempted_trace() -> Trace:
    trace = samples.preempted()
    assert any(r.preempted for r in trace)
    return trace

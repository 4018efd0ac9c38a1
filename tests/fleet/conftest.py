"""One Ray cluster for all tests that want one: starting it costs seconds."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Ray on this machine, which believes in four CPU cores."""
    ray = pytest.importorskip("ray", reason="needs the extra 'fleet'")
    from nanovllm.fleet.cluster import connect

    # Ray starts a dozen processes, and each would be measured for what the suite covers, which makes it slow.
    measured = os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
    try:
        connect(num_cpus=4, attempts=5)
    except Exception as error:  # its agent has 15 seconds to start, which nothing can change
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        if load < 3 * cores:
            raise
        pytest.skip(f"five times Ray did not start under a load of {load:.0f} on {cores} cores ({type(error).__name__})")
    if measured is not None:
        os.environ["COVERAGE_PROCESS_CONFIG"] = measured
    yield
    ray.shutdown()

"""One Ray cluster of two nodes for all tests that want one: starting it costs seconds."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
MEMORY = 150_000_000  # bytes of each node's object store


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Two Ray nodes on this machine, which believe in two CPU cores each."""
    ray = pytest.importorskip("ray", reason="needs the extra 'fleet'")
    from ray.cluster_utils import Cluster

    from nanovllm.fleet.cluster import patiently

    # Ray starts a dozen processes, and each would be measured for what the suite covers, which makes it slow.
    measured = os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
    node = {"num_cpus": 2, "object_store_memory": MEMORY}
    nodes = patiently(lambda: Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False}))
    patiently(lambda: nodes.add_node(**node))
    ray.init(address=nodes.address, log_to_driver=False)
    if measured is not None:
        os.environ["COVERAGE_PROCESS_CONFIG"] = measured
    assert len(ray.nodes()) == 2
    yield
    ray.shutdown()
    nodes.shutdown()

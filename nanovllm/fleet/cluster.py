"""A Ray cluster to run on: the one that the environment names, or one that is started here."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import ray

from nanovllm.utils.checks import check

T = TypeVar("T")
STARTS = 3


def connect(num_cpus: int | None = None, attempts: int = STARTS) -> None:
    """Connect to the cluster of RAY_ADDRESS, or start Ray on this machine, with its telemetry off. Does nothing when that
    has been done. num_cpus: CPU cores that Ray believes it has, where it is started here. attempts: see `with_retries`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        started_here = "RAY_ADDRESS" not in os.environ
        # "local": what another, perhaps long gone, cluster of this machine left behind is not looked for.
        own: dict[str, Any] = dict(address="local", num_cpus=num_cpus, include_dashboard=False) if started_here else {}
        with_retries(lambda: ray.init(log_to_driver=False, **own), attempts)


def with_retries(start: Callable[[], T], attempts: int = STARTS) -> T:
    """`start()`, tried again when it fails: a Ray node ends itself when its agent process needs more than 15 seconds to
    start, which it does on a busy machine, and much less the second time, when its files are in memory."""
    for attempt in range(1, attempts + 1):
        try:
            return start()
        except Exception:
            ray.shutdown()
            if attempt == attempts:
                raise
    raise AssertionError("not reached")


def gpus_per_engine(asked: int | None, num_engines: int) -> int:
    """`asked`, or 1 where the cluster has GPUs and 0 where it has none; connects to it, ready for so many engines."""
    if asked is not None:
        return asked
    connect(num_cpus=cores_for(num_engines))
    return int(ray.cluster_resources().get("GPU", 0) > 0)  # type: ignore[no-untyped-call]


def least_and_most(replicas: int | tuple[int, int]) -> tuple[int, int]:
    """How many engines there are at least and at most. Raises ValueError for none, and for a range that is empty."""
    least, most = (replicas, replicas) if isinstance(replicas, int) else replicas
    check(1 <= least <= most, "replicas", replicas, "a whole number, 1 or more, or (least, most)", "start at least one engine")
    return least, most


def cores_for(num_engines: int) -> int:
    """How many cores a Ray that is started here is to believe in, so that engines on the CPU, which share what there is, can
    all start: at least one each, and one for what is not an engine."""
    return max(os.cpu_count() or 1, num_engines + 1)


def num_engines_that_fit(num_cpus: float, num_gpus: int) -> int:
    """How many more engines of this size the cluster has room for now, each on one node; 0 when not connected."""
    if not ray.is_initialized():
        return 0
    from ray._private.state import available_resources_per_node

    wanted = {name: amount for name, amount in (("CPU", num_cpus), ("GPU", num_gpus)) if amount}
    nodes: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
    return sum(min((int(free.get(name, 0) // amount) for name, amount in wanted.items()), default=1) for free in nodes.values())

"""Our `Router` inside Ray Serve, through its request router interface."""

import time
from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from nanovllm.fleet.router import Router

CHOSEN_S = 5.0  # how long a choice counts as a request under way although Ray Serve has not reported it sent


class FleetRequestRouter(RequestRouter):
    """Ranks replicas for Ray Serve: first the one that `Router` chooses, then the others, least loaded first.

    A request brings its prompt's block hashes as the keyword argument `hashes`. Owns the router, and which requests are
    under way where, as far as this process sent them. Ray Serve asks for the next rank when a replica takes no more.
    """

    def initialize_state(self, **settings: Any) -> None:
        """Ray Serve calls it once. settings: those of `Router`."""
        self.router = Router[str](**settings)
        self._sent: dict[str, str] = {}                  # request -> replica
        self._chosen: dict[str, tuple[str, float]] = {}  # the same and when, until it is sent

    async def choose_replicas(self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
                              ) -> list[list[RunningReplica]]:
        if not candidate_replicas:
            return []
        now = time.monotonic()
        self._chosen = {request: choice for request, choice in self._chosen.items() if choice[1] > now - CHOSEN_S}
        unfinished = Counter([*self._sent.values(), *(replica for replica, _ in self._chosen.values())])
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = {name: unfinished[name] for name in sorted(by_name)}
        hashes = pending_request.kwargs.get("hashes", ()) if pending_request else ()
        choice = self.router.choose(hashes, loads)
        if pending_request:
            pending_request.routing_context.should_backoff = True  # ask again later, not at once, when all are full
            self._chosen[pending_request.metadata.internal_request_id] = choice.replica, now
            self.router.sent(choice.replica, hashes)
        others = sorted((name for name in loads if name != choice.replica), key=loads.__getitem__)
        return [[by_name[name]] for name in (choice.replica, *others)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        request = pending_request.metadata.internal_request_id
        wished = self._chosen.pop(request, None)
        self._sent[request] = replica_id.unique_id
        if wished is None or wished[0] != replica_id.unique_id:
            self.router.sent(replica_id.unique_id, pending_request.kwargs.get("hashes", ()))

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._sent.pop(internal_request_id, None)
        self._chosen.pop(internal_request_id, None)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        gone = {replica_id.unique_id for replica_id in self.curr_replicas} - {r.replica_id.unique_id for r in replicas}
        for name in gone:
            self.router.forget(name)
        super().update_replicas(replicas)

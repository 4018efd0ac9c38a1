"""Many engines under one router, simulated: discrete events, real schedulers, recorded step times. Imports no torch."""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.errors import InvalidArgument
from nanovllm.fleet.arrivals import Arrival
from nanovllm.fleet.cost_model import H200, CostModel
from nanovllm.fleet.fleet_config import FleetConfig
from nanovllm.fleet.fleet_log import Routed
from nanovllm.fleet.fleet_report import FleetReport
from nanovllm.fleet.router import Router
from nanovllm.fleet.simulated_replica import ReceivingBlockManager, SimulatedReplica
from nanovllm.sampling_params import SamplingParams
from nanovllm.utils.checks import check


@dataclass(slots=True)
class _InFlight:
    """A request between arrival and end: who asked, since when, and what became of it so far."""

    arrival: Arrival
    seq: Sequence
    routed: Routed


class SimulatedFleet:
    """Serves arrivals with simulated replicas, in order of events; `run` returns a `FleetReport`.

    Every decision is made by the classes that serve: `Router`, `Scheduler`, `BlockManager`. Only time is made up, by the
    cost model: a step of a replica takes `cost(batch)` seconds, routing takes none. The same arrivals give the same run.
    Memory is bounded by the requests in flight, and 80 bytes for each that has ended.

        report = SimulatedFleet(FleetConfig(num_replicas=4)).run(Traffic(rate=50, num_conversations=1000))
        print(report)

    scheduler_cls: your own class in place of the engine's, as for `LLM`. router: a router of your own, with `choose` and
    `sent` as `Router` has them. max_logged: so many requests and steps are kept one by one, for explorers and Perfetto.
    """

    def __init__(self, config: FleetConfig | None = None, *, cost: CostModel = H200,
                 router: Router[int] | None = None, scheduler_cls: Callable[..., Scheduler] = Scheduler,
                 max_logged: int = 2000):
        self.config = config = config or FleetConfig()
        self.cost = cost
        num_blocks = config.num_blocks or cost.num_blocks
        self.router = router or Router[int](config.router, max_imbalance=config.max_imbalance, max_blocks=num_blocks)
        self._decode_router = Router[int]("least_loaded")
        self.replicas: list[SimulatedReplica] = []
        for index in range(config.num_replicas):
            receives = 0 < config.prefill_replicas <= index
            blocks = (ReceivingBlockManager if receives else BlockManager)(num_blocks, cost.block_size,
                                                                          config.enable_prefix_caching)
            scheduler = scheduler_cls(blocks, max_num_seqs=config.max_num_seqs, max_model_len=config.max_model_len,
                                      max_num_batched_tokens=config.max_num_batched_tokens)
            self.replicas.append(SimulatedReplica(index, scheduler, cost))
        first_pool = config.prefill_replicas or config.num_replicas
        self._loads = {index: 0 for index in range(first_pool)}
        self._decode_loads = {index: 0 for index in range(first_pool, config.num_replicas)}
        self._link_free = [0.0] * config.num_replicas
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._num_events = self._num_requests = 0
        self._in_flight: dict[int, _InFlight] = {}
        self._params: dict[int, SamplingParams] = {}
        self.report = FleetReport(config, cost, max_logged)

    def run(self, arrivals: Iterable[Arrival]) -> FleetReport:
        """Serve all arrivals, which come in order of time, to the end. A fleet runs once.

        Requests that no replica could ever serve, such as prompts longer than max_model_len, are counted as refused.
        """
        check(not self._num_requests, "requests already served", self._num_requests, "0", "make a new SimulatedFleet")
        self._arrivals = iter(arrivals)
        self._await_next()
        while self._events:
            now, _, handle, arguments = heapq.heappop(self._events)
            handle(now, *arguments)
        self.report.close([replica.busy_s for replica in self.replicas],
                          [replica.scheduler.num_preemptions for replica in self.replicas])
        return self.report

    # ---- events

    def _at(self, time: float, handle: Callable[..., None], *arguments: object) -> None:
        self._num_events += 1  # of two events at one time, the one noted first comes first
        heapq.heappush(self._events, (time, self._num_events, handle, arguments))

    def _await_next(self) -> None:
        """Only the next arrival from outside is in memory."""
        if (arrival := next(self._arrivals, None)) is not None:
            self._at(arrival.time, self._arrive_from_outside, arrival)

    def _arrive_from_outside(self, now: float, arrival: Arrival) -> None:
        self._await_next()
        self._arrive(now, arrival)

    def _arrive(self, now: float, arrival: Arrival) -> None:
        seq_id, self._num_requests = self._num_requests, self._num_requests + 1
        splits = bool(self.config.prefill_replicas)
        seq = Sequence(seq_id, arrival.prompt_token_ids, self._sampling_params(1 if splits else arrival.max_tokens))
        hashes = seq.block_hashes(self.cost.block_size)
        choice = self.router.choose(hashes, self._loads)
        try:
            self.replicas[choice.replica].scheduler.validate(len(seq), arrival.max_tokens)
        except ValueError:
            self.report.refused += 1
            return
        self.router.sent(choice.replica, hashes)
        routed = self.report.routed(seq_id, now, arrival, choice, self._loads)
        self._in_flight[seq_id] = _InFlight(arrival, seq, routed)
        self._loads[choice.replica] += 1
        self._queue(now, self.replicas[choice.replica], seq)

    def _queue(self, now: float, replica: SimulatedReplica, seq: Sequence) -> None:
        replica.scheduler.add(seq)
        if replica.batch is None:
            self._start_step(now, replica)

    def _start_step(self, now: float, replica: SimulatedReplica) -> None:
        if replica.start_step(now):
            self._at(replica.ends, self._end_step, replica)

    def _end_step(self, now: float, replica: SimulatedReplica) -> None:
        batch, finished = replica.finish_step()
        self.report.stepped(replica, batch)
        for seq in finished:
            self._end_sequence(now, replica, seq)
        if replica.batch is None:
            self._start_step(now, replica)

    def _end_sequence(self, now: float, replica: SimulatedReplica, seq: Sequence) -> None:
        request = self._in_flight[seq.seq_id]
        if self.config.prefill_replicas and replica.index < self.config.prefill_replicas:
            self._loads[replica.index] -= 1
            request.routed.hit_tokens = seq.num_hit_tokens
            request.routed.first_token = now
            if request.arrival.max_tokens > 1:
                return self._transfer(now, replica, request)
        else:
            (self._decode_loads if self.config.prefill_replicas else self._loads)[replica.index] -= 1
        del self._in_flight[seq.seq_id]
        if not self.config.prefill_replicas:
            request.routed.hit_tokens = seq.num_hit_tokens
            request.routed.first_token = seq.token_times[0]
        self.report.ended(request.routed, now, seq)
        if (later := request.arrival.next_turn(now, seq.output_token_ids)) is not None:
            self._at(later.time, self._arrive, later)

    # ---- prefill and decode in two pools

    def _transfer(self, now: float, replica: SimulatedReplica, request: _InFlight) -> None:
        """Send a prompt's keys and values on, behind what this replica still sends."""
        num_bytes = request.seq.num_prompt_tokens * self.cost.kv_bytes
        begins = max(now, self._link_free[replica.index])
        self._link_free[replica.index] = ends = begins + num_bytes / self.config.transfer_bytes_per_s
        self._at(ends + self.config.transfer_latency_s, self._decode, request)

    def _decode(self, now: float, request: _InFlight) -> None:
        choice = self._decode_router.choose((), self._decode_loads)
        replica = self.replicas[choice.replica]
        first = request.seq
        seq = Sequence(first.seq_id, first.prompt_token_ids, self._sampling_params(request.arrival.max_tokens))
        seq.append_token(first.token_ids[-1])
        seq.token_times = first.token_times
        blocks = replica.scheduler.block_manager
        if not isinstance(blocks, ReceivingBlockManager):
            raise InvalidArgument(f"scheduler_cls={type(replica.scheduler).__name__}: its block_manager must be the one that "
                                  "it was given, which can receive blocks; keep it, or use prefill_replicas=0.")
        blocks.receive(seq)
        request.seq, request.routed.decode_replica = seq, choice.replica
        self._decode_loads[choice.replica] += 1
        self._queue(now, replica, seq)

    def _sampling_params(self, max_tokens: int) -> SamplingParams:
        if max_tokens not in self._params:
            self._params[max_tokens] = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        return self._params[max_tokens]


def compare(config: FleetConfig, arrivals: Iterable[Arrival], *, cost: CostModel = H200,
            **changes: Any) -> tuple[FleetReport, FleetReport]:
    """The same arrivals, which must allow being iterated twice, served as `config` says and with other knobs as well."""
    return (SimulatedFleet(config, cost=cost).run(arrivals),
            SimulatedFleet(replace(config, **changes), cost=cost).run(arrivals))

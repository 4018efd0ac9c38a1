"""Which replica gets a request. No Ray and no torch in here: Ray Serve and the simulation call the same class."""

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

from nanovllm.utils.checks import check

R = TypeVar("R", bound=Hashable)  # whatever names a replica
Policy = Literal["round_robin", "least_loaded", "prefix_aware"]
POLICIES: tuple[str, ...] = get_args(Policy)


@dataclass(frozen=True, slots=True)
class Choice(Generic[R]):
    """replica: where to send the request. num_matched_blocks: leading blocks of its prompt that this replica should hold.
    reason: why, in words for people."""

    replica: R
    num_matched_blocks: int
    reason: str


class Router(Generic[R]):
    """Picks a replica for each request, by one of three policies.

    round_robin: one after the other, whatever they are doing.
    least_loaded: the one with the fewest unfinished requests; of equals, the one that was sent the fewest.
    prefix_aware: of the replicas that are not overloaded, the one that was sent the longest beginning of this prompt
        (SGLang's cache-aware router and Ray Serve's PrefixCacheAffinityRouter do the same); without a match, or between
        equal ones, the least loaded. A replica is overloaded when it has over `max_imbalance` requests more than the least
        loaded one: a popular system prompt may not pull all the traffic to one engine.

    Owns a note for each replica of the block hashes that were sent there: the `Sequence.block_hashes` by which an engine
    finds cached blocks. The note is an estimate. It holds `max_blocks` hashes, about what the replica's cache can hold, and
    forgets the least recently used first, as the cache does. The router never talks to a replica.

    Raises ValueError for an unknown policy, a negative max_imbalance, or max_blocks below 1.
    """

    def __init__(self, policy: Policy = "prefix_aware", *, max_imbalance: int = 8, max_blocks: int = 65_536):
        check(policy in POLICIES, "policy", policy, f"one of {', '.join(POLICIES)}", "choose one of them")
        check(isinstance(max_imbalance, int) and max_imbalance >= 0, "max_imbalance", max_imbalance,
              "a whole number, 0 or more", "use 0 to follow prefixes only between equally loaded replicas")
        check(isinstance(max_blocks, int) and max_blocks >= 1, "max_blocks", max_blocks, "a whole number, 1 or more",
              "use the number of blocks in a replica's KV cache")
        self.policy: Policy = policy
        self.max_imbalance = max_imbalance
        self.max_blocks = max_blocks
        self._sent: dict[R, OrderedDict[bytes, None]] = {}
        self._num_sent: dict[R, int] = {}
        self._turn = 0

    def __repr__(self) -> str:
        notes = {replica: len(hashes) for replica, hashes in self._sent.items()}
        return f"Router({self.policy}, max_imbalance={self.max_imbalance}, blocks noted={notes})"

    def choose(self, hashes: Sequence[bytes], loads: Mapping[R, int]) -> Choice[R]:
        """Pick a replica for a prompt with these block hashes. Its note changes only in `sent`.

        loads: unfinished requests of every replica that may be chosen, in a stable order. Raises ValueError when empty.
        """
        check(len(loads) > 0, "loads", dict(loads), "at least one replica", "start a replica first")
        if self.policy == "round_robin":
            replica = list(loads)[self._turn % len(loads)]
            self._turn += 1
            return Choice(replica, self.num_matched_blocks(replica, hashes), "next in turn")
        order = {replica: (loads[replica], self._num_sent.get(replica, 0)) for replica in loads}  # the idlest first
        least = min(loads, key=order.__getitem__)
        if self.policy == "least_loaded":
            return Choice(least, self.num_matched_blocks(least, hashes), f"least loaded, {loads[least]} unfinished requests")
        matches = {replica: self.num_matched_blocks(replica, hashes) for replica in loads}
        allowed = [replica for replica in loads if loads[replica] <= loads[least] + self.max_imbalance]
        best = min(allowed, key=lambda replica: (-matches[replica], order[replica]))
        wished = min(loads, key=lambda replica: (-matches[replica], order[replica]))
        if matches[wished] > matches[best]:
            reason = (f"replica {wished} holds {matches[wished]} of its blocks but has {loads[wished]} unfinished requests, "
                      f"over {self.max_imbalance} more than the least loaded")
        elif matches[best]:
            reason = f"holds {matches[best]} of its {len(hashes)} blocks"
        else:
            reason = f"no replica holds its beginning; least loaded, {loads[best]} unfinished requests"
        return Choice(best, matches[best], reason)

    def sent(self, replica: R, hashes: Sequence[bytes]) -> None:
        """Note that a prompt with these block hashes goes to `replica`."""
        self._num_sent[replica] = self._num_sent.get(replica, 0) + 1
        note = self._sent.setdefault(replica, OrderedDict())
        # Last block first: a prefix is worth more than its tail, so it is the last to be forgotten.
        for block_hash in reversed(hashes):
            note[block_hash] = None
            note.move_to_end(block_hash)
        while len(note) > self.max_blocks:
            note.popitem(last=False)

    def forget(self, replica: R) -> None:
        """Drop what is noted of a replica that has ended or lost its cache."""
        self._sent.pop(replica, None)
        self._num_sent.pop(replica, None)

    def num_matched_blocks(self, replica: R, hashes: Sequence[bytes]) -> int:
        """How many leading blocks of a prompt were sent to `replica` before, as far as is still noted."""
        note = self._sent.get(replica, ())
        for count, block_hash in enumerate(hashes):
            if block_hash not in note:
                return count
        return len(hashes)

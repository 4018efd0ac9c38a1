"""A model runner without a model, for chapter 12: it shows whether a loop keeps its books, and fails where it is told to."""

from hashlib import blake2b

from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.sequence import Sequence


class Fault(RuntimeError):
    """What the stand-in device raises when it is told to."""


class Device:
    """A stand-in for the model runner, which knows only what was written to its cache.

    The next token is a hash of all tokens that a sequence reads through its block table: a slot that was never written, or
    holds another's token, shows at once. faults: names such as "launch 3" or "collect 0"; each strikes once. told: what it
    was asked to do, in order.
    """

    def __init__(self, block_size: int, faults=()):
        self._block_size, self._faults = block_size, set(faults)
        self._slots: dict[int, int] = {}
        self._counts = {"launch": 0, "collect": 0}
        self.told: list[str] = []
        self._num_faults = 0
        self.reset()

    def launch(self, batch: ScheduledBatch) -> tuple[int, list[int]]:
        self._note("launch")
        known = {item.seq.seq_id: item.seq.token_ids + self._drawn.get(item.seq.seq_id, [])[:item.seq.num_pending_tokens]
                 for item in batch.items}
        for item in batch.items:
            if len(known[item.seq.seq_id]) < item.start + item.num_tokens:
                raise LookupError(f"a token of sequence {item.seq.seq_id} is scheduled that nobody has drawn; what lost steps "
                                  "had counted must be taken back")
            for position in range(max(item.start, item.seq.num_cached_tokens), item.start + item.num_tokens):
                self._slots[self._slot(item.seq, position)] = known[item.seq.seq_id][position]
        self._drawn = {item.seq.seq_id: [made_up_token([self._slots.get(self._slot(item.seq, p)) for p in
                                                        range(item.start + item.num_tokens)])]
                       for item in batch.items if item.samples}
        return self._num_faults, [token for tokens in self._drawn.values() for token in tokens]

    def collect(self, launched: tuple[int, list[int]]) -> list[int]:
        self._note("collect")
        before, token_ids = launched
        if before != self._num_faults:
            raise LookupError("the device was asked for a step that it lost when the fault came; forget what was under way")
        return token_ids

    def reset(self) -> None:
        self._drawn: dict[int, list[int]] = {}

    def _note(self, what: str) -> None:
        name = f"{what} {self._counts[what]}"
        self._counts[what] += 1
        self.told.append(what)
        if name in self._faults:
            self._num_faults += 1
            raise Fault(name)

    def _slot(self, seq: Sequence, position: int) -> int:
        return seq.block_table[position // self._block_size] * self._block_size + position % self._block_size


def made_up_token(tokens: list[int]) -> int:
    return int.from_bytes(blake2b(repr(tokens).encode(), digest_size=4).digest(), "big") % 1000

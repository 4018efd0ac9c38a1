"""What a live view needs of a running engine, looked at a few times a second. Imports no torch."""

import threading
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from nanovllm.engine.listener import Step
from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.sequence import Sequence, SequenceStatus
from nanovllm.serving.detokenizer import IncrementalDetokenizer

SECONDS_APART = 0.1  # ten looks a second at most ...
SHARE = 0.005        # ... and fewer where they would take more of the thread's time; sending costs others as much again
REST_SECONDS = 0.3   # without work, before the last look
ROWS = 12            # sequences followed at a time
KEPT = 600           # looks; of a longer run every other one goes, and again
TEXTS = 64           # texts kept
COUNTED = 512        # blocks; of those that nobody holds in a larger cache it is not asked which still have content
LETTERS = {SequenceStatus.WAITING: "w", SequenceStatus.RUNNING: "r", SequenceStatus.PREEMPTED: "p",
           SequenceStatus.FINISHED: "f"}


@dataclass(slots=True)
class _Followed:
    """A sequence, and its text as far as it was looked at. detokenizer: None without a tokenizer."""

    seq: Sequence
    detokenizer: IncrementalDetokenizer | None
    seen: int = 0  # tokens of its output
    done: bool = False

    def new_text(self) -> str:
        seq = self.seq
        if self.detokenizer is None or self.done:
            return ""
        new = seq.token_ids[seq.num_prompt_tokens + self.seen:]
        self.seen += len(new)
        self.done = seq.is_finished
        return self.detokenizer.push(new, final=self.done) if new or self.done else ""


class BatchWatch:
    """A `Listener` that looks at an engine at most ten times a second, whoever steps it and in whatever thread.

    Owns what it saw. Between two looks it adds two numbers a step. It keeps no engine alive, and changes nothing in it.

    frames: looks as dicts: time (seconds since the first step), steps, prompt and decode (tokens computed so far),
        running, waiting, finished, preemptions (so far), used, shared, cached, free (blocks; shared ones are used, too) and
        rows, the sequences followed: [seq_id, prompt tokens, most tokens to generate, tokens now, tokens in the cache,
        letter of its status, characters of its text].
    texts: {seq_id: text so far}, of those followed last.
    num_frames: how many there have been. tell: called with that, the new frames, and what each text gained.
    """

    one_step_at_a_time = False

    def __init__(self, engine: Any, tokenizer: Any, tell: Callable[[int, list[dict[str, Any]], dict[int, str]], None]) -> None:
        self._engine, self._tokenizer, self._tell = weakref.ref(engine), tokenizer, tell
        self.frames: list[dict[str, Any]] = []
        self.texts: dict[int, str] = {}
        self.num_frames = 0
        self._totals = {"steps": 0, "prompt": 0, "decode": 0, "finished": 0, "preemptions": 0}
        self._untold: list[dict[str, Any]] = []
        self._followed: dict[int, _Followed] = {}
        self._began: float | None = None
        self._due, self._was_idle = 0.0, True
        self._timer: threading.Timer | None = None
        self.lock = threading.RLock()

    def open(self) -> None:
        """Look from the next step on."""
        if engine := self._engine():
            engine.attach(self)

    def close(self) -> None:
        if engine := self._engine():
            engine.detach(self)

    def joined(self, seq: Sequence) -> None:
        pass  # it is found in its queue

    def ended(self, seq: Sequence) -> None:
        """When the last request is aborted, no step follows in which to look."""
        if self._began is not None:
            self._rest_soon(ScheduledBatch())

    def stepped(self, step: Step) -> None:
        """After a step, in the thread that took it. Costs microseconds, but for ten times a second."""
        try:
            self._count(step.batch, step.finished, step.timestamps[0])
        except Exception as error:  # a picture must not stop what it shows
            self.close()
            warnings.warn(f"the live view of the engine stopped: {error!r}", stacklevel=2)

    def _count(self, batch: ScheduledBatch, finished: list[Sequence], began: float) -> None:
        totals, items = self._totals, batch.items
        if self._was_idle:  # or the time of rest would count as time of work
            self._was_idle = False
            if self._began is None:
                self._began = began
            if began >= self._due:
                self._end_rest(began)
        decode = sum([item.is_decode for item in items])
        totals["steps"] += 1
        totals["decode"] += decode
        totals["prompt"] += sum([item.num_tokens for item in items]) - decode
        totals["finished"] += len(finished)
        totals["preemptions"] += len(batch.preempted)
        now = time.perf_counter()
        if now >= self._due:
            self._look(now, batch)
        if finished:
            self._rest_soon(batch)

    def _rest_soon(self, batch: ScheduledBatch) -> None:
        """If there is no work left, look once more after REST_SECONDS."""
        engine = self._engine()
        if engine is not None and not engine.has_unfinished:
            self._was_idle = True
            if self._timer is None:
                self._timer = threading.Timer(REST_SECONDS, self._rest, (batch,))
                self._timer.daemon = True
                self._timer.start()

    def _rest(self, batch: ScheduledBatch) -> None:
        self._timer = None
        engine = self._engine()
        if engine is not None and not engine.has_unfinished:
            self.look(batch)

    def look(self, batch: ScheduledBatch | None = None) -> None:
        """Look now, at an engine that nobody steps at the moment."""
        if self._began is not None and self._engine() is not None:
            self._look(time.perf_counter(), batch or ScheduledBatch())

    def _end_rest(self, began: float) -> None:
        """Repeat the last look where work begins again; it is told together with the next."""
        with self.lock:
            frame = self.frames[-1] if self.frames else self._frame(self._engine(), []) | {"running": 0}
            self._untold.append(self._keep(frame | {"time": self._since_began(began), "quiet": True}))

    def _since_began(self, now: float) -> float:
        return round(now - (now if self._began is None else self._began), 4)

    def _look(self, now: float, batch: ScheduledBatch) -> None:
        start = time.thread_time()
        with self.lock:
            engine = self._engine()
            if engine is None:
                return
            rows, texts = self._rows(engine.scheduler, batch)
            self._untold.append(self._keep({"time": self._since_began(now), **self._frame(engine, rows)}))
            frames, self._untold = self._untold, []
            self._tell(self.num_frames, frames, texts)
            self._due = now + max(SECONDS_APART, (time.thread_time() - start) / SHARE)

    def _frame(self, engine: Any, rows: list[list[Any]]) -> dict[str, Any]:
        scheduler = engine.scheduler
        return {**self._totals, "running": len(scheduler.running), "waiting": len(scheduler.waiting),
                **_blocks(engine.block_manager), "rows": rows}

    def _keep(self, frame: dict[str, Any]) -> dict[str, Any]:
        self.frames.append(frame)
        if len(self.frames) > KEPT:
            self.frames = self.frames[::2]
        self.num_frames += 1
        return frame

    def _rows(self, scheduler: Any, batch: ScheduledBatch) -> tuple[list[list[Any]], dict[int, str]]:
        """The sequences followed, and what their texts gained."""
        self._choose(scheduler, batch)
        rows, texts = [], {}
        for seq_id, followed in sorted(self._followed.items()):
            seq = followed.seq
            self.texts.setdefault(seq_id, "")
            if new := followed.new_text():
                texts[seq_id] = new
                self.texts[seq_id] += new
            cached = len(seq.token_ids) if seq.is_finished else seq.num_computed_tokens
            rows.append([seq_id, seq.num_prompt_tokens, seq.sampling_params.max_tokens, len(seq.token_ids), cached,
                         LETTERS[seq.status], len(self.texts[seq_id])])
        while len(self.texts) > TEXTS:
            del self.texts[next(i for i in self.texts if i not in self._followed)]
        return rows, texts

    def _choose(self, scheduler: Any, batch: ScheduledBatch) -> None:
        """Keep to who is followed while it is alive; fill up with running ones, then waiting, then those that ended."""
        followed = {i: entry for i, entry in self._followed.items() if not entry.seq.is_finished}
        ran = (item.seq for item in batch.items)  # also those that came and went between two looks
        for seq in chain(scheduler.running, islice(scheduler.waiting, ROWS), ran):
            if len(followed) >= ROWS:
                break
            if seq.seq_id not in followed:
                followed[seq.seq_id] = self._followed.get(seq.seq_id) or self._follow(seq)
        ended = [i for i in self._followed if i not in followed]
        for i in ended[::-1][:max(0, ROWS - len(followed))]:
            followed[i] = self._followed[i]
        self._followed = followed

    def _follow(self, seq: Sequence) -> _Followed:
        skip = seq.sampling_params.skip_special_tokens
        return _Followed(seq, IncrementalDetokenizer(self._tokenizer, skip) if self._tokenizer else None)


def _blocks(manager: Any) -> dict[str, int]:
    references, free = manager.ref_counts, manager.num_free_blocks
    counts = {"used": manager.num_blocks - free, "shared": len(references) - references.count(0) - references.count(1)}
    if manager.num_blocks > COUNTED:
        return counts | {"cached": 0, "free": free}
    empty = [manager.block_state(block) for block, count in enumerate(references) if not count].count("f")
    return counts | {"cached": free - empty, "free": empty}

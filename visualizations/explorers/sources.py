"""Where an explorer's steps come from: a recorded trace, a simulation, or a live engine. Imports no torch.

A source offers `trace`, `eviction_orders` {step: blocks}, `prompts` {seq_id: token ids} and `decode(token_id)`; one that
can be driven also `scheduler`, `add`, `abort`, `step`, `set`, `settings`, `has_unfinished` and `kind`.
`nanovllm.fleet.simulation.Simulation` is such a source by itself.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.fleet.simulation import Simulation, eviction_order
from nanovllm.sampling_params import SamplingParams
from nanovllm.tracing.recorder import Recorder
from nanovllm.tracing.step_record import StepRecord
from nanovllm.tracing.trace import Trace
from nanovllm.utils.checks import check

FIELDS = [f.name for f in fields(StepRecord) if f.name != "phases"]
STEPS_KEPT = 1000  # of a live engine


class Recording:
    """A trace to replay. It never changes.

    tokens: {seq_id: prompt token ids} and decode (token id -> text), where the tokens' texts are to be shown.
    """

    kind = "recording"

    def __init__(self, trace: Trace, tokens: dict[int, list[int]] | None = None,
                 decode: Callable[[int], str] | None = None) -> None:
        self.trace, self.prompts = trace, tokens or {}
        self.eviction_orders: dict[int, list[int]] = {}
        self.decode = decode or str


class Books(Recording):
    """A block manager and its sequences, handled by hand: every `look` is a step of the trace.

    Owns the trace of what it saw. It never touches the manager, which may be one of your own: it takes `num_blocks`,
    `block_size`, `ref_counts` and `block_state`, and `eviction_order` where there is one.

    sequences: those that may hold blocks; a list that is filled later may be handed over empty.
    """

    kind = "block manager"

    def __init__(self, manager: Any, sequences: list[Sequence], decode: Callable[[int], str] | None = None) -> None:
        meta = {"block_size": manager.block_size, "num_blocks": manager.num_blocks, "token_budget": 1}
        super().__init__(Trace(meta), decode=decode)
        self.manager, self.sequences = manager, sequences
        self.says: list[str] = []  # what was done before each look
        self.focus: dict[int, tuple[int, int]] = {}  # look: (seq_id, position) of the token it is about
        self.copied: dict[int, tuple[int, int]] = {}  # look: (source, target) of a block that was copied
        self.look("The books as they were handed over.")

    def look(self, says: str, focus: tuple[int, int] | None = None, copied: tuple[int, int] | None = None) -> None:
        """Record how the books stand. A token has its place as soon as the table reaches it, computed or not.

        says: what was done. focus: (seq_id, position) of the token it is about. copied: (source, target) of a copied block.
        """
        manager, trace = self.manager, self.trace
        step, holders = len(trace), [seq for seq in self.sequences if seq.block_table]
        for seq in self.sequences:
            trace.joined(seq)
            self.prompts[seq.seq_id] = list(seq.token_ids)
        trace.append(StepRecord(
            step, float(step), 1.0, 1, scheduled=[], left_waiting={}, running=[seq.seq_id for seq in holders],
            waiting=[seq.seq_id for seq in self.sequences if not seq.block_table and not seq.is_finished],
            preempted=[], finished=[], tokens={}, hit_tokens={},
            block_tables={seq.seq_id: list(seq.block_table) for seq in holders},
            context_lens={seq.seq_id: min(len(seq), len(seq.block_table) * manager.block_size) for seq in holders},
            blocks="".join(manager.block_state(block) for block in range(manager.num_blocks)),
            ref_counts={block: n for block, n in enumerate(manager.ref_counts) if n > 1}))
        self.says.append(says)
        if focus:
            self.focus[step] = focus
        if copied:
            self.copied[step] = copied
        self.eviction_orders[step] = getattr(manager, "eviction_order", list)()


class LiveEngine:
    """An `LLM` or `LLMEngine` that is driven from an explorer.

    Owns a trace of the newest steps, those that others take too; the engine belongs to the caller and stays usable beside
    it, with requests of its own. The size of its cache is fixed: the memory was allocated when it started. `close` stops
    listening and lets go of the engine.
    """

    kind = "engine"

    def __init__(self, llm: Any) -> None:
        self.engine = getattr(llm, "engine", llm)
        self._tokenizer = getattr(llm, "tokenizer", None)
        self._largest_budget = self.scheduler.max_num_batched_tokens
        self._prompts: dict[int, list[int]] = {}
        self.eviction_orders: dict[int, list[int]] = {}  # by step, for those taken here
        self.trace = Trace(max_records=STEPS_KEPT)
        self._recorder = Recorder(self.engine, self.trace)

    def close(self) -> None:
        self._recorder.close()
        self.engine = None

    @property
    def scheduler(self) -> Scheduler:
        scheduler: Scheduler = self.engine.scheduler
        return scheduler

    @property
    def has_unfinished(self) -> bool:
        return self.scheduler.has_unfinished

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        budget = self.scheduler.max_num_batched_tokens
        return {"max_num_batched_tokens": {"value": budget, "low": self.scheduler.max_num_seqs, "high": self._largest_budget}}

    @property
    def prompts(self) -> dict[int, list[int]]:
        """Of every sequence that was met; one that others queued and ran between two looks is not known."""
        self._note_prompts()
        return self._prompts

    def _note_prompts(self) -> None:
        self._prompts |= {s.seq_id: s.prompt_token_ids for s in (*self.scheduler.running, *self.scheduler.waiting)}

    def add(self, prompt: str | int | list[int], max_tokens: int = 8) -> int:
        """Queue a request: a text, token ids, or a number of tokens to stand for a prompt of that length."""
        if isinstance(prompt, str):
            check(self._tokenizer is not None, "prompt", prompt, "token ids for a model without a tokenizer",
                  "pass a list of ints")
            prompt = list(self._tokenizer.encode(prompt)) if self._tokenizer else []
        elif isinstance(prompt, int):
            prompt = [1 + i % 100 for i in range(prompt)]
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        seq: Sequence = self.engine.add_request(prompt, params)
        return seq.seq_id

    def abort(self, seq_id: int) -> None:
        self.engine.abort(seq_id)

    def step(self) -> None:
        self._note_prompts()
        self.engine.step()
        if len(self.trace):
            self.eviction_orders[self.trace[-1].step] = eviction_order(self.scheduler)

    def set(self, **settings: int) -> None:
        """Change the token budget from the next step on."""
        for name, value in settings.items():
            check(name in self.settings, "setting", name, "max_num_batched_tokens", "start an engine with another cache")
            low, high = self.settings[name]["low"], self.settings[name]["high"]
            check(low <= value <= high, name, value, f"from {low}, its max_num_seqs, to {high}, what the engine started with",
                  "start another engine")
            self.scheduler.max_num_batched_tokens = value

    def decode(self, token_id: int) -> str:
        return str(token_id) if self._tokenizer is None else self._tokenizer.decode([token_id])


def source_of(thing: Any) -> Any:
    """What an explorer was given, as a source: a Trace, a Simulation, a Scheduler, an LLM or an LLMEngine.

    Raises ValueError for anything else.
    """
    if isinstance(thing, Trace):
        return Recording(thing)
    if isinstance(thing, Simulation | Recording | LiveEngine):
        return thing
    if hasattr(thing, "block_manager") and hasattr(thing, "schedule"):
        return Simulation.of(thing)
    check(hasattr(getattr(thing, "engine", thing), "attach"), "source", thing,
          "a Trace, Simulation, Scheduler, LLM or LLMEngine", "record a trace with LLM.trace(), or make a Simulation")
    return LiveEngine(thing)


def frames_of(source: Any, eviction: bool = True) -> list[dict[str, Any]]:
    """Every step as plain data, and, of a source that is alive, the state since the last one where it has changed.

    eviction: with the order in which unreferenced blocks will be reused, where the source knows it.
    """
    frames = []
    for record in source.trace:
        frame = {name: getattr(record, name) for name in FIELDS}
        frame["time"], frame["duration"] = round(record.time, 6), round(record.duration, 6)
        if eviction and record.step in source.eviction_orders:
            frame["eviction_order"] = source.eviction_orders[record.step]
        frames.append(frame)
    if scheduler := getattr(source, "scheduler", None):
        now = StepRecord.of_step(scheduler, len(frames), 0.0, 0.0, ScheduledBatch(), [], [])
        queues = ("running", "waiting", "block_tables")
        if not frames or any(frames[-1][name] != getattr(now, name) for name in queues):
            order = {"eviction_order": eviction_order(scheduler)} if eviction else {}
            frames.append({name: getattr(now, name) for name in FIELDS} | {"now": True} | order)
    return frames


def texts_of(source: Any) -> dict[str, Any]:
    """The tokens of every sequence and what they say: {"prompts": {seq_id: ids}, "words": {id: text}}."""
    prompts = source.prompts
    used = {token for tokens in prompts.values() for token in tokens}
    used |= {token for record in source.trace for token in record.tokens.values()}
    return {"prompts": prompts, "words": {token: source.decode(token) for token in sorted(used)} if prompts else {}}

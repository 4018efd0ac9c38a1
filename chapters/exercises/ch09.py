"""Chapter 09: whose row is it, the tensors of a step with prefix hits, and a decode step from the one before it."""

import random
from dataclasses import dataclass
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nanovllm import LLM, SamplingParams
from nanovllm.engine import model_runner
from nanovllm.engine.scheduled_batch import ScheduledSequence
from nanovllm.engine.sequence import Sequence
from nanovllm.engine.step_inputs import Layout

from .verdict import check, require

NAMES = ("input_ids", "positions", "slot_mapping", "cu_seqlens_q", "context_lens", "block_tables", "last_rows")


def random_items(seed: int, block_size: int, count: int = 4) -> list[ScheduledSequence]:
    """What a scheduler might hand over: decodes first, then prompts, whole, in chunks, and behind cached prefixes."""
    draw = random.Random(seed)
    free = draw.sample(range(200), 200)
    items = []
    for seq_id in range(count):
        num_prompt = draw.randrange(1, 5 * block_size + 1)
        seq = Sequence(seq_id, [draw.randrange(1000) for _ in range(num_prompt)])
        kind = draw.choice(["decode", "prompt", "chunk", "hit", "full hit"])
        start, num_tokens = 0, num_prompt
        if kind == "decode":
            seq.token_ids += [draw.randrange(1000) for _ in range(draw.randrange(1, 6))]
            start, num_tokens = len(seq) - 1, 1
        elif kind == "chunk":
            start = draw.randrange(num_prompt)
            num_tokens = draw.randrange(1, num_prompt - start + 1)
        elif kind == "hit":
            seq.num_cached_tokens = start = (num_prompt - 1) // block_size * block_size
            num_tokens = num_prompt - start
        elif kind == "full hit":  # all of it lies in shared blocks: one token is computed again for its logits, not stored
            whole = max(1, num_prompt // block_size) * block_size
            seq = Sequence(seq_id, [draw.randrange(1000) for _ in range(whole)])
            seq.num_cached_tokens, start, num_tokens = whole, whole - 1, 1
        seq.block_table = [free.pop() for _ in range(-(-(start + num_tokens) // block_size))]
        items.append(ScheduledSequence(seq, start, num_tokens, kind))
    return sorted(items, key=lambda item: item.num_tokens > 1)


def steady_items(count: int, length: int, num_tokens: int, block_size: int) -> list[ScheduledSequence]:
    """`count` sequences of `length` tokens, each of which computes its last `num_tokens`."""
    per_seq = -(-length // block_size)
    seqs = [Sequence(i, [7] * length) for i in range(count)]
    for seq in seqs:
        seq.block_table = list(range(per_seq * seq.seq_id, per_seq * (seq.seq_id + 1)))
    return [ScheduledSequence(seq, length - num_tokens, num_tokens, "for measuring") for seq in seqs]


def with_loops(items: list[ScheduledSequence], block_size: int) -> dict[str, np.ndarray]:
    """The solution of the core exercise, its lists made into arrays: what the package's `Layout.of` is measured against."""
    from .solutions.ch09 import prepare

    return {name: np.array(value) for name, value in prepare(items, block_size).items()}


@dataclass
class PlainSequence:
    """What the core exercise's `prepare` may know of a sequence."""

    token_ids: list[int]
    block_table: list[int]
    num_cached_tokens: int

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass
class PlainItem:
    """A scheduled piece of a PlainSequence."""

    seq: PlainSequence
    start: int
    num_tokens: int
    samples: bool


def plain_items(items: list[ScheduledSequence]) -> list[PlainItem]:
    return [PlainItem(PlainSequence(list(i.seq.token_ids), list(i.seq.block_table), i.seq.num_cached_tokens), i.start,
                      i.num_tokens, i.samples) for i in items]


class CountsOperations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def told(items, block_size: int) -> str:
    """The batch in words, for hints."""
    return f"blocks of {block_size}; " + "; ".join(
        f"positions {i.start} to {i.start + i.num_tokens - 1} of {len(i.seq)} tokens, {i.seq.num_cached_tokens} cached, "
        f"table {i.seq.block_table}" for i in items)


@check("whose row is it")
def check_owner(owner):
    """owner(row, cu_seqlens_q, context_lens) -> (which sequence, which position of it) the row of input_ids belongs to."""
    rows = 0
    for seed in range(40):
        items = random_items(seed, 4)
        layout = Layout.of(items, 4)
        for row in range(len(layout.input_ids)):
            which = int(np.searchsorted(layout.cu_seqlens_q, row, side="right")) - 1
            right = which, int(layout.positions[row])
            got = owner(row, layout.cu_seqlens_q.tolist(), layout.context_lens.tolist())
            rows += 1
            hint = (f"row {row}, cu_seqlens_q {layout.cu_seqlens_q.tolist()}, context_lens {layout.context_lens.tolist()}: "
                    f"{right}, not {got}.")
            if got[0] != which:
                hint += f" Rows {layout.cu_seqlens_q[which]} to {layout.cu_seqlens_q[which + 1] - 1} are sequence {which}'s."
            elif got[1] == row - layout.cu_seqlens_q[which]:
                hint += " That counts from the first token of this step; the sequence began earlier."
            require(tuple(got) == right, hint)
    return f"{rows} rows of 40 steps"


@check("a step with prefix hits")
def check_prepare(prepare):
    """prepare(items, block_size) -> a dict of the seven tensors, as lists or arrays."""
    for seed in range(120):
        block_size = (1, 4, 16)[seed % 3]
        items = random_items(seed, block_size, count=1 + seed % 5)
        right = Layout.of(items, block_size)
        got = prepare(plain_items(items), block_size)
        where = told(items, block_size)
        for name in NAMES:
            require(isinstance(got, dict) and name in got, f"prepare should return a dict with {', '.join(NAMES)}.")
            mine, theirs = _plain(got[name]), getattr(right, name).tolist()
            if name == "block_tables":  # how it is padded is the reader's affair
                lens = [len(i.seq.block_table) for i in items]
                short = [i for i, (row, n) in enumerate(zip(mine, lens)) if len(row) < n]
                require(len(mine) == len(items) and not short, f"{where}: a row of block_tables for each sequence, as long as "
                                                               f"its table at least; yours are {mine}.")
                require(len({len(row) for row in mine}) <= 1,
                        f"{where}: block_tables is a rectangle; pad the short rows with 0.")
                mine, theirs = ([row[:n] for row, n in zip(rows, lens)] for rows in (mine, theirs))
            require(mine == theirs, f"{where}: {name} should be {theirs}, not {mine}.{_hint(name, mine, theirs, items)}")
    return "120 steps, with blocks of 1, 4 and 16: decodes, chunks, prefix hits and prompts that are cached as a whole"


def _plain(value) -> list:
    return value.tolist() if hasattr(value, "tolist") else [list(v) if hasattr(v, "__iter__") else int(v) for v in value]


def _hint(name: str, mine, theirs, items) -> str:
    if name == "input_ids" and len(mine) > len(theirs):
        return " What was computed before, or found cached, is not computed again: begin at item.start."
    if name == "positions" and mine == list(range(len(theirs))):
        return " Positions count within each sequence, not along the row."
    if name == "slot_mapping" and len(mine) == len(theirs) and all(b in (a, -1) for a, b in zip(mine, theirs)):
        return " A position below num_cached_tokens lies in a shared block: it gets -1 and is not stored."
    if name == "context_lens" and mine == [item.num_tokens for item in items]:
        return " A query sees the keys of all earlier tokens too, not of this step's alone."
    if name == "last_rows" and len(mine) > len(theirs):
        return " From a chunk that does not reach its sequence's last token nothing is drawn (item.samples)."
    return ""


def serve_with(prepare, prompts) -> str:
    """Serve `prompts` with the reader's `prepare` where the model runner lays out its steps; the texts must be the same."""

    def of(items, block_size):
        tensors = prepare(items, block_size)
        dtypes = {"input_ids": np.int64, "positions": np.int64, "slot_mapping": np.int64, "last_rows": np.int64}
        arrays = {name: np.array(_plain(tensors[name]), dtypes.get(name, np.int32)) for name in NAMES}
        return SimpleNamespace(**arrays, pending=np.zeros(0, np.int64), pending_ids=[])

    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    texts = []
    for layout in (Layout, SimpleNamespace(of=of)):
        with mock.patch.object(model_runner, "Layout", layout), \
                LLM(kvcache_block_size=8, num_kvcache_blocks=64, max_num_batched_tokens=24, async_scheduling=False,
                    enforce_eager=True) as llm:
            texts.append([])
            for _ in range(2):  # the second time every prompt is cached
                seqs = [llm.engine.add_request(prompt, params) for prompt in prompts]
                while llm.engine.has_unfinished:
                    llm.engine.step()
                    llm.engine.check_integrity()
                texts[-1] += [seq.output_token_ids for seq in seqs]
            hits = sum(seq.num_hit_tokens for seq in seqs)
    if texts[0] != texts[1]:
        raise RuntimeError("the engine served other texts with your tensors than with the finished ones")
    return (f"{len(texts[0])} requests served from your tensors, {hits} prompt tokens found cached the second time: "
            "the same texts")


@check("a decode step from the one before it")
def check_next_step(next_step):
    """next_step(drawn, positions, block_tables, block_size) -> (input_ids, positions, slot_mapping, context_lens), tensors."""
    steps = 0
    for seed in range(30):
        draw = random.Random(seed)
        block_size = draw.choice([1, 4, 16])
        seqs = [Sequence(i, [draw.randrange(1000) for _ in range(draw.randrange(1, 3 * block_size + 1))]) for i in range(4)]
        for i, seq in enumerate(seqs):
            seq.block_table = [8 * i + block for block in draw.sample(range(8), 8)]
        items = [ScheduledSequence(seq, len(seq) - 1, 1, "decode") for seq in seqs]
        layout = Layout.of(items, block_size)
        positions = torch.from_numpy(layout.positions)
        for _ in range(min(12, 4 * block_size)):
            if any(len(seq) + 1 > 8 * block_size for seq in seqs):
                break
            drawn = [draw.randrange(1000) for _ in seqs]
            for seq, token in zip(seqs, drawn):
                seq.append_token(token)
            right = Layout.of([ScheduledSequence(seq, len(seq) - 1, 1, "decode") for seq in seqs], block_size)
            tables = torch.from_numpy(right.block_tables)
            got = next_step(torch.tensor(drawn), positions.clone(), tables.clone(), block_size)
            where = f"blocks of {block_size}, positions {positions.tolist()}, tables {[s.block_table for s in seqs]}"
            require(isinstance(got, tuple) and len(got) == 4, "four tensors are wanted, in the order of the text.")
            for name, mine in zip(("input_ids", "positions", "slot_mapping", "context_lens"), got):
                theirs = getattr(right, name).tolist()
                hint = f"{where}: {name} should be {theirs}, not {mine.tolist()}."
                if name == "slot_mapping":
                    hint += " The next slot is the neighbour only inside a block."
                elif name == "context_lens" and mine.tolist() == right.positions.tolist():
                    hint += " A token sees itself, too."
                elif name == "input_ids":
                    hint += " What was drawn is what is fed in."
                require(mine.tolist() == theirs, hint)
            positions, steps = torch.from_numpy(right.positions), steps + 1
    counts = [_operations_without_numbers(next_step, rows) for rows in (3, 48)]
    require(counts[0] == counts[1], f"for 3 rows it takes {counts[0]} operations, for 48 rows {counts[1]}: that is a loop over "
                                    "the rows. One operation must do all of them.")
    return f"{steps} decode steps, over many block boundaries, in {counts[0]} operations whatever the number of rows"


def _operations_without_numbers(next_step, rows: int) -> int:
    """How many operations it takes on tensors of the meta device, which have shapes and no numbers to look at."""
    shapes = (((rows,), torch.int64), ((rows,), torch.int64), ((rows, 8), torch.int32))
    with CountsOperations() as operations:
        try:
            next_step(*(torch.zeros(shape, dtype=dtype, device="meta") for shape, dtype in shapes), 4)
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            require(False, "the numbers are right, but it looks at them on the way (int(), .item(), .tolist() or a copy to the "
                           f"host), and so waits for the device. On tensors without numbers: {str(error).splitlines()[0]}")
    return operations.count


def check_same_as_layout(lay_out, steps: int = 200) -> str:
    """The chapter's loops beside the package's arrays, on random steps. Raises when they part."""
    tokens = 0
    for seed in range(steps):
        block_size = (1, 4, 16)[seed % 3]
        items = random_items(seed, block_size)
        mine, theirs = lay_out(items, block_size), Layout.of(items, block_size)
        for name in NAMES:
            if _plain(mine[name]) != getattr(theirs, name).tolist():
                raise ValueError(f"step {seed}, {name}: {_plain(mine[name])} here, {getattr(theirs, name).tolist()} in Layout")
        tokens += len(theirs.input_ids)
    return f"{steps} random steps, {tokens:,} tokens: the same seven tensors"

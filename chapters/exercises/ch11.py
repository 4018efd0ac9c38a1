"""Chapter 11: buffers filled in place, buckets for every size, and a draw that survives being recorded."""

import ast
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor

from nanovllm import LLM, SamplingParams
from nanovllm.engine import cuda_graphs
from nanovllm.engine.cuda_graphs import DecodeGraphs
from nanovllm.layers.attention_backends import TorchBackend

from .device import DEVICE, milliseconds  # noqa: F401 (the chapter measures with it)
from .tape import Tape
from .timelines import queue, timelines  # noqa: F401 (the chapter draws them)
from .verdict import Wrong, check, require


class FixedShapes(TorchBackend):
    """The torch backend, with decode steps in operations whose shapes do not depend on lengths: what a graph can hold.

    Every row gathers all blocks that its table has room for, and the mask hides what is not its own. A slot of -1 is
    Python's last one: the cache must have a block at its end that nobody else uses.
    """

    name = "fixed shapes"

    def store(self, k, v, k_cache, v_cache, slot_mapping):
        for cache, new in ((k_cache, k), (v_cache, v)):
            cache.view(-1, *new.shape[1:])[slot_mapping] = new

    def attend(self, q, k_cache, v_cache, context, scale):
        if context.max_seqlen_q > 1:
            return super().attend(q, k_cache, v_cache, context, scale)
        tables = context.block_tables.long()
        k, v = (cache[tables].flatten(1, 2) for cache in (k_cache, v_cache))  # [rows, room, num_kv_heads, head_dim]
        hidden = torch.arange(k.shape[1], device=q.device) >= context.context_lens[:, None]
        scores = torch.einsum("nhgd,nlhd->nhgl", q.unflatten(1, (k.shape[2], -1)), k) * scale
        weights = scores.masked_fill(hidden[:, None, None], -1e30).softmax(-1)
        return torch.einsum("nhgl,nlhd->nhgd", weights, v).flatten(1, 2)


def with_fixed_shapes(**settings) -> LLM:
    """A small engine whose decode steps can be recorded on any device."""
    llm = LLM(**dict(kvcache_block_size=16, num_kvcache_blocks=160, max_model_len=96, max_num_seqs=20, dtype="float32",
                     attention_backend="torch", enable_prefix_caching=False) | settings)
    runner = llm.engine.model_runner
    for layer in runner.model.model.layers:
        layer.self_attn.attn.backend = FixedShapes()
    # The block manager does not know of the last block.
    runner.kv_cache = runner.cache_shape.allocate(runner.num_blocks + 1, runner.device)
    return llm


def random_rows(graphs: DecodeGraphs, num_rows: int, draw: torch.Generator) -> None:
    """Fill the rows as if so many sequences of random lengths were decoding, and the cache with random numbers."""
    state, room = graphs.state, graphs.max_model_len
    blocks = torch.randperm(graphs._kv_cache.shape[2] - 1, generator=draw)
    graphs._kv_cache.copy_(torch.randn(graphs._kv_cache.shape, generator=draw))
    state.cached.fill_(-1)
    state.cached[:num_rows] = torch.randint(0, room - 1, (num_rows,), generator=draw).int().to(state.cached.device)
    state.stored_from.zero_()
    state.temperatures[:num_rows] = torch.tensor([0.0, 0.8]).repeat(num_rows)[:num_rows].to(state.cached.device)
    state.seeds.copy_(torch.arange(len(state.seeds)))
    state.drawn.copy_(torch.randint(0, 500, state.drawn.shape, generator=draw))
    for row, table in zip(range(num_rows), blocks.split(state.block_tables.shape[1])):
        state.block_tables[row, :len(table)] = table.int().to(state.cached.device)


def check_same_as_step(graphs: DecodeGraphs, count: int = 12) -> str:
    """Replays beside the package's step, on the same random rows. Raises when tokens or scores differ."""
    with torch.inference_mode():
        return _same_as_step(graphs, count)


def _same_as_step(graphs: DecodeGraphs, count: int) -> str:
    draw, sizes = torch.Generator().manual_seed(11), sorted(graphs._graphs)
    for i in range(count):
        size = sizes[i % len(sizes)]
        num_rows = max(1, min(size - i % 3, len(graphs._kv_cache[0, 0]) // graphs.state.block_tables.shape[1]))
        random_rows(graphs, num_rows, draw)
        fields = [getattr(graphs.state, name) for name in graphs.state.__slots__]
        before = [t.clone() for t in fields]
        logits = graphs._step(size)[:num_rows].clone()
        drawn = graphs.state.drawn[:num_rows].tolist()
        for t, old in zip(fields, before):
            t.copy_(old)
        graph, replayed = graphs._graphs[size]
        graph.replay()
        if graphs.state.drawn[:num_rows].tolist() != drawn or not torch.allclose(replayed[:num_rows], logits, atol=1e-4):
            raise ValueError(f"batch {i}, {num_rows} rows in a graph of {size}: the replay differs")
    return f"{count} random batches in graphs of {sizes}: the same tokens, the same scores"


def held_bytes(tape: Tape) -> int:
    """Bytes of the results that a recording keeps alive, each piece of memory counted once."""
    storages = {}
    for op, args, _, out in tape.launches:
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor) and not op._schema.is_mutable and t.untyped_storage().data_ptr() not in given:
                storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
    return sum(storages.values())


def docstring(module: str, name: str) -> str:
    """A class's docstring, read from its file: nothing is imported, since that may need Triton."""
    tree = ast.parse(Path(find_spec(module).origin).read_text(encoding="utf-8"))
    return next(ast.get_docstring(node) for node in tree.body if getattr(node, "name", None) == name)


def new_buffers(size: int, max_blocks: int) -> SimpleNamespace:
    """Fixed tensors of a batch of `size` rows, all of them empty."""
    def zeros(*shape):
        return torch.zeros(*shape, dtype=torch.int64, device=DEVICE)

    return SimpleNamespace(input_ids=zeros(size), positions=zeros(size), slot_mapping=zeros(size) - 1, context_lens=zeros(size),
                           block_tables=zeros(size, max_blocks))


BLOCK_SIZE = 4
BATCHES = [[(11, 5, [3, 1]), (12, 2, [0]), (13, 9, [4, 2, 6])], [(21, 6, [3, 1])], [(31, 7, [3, 1]), (32, 3, [5])],
           [(41, 0, [7]), (42, 4, [5, 0]), (43, 1, [2]), (44, 2, [6])]]


@check("fill the buffers")
def check_fill(fill):
    """fill(buffers, rows): write each (token, position, block table) into the fixed tensors, and empty the rows beyond."""
    buffers = new_buffers(4, 3)
    cache = torch.zeros(9 * BLOCK_SIZE, dtype=torch.int64, device=DEVICE)  # the last block takes what slot -1 writes
    with Tape() as tape:
        cache[buffers.slot_mapping] = buffers.input_ids
        seen = buffers.context_lens + 0
        first = buffers.block_tables[:, 0] + 0
        positions = buffers.positions + 0
    for number, rows in enumerate(BATCHES):
        case = f"batch {number}, {len(rows)} of 4 rows: "
        before = {name: t.data_ptr() for name, t in vars(buffers).items()}
        fill(buffers, [(token, position, list(table)) for token, position, table in rows])
        moved = [name for name, at in before.items() if getattr(buffers, name).data_ptr() != at]
        require(not moved, case + f"`{', '.join(moved)}` is another tensor now. The graph goes on reading from the old one: "
                                  "write into it, with `[...] =` or `copy_`.")
        cache.zero_()
        tape.replay()
        written = {slot: token for slot, token in enumerate(cache[:-BLOCK_SIZE].tolist()) if token}
        wanted = {table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE: token for token, position, table in rows}
        stray = sorted(set(written) - set(wanted))
        slots = buffers.slot_mapping.tolist()
        padding = [row for row in range(len(rows), 4) if slots[row] != -1]
        hint = f"slot_mapping is {slots}."
        if padding and slots[padding[0]] == 0:
            hint += f" Row {padding[0]} is padding, and slot 0 belongs to a sequence: a slot that is not to be written is -1."
        elif padding:
            hint += f" Row {padding[0]} is left over from an earlier batch, and writes into a block that it has given back."
        elif stray or written != wanted:
            hint += f" The tokens should go to slots {sorted(wanted)}."
        require(not padding and written == wanted, case + hint)
        lens = [position + 1 for _, position, _ in rows] + [0] * (4 - len(rows))
        require(seen.tolist() == lens, case + f"context_lens should be {lens}, not {seen.tolist()}: a row sees its own token "
                                              "too, and padding sees nothing")
        require(positions.tolist()[:len(rows)] == [position for _, position, _ in rows], case + "positions are wrong")
        require(first.tolist()[:len(rows)] == [table[0] for *_, table in rows], case + "block_tables are wrong")
    return f"{len(BATCHES)} batches through one recorded step: every token in its slot, padding nowhere"


@check("buckets for every size")
def check_capture_sizes(capture_sizes):
    """capture_sizes(max_num_seqs) -> the batch sizes to capture, rising."""
    for cap in (20, 1, 2, 3, 7, 16, 17, 33, 100, 256, 500, 512):
        sizes = list(capture_sizes(cap))
        case = f"max_num_seqs {cap}: {sizes if len(sizes) < 12 else f'[{sizes[0]}, …, {sizes[-1]}]'}"
        require(sizes == sorted(set(sizes)) and all(isinstance(s, int) for s in sizes), case + " is not rising whole numbers")
        over = [s for s in sizes if s > cap]
        require(not over, f"{case}: {over[0] if over else 0} is above the cap. No batch is so large; the rows end at {cap}.")
        missing = [n for n in range(1, cap + 1) if not any(s >= n for s in sizes)]
        require(not missing, f"{case}: {missing[0] if missing else 0} sequences find no graph that holds them")
        require(sizes[0] == 1, f"{case}: one sequence alone, which is when launches hurt most, is padded to {sizes[0]}")
        for n in range(1, cap + 1):
            size = next(s for s in sizes if s >= n)
            allowed = 7 if n < 32 else size // 5
            require(size - n <= allowed, f"{case}: {n} sequences run in a graph of {size}, {size - n} rows of padding; "
                                         f"{allowed} are allowed")
        require(len(sizes) <= 24, f"{case}: {len(sizes)} graphs. Each takes time to capture at the start and memory for ever; "
                                  "24 are enough")
    return f"every batch from 1 to 12 different caps has a graph; {len(sizes)} graphs for {cap} sequences"


def serve_with(capture_sizes, prompts) -> str:
    """Serve twenty requests of different lengths through graphs of the reader's sizes; each must get its own text."""
    params = [SamplingParams(temperature=0, max_tokens=4 + i, ignore_eos=True) for i in range(20)]
    prompts = [prompts[i % len(prompts)] for i in range(20)]
    with with_fixed_shapes(max_num_seqs=20) as llm:
        plain = [out.token_ids for out in llm.generate(prompts, params, use_tqdm=False)]
        with patch.object(cuda_graphs, "batch_sizes", capture_sizes):
            graphs = llm.engine.model_runner.decode_graphs(llm.config, capture=False)
        sizes, launch = set(), graphs.launch

        def counted(items, *args):
            sizes.add(len(items))
            return launch(items, *args)

        graphs.launch = counted
        llm.engine.model_runner.graphs = graphs
        padded = [out.token_ids for out in llm.generate(prompts, params, use_tqdm=False)]
    if padded != plain:
        raise RuntimeError("a text differs from what the request gets without padding")
    return f"batches of {min(sizes)} to {max(sizes)} sequences, padded to your sizes: the same {len(prompts)} texts"


SETTINGS = (  # temperatures and top_k of four rows; a row has 50 logits
    ([0.0, 0.7, 1.3, 0.0], [0, 0, 3, 2]), ([0.9, 0.0, 0.0, 0.5], [1, 1, 0, 40]), ([0.0] * 4, [0, 7, 0, 7]),
    ([1.0] * 4, [2, 5, 0, 10]), ([1.5] * 4, [1000, 50, 49, 1]))


def _choices(logits: Tensor, temperatures: Tensor, top_k: Tensor, noise: Tensor) -> list[int]:
    """What `choose` should return, a row at a time, as one may while nothing is recorded."""
    tokens = []
    for row, t, k, drawn in zip(logits, temperatures.tolist(), top_k.tolist(), noise):
        stays = row >= row.topk(min(k or len(row), len(row))).values[-1]
        tokens.append(int((row / t + drawn).masked_fill(~stays, -torch.inf).argmax() if t else row.argmax()))
    return tokens


@check("a draw that can be recorded")
def check_choose(choose):
    """choose(logits, temperatures, top_k, noise) -> token ids, recorded once and replayed with other numbers."""
    draw = torch.Generator().manual_seed(1)
    logits, noise = (torch.zeros(4, 50, device=DEVICE) for _ in range(2))
    temperatures, top_k = torch.zeros(4, device=DEVICE), torch.zeros(4, dtype=torch.int64, device=DEVICE)
    given = {"logits": logits, "temperatures": temperatures, "top_k": top_k, "noise": noise}

    def new_numbers() -> list[int]:
        logits.copy_(torch.randn(4, 50, generator=draw))
        noise.copy_(-torch.log(-torch.log(torch.rand(4, 50, generator=draw))))
        return _choices(**given)

    def turn_to(case: list[float], ks: list[int]) -> None:
        temperatures.copy_(torch.tensor(case))
        top_k.copy_(torch.tensor(ks))

    for case, ks in 12 * SETTINGS:
        turn_to(case, ks)
        right = new_numbers()
        got = choose(*(tensor.clone() for tensor in given.values()))
        require(isinstance(got, Tensor) and got.shape == (4,), f"four rows make four token ids, [4]; yours is {got!r}")
        hint = f"{_settings(temperatures, top_k)}: tokens {right}, not {got.tolist()}."
        wrong = [row for row in range(4) if got[row] != right[row]]
        if wrong and temperatures[wrong[0]] == 0:
            hint += " A temperature of 0 means the highest logit, and must not be divided by."
        elif wrong and top_k[wrong[0]] == 0:
            hint += " A top_k of 0 takes nothing out."
        elif wrong:
            hint += f" Row {wrong[0]}: the top_k highest logits take part, all of them where there are no more, and no others."
        require(not wrong, hint)
    turn_to(*SETTINGS[0])
    kept = [tensor.clone() for tensor in given.values()]
    try:
        with Tape() as tape:
            token_ids = choose(**given)
    except RuntimeError as error:
        raise Wrong(f"{error}. Let every row take both answers, and let a tensor choose between them.") from None
    changed = [name for (name, tensor), old in zip(given.items(), kept) if not tensor.equal(old)]
    require(not changed, f"`{'`, `'.join(changed)}` is not yours to change: the next step needs it")
    for case, ks in SETTINGS:
        turn_to(case, ks)
        right = new_numbers()
        tape.replay()
        require(token_ids.tolist() == right, f"replayed with {_settings(temperatures, top_k)}: tokens {right}, not "
                f"{token_ids.tolist()}. Your code decided something while it was recorded; only tensors decide later.")
    return f"recorded once in {len(tape.kernels())} launches, replayed with {len(SETTINGS)} other batches"


def _settings(temperatures: Tensor, top_k: Tensor) -> str:
    return f"temperatures {[round(t, 1) for t in temperatures.tolist()]} and top_k {top_k.tolist()}"

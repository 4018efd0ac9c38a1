"""Chapter 08: joining shares of a softmax, paged decode in PyTorch, and the same as a Triton kernel."""

import inspect
import json
import os
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Whoever imports Triton first decides how its kernels run: without a GPU they must be interpreted.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from nanovllm import LLM, SamplingParams
from nanovllm.layers.attention import AttentionBackend
from nanovllm.layers.attention_backends import TorchBackend, TritonBackend

from . import no_triton
from .attention_steps import Step, random_steps
from .device import DEVICE, milliseconds  # noqa: F401 (the chapter measures with it)
from .tables import Table
from .verdict import Wrong, check, require

HAS_TRITON = find_spec("triton") is not None
if not HAS_TRITON:
    no_triton.install()


def check_same_as_backends(backend: AttentionBackend, count: int = 12) -> str:
    """The chapter's backend beside the package's on the same random steps. Raises when they differ."""
    others = {"torch": (TorchBackend(), 12)}
    if HAS_TRITON:
        others["triton"] = TritonBackend(), 12 if DEVICE.type == "cuda" else 3
    worst, words = 0.0, []
    for name, (other, most) in others.items():
        for step in random_steps(min(count, most)):
            mine, theirs = step.through(backend), step.through(other)
            if not torch.allclose(mine, theirs, atol=2e-5, rtol=1e-4):
                raise ValueError(f"differs from {name} by {(mine - theirs).abs().max():.2g}")
            worst = max(worst, float((mine - theirs).abs().max()))
        words.append(f"{min(count, most)} steps as {name}")
    return f"{' and '.join(words)}; no number differs by more than {'1e-5' if worst < 1e-5 else f'{worst:.0e}'}"


def put_into(llm: LLM, backend: AttentionBackend) -> None:
    """Let every layer of a running engine attend with `backend`. (An engine with the `torch` backend: its model is plain.)"""
    for layer in llm.engine.model_runner.model.model.layers:
        layer.self_attn.attn.backend = backend


def attention_on_a_gpu() -> tuple[str, list[dict]]:
    """Rows of benchmarks/attention.py and where they were measured: on the GPU here, or else in the latest recorded run."""
    if DEVICE.type == "cuda":
        from benchmarks.attention import measure

        return f"measured now on {torch.cuda.get_device_name()}", measure()
    files = sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("*-attention.json"))
    results = max((json.loads(file.read_text(encoding="utf-8")) for file in files), key=lambda results: results.get("date", ""))
    when = f"{results.get('date', 'date not noted')}, commit {results.get('commit', 'not noted')}"
    label = f"recorded on {results['device']}, {when}, torch {results['torch']}; a copy reached {results['copy TB/s']:.2f} TB/s"
    return label, results["rows"]


def attention_table(label: str, rows: list[dict], unit: str) -> Table:
    """The rows of `attention_on_a_gpu` that are judged in `unit`, TB/s or TFLOP/s: one line per work, a pair of columns per
    backend."""
    chosen = [row for row in rows if unit in row]
    backends = list(dict.fromkeys(row["backend"] for row in chosen))
    cells = []
    for work in dict.fromkeys(row["work"] for row in chosen):
        by = {row["backend"]: row for row in chosen if row["work"] == work}
        cells.append([work, *(float(by[name][key]) if name in by else None for key in ("ms", unit) for name in backends)])
    header = ["work", *(f"{name} ({key})" for key in ("ms", unit) for name in backends)]
    return Table(header, cells, label[0].upper() + label[1:] + ".")


def _softmax_part(scores: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    highest = scores.max(-1).values
    weights = (scores - highest[:, None]).exp()
    return highest, weights.sum(-1), weights @ v


@check("join the shares")
def check_join(join):
    """join(parts) -> [rows, dim]: the attention over all keys from (highest, total, acc) of each share of them."""
    draw = torch.Generator().manual_seed(0)
    cases = [([5, 3], 1.0), ([7], 1.0), ([1, 1, 1, 12], 1.0), ([4, 4], 60.0), ([2, 9, 6], 60.0)]
    for counts, spread in cases:
        scores = spread * torch.randn(3, sum(counts), generator=draw)
        v = torch.randn(sum(counts), 4, generator=draw)
        parts = [_softmax_part(s, x) for s, x in zip(scores.split(counts, 1), v.split(counts))]
        right = scores.softmax(-1) @ v
        got = join([tuple(t.clone() for t in part) for part in parts])
        require(got.shape == right.shape, f"shares of {counts} keys: the shape is {tuple(right.shape)}, not {tuple(got.shape)}")
        hint = f"shares of {counts} keys, scores up to {scores.max():.0f}: off by {(got - right).abs().max():.2g}."
        outs = [acc / total[:, None] for _, total, acc in parts]
        if bool(got.isnan().any() or got.isinf().any()):
            hint = (f"shares of {counts} keys, scores up to {scores.max():.0f}: not a number. e to such a score overflows; "
                    "subtract the highest of all shares first.")
        elif torch.allclose(got, torch.stack(outs).mean(0), atol=1e-5):
            hint += " That is the plain mean of the shares, as if each held the same part of the softmax."
        elif torch.allclose(got, sum(acc for *_, acc in parts) / sum(total for _, total, _ in parts)[:, None], atol=1e-5):
            hint += " The sums are added as they are, though each is relative to another highest score."
        require(torch.allclose(got, right, atol=1e-5), hint)
    empty = (torch.full((3,), -torch.inf), torch.zeros(3), torch.zeros(3, 4))
    require(torch.allclose(join([*parts, empty]), right, atol=1e-5), "a share without keys (highest -inf, total 0, acc 0) must "
                                                                       "change nothing")
    return f"{len(cases)} ways to share out the keys of three queries, and a share without keys"


class LargestTensor(TorchDispatchMode):
    """Notes the most numbers that any newly made tensor held."""

    def __init__(self, *known: Tensor):
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in self.known:
            self.numbers = max(self.numbers, out.numel())
        return out


def _attention_of(step: Step, row: int) -> Tensor:
    """One decode's answer by way of the whole matrix: [num_heads, dim]."""
    length = int(step.context.context_lens[row])
    blocks = step.context.block_tables[row].long()
    k, v = (cache[blocks].flatten(0, 1)[:length].double() for cache in (step.k_cache, step.v_cache))
    group = step.q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(group, 1) for t in (k, v))
    weights = (torch.einsum("hd,lhd->hl", step.q[row].double(), k) * step.scale).softmax(-1)
    return torch.einsum("hl,lhd->hd", weights, v).float()


def stored(sequences, **shape) -> Step:
    """A step of decodes whose new keys and values are in the cache already."""
    step = Step(sequences, **shape)
    TorchBackend().store(step.k, step.v, step.k_cache, step.v_cache, step.context.slot_mapping)
    return step


def _compare(got: Tensor, step: Step, row: int) -> None:
    """End the check, with a hint from what the wrong answer looks like, unless `got` is right."""
    right, length, block_size = _attention_of(step, row), int(step.context.context_lens[row]), step.k_cache.shape[1]
    if torch.allclose(got, right, atol=2e-5):
        return
    blocks = step.context.block_tables[row, :-(-length // block_size)].tolist()
    case = f"{length} keys in blocks {blocks} of {block_size} slots, {step.q.shape[1]} heads on {step.k.shape[1]}"
    if bool(got.isnan().any()):
        raise Wrong(f"{case}: not a number. Slots that were never written hold NaN here, and 0 times NaN is NaN: read no "
                    f"further than key {length - 1}, in the last block too.")
    wrong = [head for head in range(len(right)) if not torch.allclose(got[head], right[head], atol=2e-5)]
    hint = f"{case}: head {wrong[0]} is off by {(got[wrong[0]] - right[wrong[0]]).abs().max():.2g}."
    if len(wrong) < len(right) and step.q.shape[1] != step.k.shape[1]:
        hint += f" Heads {[h for h in range(len(right)) if h not in wrong]} are right: whose keys does head {wrong[0]} read?"
    raise Wrong(hint)


@check("paged decode")
def check_paged_decode(paged_decode):
    """paged_decode(q [heads, dim], k_cache, v_cache, block_table, length, scale) -> [heads, dim], block by block."""
    count = 0
    for lengths, shape in (([1, 9, 4], {}), ([23, 8], {"num_heads": 6}), ([70], {"block_size": 16}), ([5], {"block_size": 1})):
        step = stored([(1, n) for n in lengths], seed=count, **shape)
        for row, length in enumerate(lengths):
            got = paged_decode(step.q[row], step.k_cache, step.v_cache, step.context.block_tables[row], length, step.scale)
            require(isinstance(got, Tensor) and got.shape == step.q[row].shape,
                    f"the answer has the shape of q, {tuple(step.q[row].shape)}; yours is {getattr(got, 'shape', got)}")
            _compare(got, step, row)
            count += 1
    step = stored([(1, 400)], seed=9)
    largest = LargestTensor(step.k_cache, step.v_cache)
    with largest:
        got = paged_decode(step.q[0], step.k_cache, step.v_cache, step.context.block_tables[0], 400, step.scale)
    keys = 400 * step.k.shape[1] * step.k.shape[2]
    require(largest.numbers < keys / 4,
            f"400 keys: right, but a tensor of {largest.numbers:,} numbers was made on the way, and all keys together are "
            f"{keys:,}. Visit one block after the other and fold it in.")
    _compare(got, step, 0)
    return f"{count} sequences, and 400 keys without a tensor of more than {largest.numbers} numbers"


class _Decoding(TorchBackend):
    """The torch backend with somebody else's decode."""

    name = "yours"

    def __init__(self, paged_decode):
        self.paged_decode = paged_decode
        self.decoded = 0

    def attend(self, q, k_cache, v_cache, context, scale):
        out = super().attend(q, k_cache, v_cache, context, scale)
        for row in range(context.num_decodes):
            length = int(context.context_lens[row])
            out[row] = self.paged_decode(q[row], k_cache, v_cache, context.block_tables[row], length, scale)
            self.decoded += 1
        return out


def serve_with(paged_decode, prompts) -> str:
    """Serve `prompts` with the reader's decode in every layer; the texts must be those of the package's."""
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    settings = dict(kvcache_block_size=8, num_kvcache_blocks=64, attention_backend="torch", dtype="float32")
    with LLM(**settings) as llm:
        theirs = [out.token_ids for out in llm.generate(prompts, params, use_tqdm=False)]
        backend = _Decoding(paged_decode)
        put_into(llm, backend)
        mine = [out.token_ids for out in llm.generate(prompts, params, use_tqdm=False)]
    if mine != theirs:
        raise RuntimeError("with your decode the engine writes another text")
    if not backend.decoded:
        raise RuntimeError("your decode was never called")
    return f"{len(prompts)} requests, your decode called {backend.decoded} times: the same texts"


def launch_paged_decode(kernel, step: Step) -> Tensor:
    """Run a kernel with the exercise's arguments over the decodes of a step; [num_seqs, num_heads, dim]."""
    num_seqs, num_heads, dim = step.q.shape
    block_size, num_kv_heads = step.k_cache.shape[1:3]
    out = torch.full_like(step.q, 7.0)
    tables = step.context.block_tables
    kernel[(num_seqs, num_heads)](
        out, step.q, step.k_cache, step.v_cache, tables, step.context.context_lens, tables.stride(0), step.scale,
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, DIM=dim, BLOCK_SIZE=block_size)
    return out


@check("paged decode in Triton")
def check_paged_decode_kernel(paged_decode_kernel):
    """A @triton.jit kernel, launched as (num_seqs, num_heads) programs of one query head each."""
    require(HAS_TRITON, "Triton has no package for this platform, so your kernel cannot be run; try it on Linux")
    source = getattr(paged_decode_kernel, "fn", None)
    require(source is not None, "decorate your function with @triton.jit")
    if "raise NotImplementedError" in inspect.getsource(source):
        raise NotImplementedError
    count = 0
    wide = {"num_heads": 6, "block_size": 2}
    for lengths, shape in (([4], {}), ([1, 11, 6], {}), ([19, 3], wide), ([40], {"block_size": 16})):
        step = stored([(1, n) for n in lengths], seed=20 + count, **shape)
        out = launch_paged_decode(paged_decode_kernel, step)
        for row, length in enumerate(lengths):
            require(not bool((out[row] == 7.0).all(-1).any()),
                    f"sequence {row} of {len(lengths)}, {length} keys: a head's row of `out` was never written")
            _compare(out[row], step, row)
            count += 1
    where = "on the GPU" if DEVICE.type == "cuda" else "in the interpreter"
    return f"{count} sequences of 1 to 40 keys, {where}"

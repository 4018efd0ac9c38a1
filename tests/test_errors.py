"""The tree of errors: what its docstring draws, what is exported, and that each kind is raised by what it is for."""

import asyncio
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nanovllm
from nanovllm import LLM, AsyncLLM, SamplingParams, errors
from nanovllm.errors import (
    CheckpointError,
    EngineError,
    InvalidArgument,
    InvalidRequest,
    NanoVLLMError,
    NotFinite,
    QueueFull,
    RequestFailed,
)
from nanovllm.tracing.trace import Trace

from .checkpoints import random_checkpoint

CLASSES = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}
PARAMS = SamplingParams(temperature=0, max_tokens=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("model"), max_position_embeddings=64)


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(folder, device="cpu", kvcache_block_size=4, num_kvcache_blocks=8) as llm:
        yield llm


def drawn_tree() -> dict[str, tuple[str, str | None]]:
    """{class: (its parent, the built-in class in parentheses)}, read from the docstring's drawing."""
    found, path = {}, {}
    for line in errors.__doc__.splitlines():
        if match := re.match(r"( {4}[ │├└─]*)(\w+)(?: \((\w+)\))?(?:  |$)", line):
            depth = (len(match[1]) - 4) // 4
            path[depth] = match[2]
            found[match[2]] = path.get(depth - 1) if depth else None, match[3]
    return found


def test_the_docstring_draws_the_tree_as_it_is():
    drawn = drawn_tree()
    assert set(drawn) == set(CLASSES)
    for name, (parent, builtin) in drawn.items():
        bases = [base.__name__ for base in CLASSES[name].__bases__]
        assert bases == ([base for base in (parent, builtin) if base] or ["Exception"]), name


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "NanoVLLMError"])
def test_each_is_caught_by_who_caught_the_built_in_class(name):
    kind = CLASSES[name]
    assert issubclass(kind, NanoVLLMError)
    assert issubclass(kind, ValueError) != issubclass(kind, RuntimeError)


@pytest.mark.parametrize("name", CLASSES)
def test_each_is_exported(name):
    assert name in nanovllm.__all__ and getattr(nanovllm, name) is CLASSES[name]


def test_the_exported_errors_cost_no_torch():
    program = ("import sys\nfrom nanovllm import InvalidRequest\nfrom nanovllm.sampling_params import SamplingParams\n"
               "try:\n    SamplingParams(top_p=2)\nexcept InvalidRequest:\n    print('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, encoding="utf-8")
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("path", sorted(Path(nanovllm.__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_no_plain_value_error_is_raised(path):
    """But by the server's validators, of which pydantic asks it. A plain RuntimeError is a bug's."""
    if path.parent.name != "server":
        assert "raise ValueError" not in path.read_text(encoding="utf-8")


# ---- each kind, by a real bad input; exactly that class, not one below it


@pytest.mark.parametrize("settings", [
    dict(dtype="int8"), dict(device="tpu"), dict(device=7.5), dict(max_num_seqs=0), dict(gpu_memory_utilization=2),
    dict(attention_backend="xformers"), dict(load_format="gguf"), dict(max_sequences=3), dict(model=7),
    dict(dtype="float32", attention_backend="flash_attn"), dict(tensor_parallel_size=3),
])
def test_a_setting_is_an_invalid_argument(folder, settings):
    with pytest.raises(InvalidArgument) as caught:
        LLM(**{"model": folder, "device": "cpu", "num_kvcache_blocks": 8} | settings)
    assert caught.type is InvalidArgument


def test_arguments_of_other_parts_are_invalid_arguments(llm, tmp_path):
    other = tmp_path / "no_trace.zip"
    other.write_text("{}", encoding="utf-8")
    for call in (lambda: AsyncLLM(llm, max_queued=0), lambda: AsyncLLM(llm, device="cpu"), lambda: Trace(max_records=0),
                 lambda: Trace.load(other)):
        with pytest.raises(InvalidArgument) as caught:
            call()
        assert caught.type is InvalidArgument


@pytest.mark.parametrize("ask", [
    lambda llm: SamplingParams(temperature=-1), lambda llm: SamplingParams(topk=3), lambda llm: SamplingParams(stop=[""]),
    lambda llm: llm.generate([[]], PARAMS), lambda llm: llm.generate([[1] * 64], PARAMS),
    lambda llm: llm.generate([[10**6]], PARAMS), lambda llm: llm.generate([[1] * 30], SamplingParams(max_tokens=30)),
    lambda llm: llm.generate("a text", PARAMS), lambda llm: llm.generate([1, 2], PARAMS), lambda llm: llm.generate(7, PARAMS),
    lambda llm: llm.generate([[1]], [PARAMS] * 2), lambda llm: llm.generate([[1]], PARAMS, priority=1000),
    lambda llm: llm.generate([[1]], "greedy"), lambda llm: llm.generate([[1]], SamplingParams(stop="x")),
    lambda llm: llm.chat([{"role": "user", "content": "hello"}]), lambda llm: llm.stream([[1]], SamplingParams(n=2)),
    lambda llm: llm.engine.add_request([], PARAMS),
])
def test_what_a_request_asks_for_is_an_invalid_request(llm, ask):
    with pytest.raises(InvalidRequest):
        ask(llm)
    assert not llm.engine.has_unfinished


def with_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}), encoding="utf-8")


@pytest.mark.parametrize("spoil", [
    lambda f: (f / "config.json").unlink(), lambda f: (f / "config.json").write_text("{", encoding="utf-8"),
    lambda f: with_config(f, architectures=["LlamaForX"]), lambda f: with_config(f, hidden_size="absent"),
    lambda f: with_config(f, num_hidden_layers=0), lambda f: with_config(f, hidden_act="gelu"),
    lambda f: with_config(f, dtype="int3"), lambda f: with_config(f, rms_norm_eps=7),
    lambda f: with_config(f, rope_parameters={"rope_type": "made_up", "rope_theta": 1e4}),
    lambda f: with_config(f, num_hidden_layers=9),
    lambda f: next(f.glob("*.safetensors")).unlink(), lambda f: next(f.glob("*.safetensors")).write_bytes(b"no weights"),
    lambda f: (f / "tokenizer.json").write_text("{}", encoding="utf-8"),
])
def test_what_a_folder_lacks_is_a_checkpoint_error(tmp_path, spoil):
    folder = random_checkpoint(tmp_path / "model")
    spoil(folder)
    with pytest.raises(CheckpointError, match=re.escape(str(folder)) + "|config|rope|hidden_act|architectures"):
        LLM(folder, device="cpu", num_kvcache_blocks=8)


def test_a_folder_that_is_not_there_is_a_checkpoint_error(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        LLM(tmp_path / "nowhere")


def test_a_cache_that_does_not_fit_and_a_closed_engine_are_engine_errors(folder):
    with pytest.raises(EngineError, match="does not fit on cpu; lower num_kvcache_blocks") as caught:
        LLM(folder, device="cpu", num_kvcache_blocks=2**40)
    assert caught.type is EngineError
    llm = LLM(folder, device="cpu", num_kvcache_blocks=8)
    llm.close()
    with pytest.raises(EngineError, match="it was closed") as caught:
        llm.generate([[1]], PARAMS)
    assert caught.type is EngineError


def test_scores_that_are_not_numbers(folder):
    with LLM(folder, device="cpu", num_kvcache_blocks=8) as llm:
        llm.engine.model_runner.model.lm_head.weight.fill_(float("nan"))
        with pytest.raises(NotFinite, match="not finite"):
            llm.generate([[1, 2]], PARAMS, use_tqdm=False)


def test_a_full_queue_and_a_failed_request(llm):
    async def main():
        async with AsyncLLM(llm, max_queued=1) as served:
            with pytest.raises(QueueFull, match="max_queued=1"):
                await served.generate([1, 2], SamplingParams(n=2, max_tokens=2))
        with pytest.raises(RequestFailed, match="closed"):
            await served.generate([1, 2], PARAMS)

    asyncio.run(main())

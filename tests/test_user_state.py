"""The user's own torch state: the engine computes the same under any, and leaves it as it was."""

import ast
import subprocess
import sys
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

from nanovllm import LLM, SamplingParams

ROOT = Path(__file__).parent.parent
PROMPTS = ["A fox", "Once upon a time there was a hen"]
# Every kind of draw: greedy, drawn, filtered, with bias and penalties, and log-probabilities.
PARAMS = [SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=2, prompt_logprobs=1),
          SamplingParams(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, seed=3, max_tokens=8, ignore_eos=True, min_tokens=3,
                         logit_bias={50: 1.2345678, 60: -1.7}, repetition_penalty=1.234567, presence_penalty=0.3,
                         frequency_penalty=0.1)]


def answers(llm):
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    return [(o.token_ids, [[(t, entry.logprob) for t, entry in step.items()] for step in o.outputs[0].logprobs or ()])
            for o in outputs]


def opened():
    return LLM(device="cpu", num_kvcache_blocks=64)


@pytest.fixture(scope="module")
def llm():
    with opened() as llm:
        yield llm


@pytest.fixture(scope="module")
def expected(llm):
    return answers(llm)


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic(warn_only=False):
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def anomalies():
    with torch.autograd.detect_anomaly():
        yield


STATES = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "autocast of another device": lambda: torch.autocast("cuda", dtype=torch.bfloat16) if torch.cuda.is_available()
    else nullcontext(),
    "default device meta": lambda: default_device("meta"),
    "device block": lambda: torch.device("meta"),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "default dtype float16": lambda: default_dtype(torch.float16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "grad": torch.enable_grad,
    "deterministic": deterministic,
    "anomalies": anomalies,
}


def state():
    return (torch.is_autocast_enabled("cpu"), torch.get_default_device(), torch.get_default_dtype(), torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(),
            torch.get_rng_state().tolist() if torch.get_default_device().type == "cpu" else None,
            torch.get_float32_matmul_precision())


@pytest.mark.parametrize("name", STATES)
def test_a_running_engine_neither_breaks_nor_leaks(llm, expected, name):
    with STATES[name]():
        before = state()
        assert answers(llm) == expected
        assert [piece for _, piece in llm.stream(PROMPTS, PARAMS)]
        assert state() == before
    llm.engine.check_integrity()
    assert answers(llm) == expected


@pytest.mark.parametrize("name", STATES)
def test_an_engine_made_there_works_there_and_elsewhere(expected, name):
    with STATES[name]():
        before = state()
        llm = opened()
        assert state() == before
        assert answers(llm) == expected
    with llm:
        assert answers(llm) == expected
        assert not any(p.requires_grad for p in llm.engine.model_runner.model.parameters())
        with torch.no_grad():
            assert answers(llm) == expected


def test_a_failed_step_leaks_nothing(llm, expected, monkeypatch):
    def failing(*_):
        raise RuntimeError("on purpose")

    with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        before = state()
        with monkeypatch.context() as patch:
            patch.setattr(llm.engine.model_runner, "forward", failing)
            with pytest.raises(RuntimeError):
                llm.generate(PROMPTS, PARAMS, use_tqdm=False)
        assert state() == before
    assert answers(llm) == expected


def test_another_threads_state_is_not_touched_while_the_engine_runs(llm, expected):
    """Default dtype is the whole process's, so that the engine must not even borrow it."""
    seen, stop = set(), threading.Event()

    def watch():
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
            while not stop.is_set():
                seen.add((torch.is_autocast_enabled("cpu"), torch.empty(1).device.type, torch.get_default_dtype()))

    with default_dtype(torch.float64):
        thread = threading.Thread(target=watch)
        thread.start()
        try:
            assert answers(llm) == expected
        finally:
            stop.set()
            thread.join()
    assert seen == {(True, "meta", torch.float64)}


def test_the_number_of_threads_is_the_users(expected):
    code = ("import torch; torch.set_num_threads(2); from nanovllm import LLM, SamplingParams\n"
            "with LLM(device='cpu', num_kvcache_blocks=16) as llm:\n"
            "    llm.generate('A fox', SamplingParams(max_tokens=3), use_tqdm=False)\n"
            "assert torch.get_num_threads() == 2, torch.get_num_threads()")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# What makes it so: no tensor is made of floats without its dtype, as the default is the user's.

FACTORIES = {"empty", "zeros", "ones", "full", "tensor", "rand", "randn", "linspace", "eye", "empty_strided"}


def without_dtype(code):
    found = []
    for node in ast.walk(ast.parse(code)):
        if (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FACTORIES
                and isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
                and not {"dtype", None} & {keyword.arg for keyword in node.keywords}):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "nanovllm").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_tensor_takes_the_users_default_dtype(path):
    assert not without_dtype(path.read_text(encoding="utf-8")), f"{path}: name the dtype"


@pytest.mark.parametrize("code, faults", [
    ("torch.zeros(3)", 1), ("torch.tensor([1.0], device=d)", 1), ("torch.tensor(x)", 1), ("torch.zeros(3, dtype=d)", 0),
    ("torch.empty(3, **factory)", 0), ("x.new_zeros(3)", 0)])
def test_the_check_above_sees_what_it_must(code, faults):
    assert len(without_dtype(code)) == faults

"""What readers build in chapters 06, 07 and 13, in the real model and engine: here the solutions stand in for the reader."""

import pytest
import torch

from chapters.exercises import ch06, ch07, ch13
from chapters.exercises.solutions import ch06 as solved06
from chapters.exercises.solutions import ch07 as solved07
from chapters.exercises.solutions import ch13 as solved13
from nanovllm import LLM, SamplingParams
from nanovllm.layers.layernorm import RMSNorm
from tests.exercises import wrong_ch13

PROMPT = list(range(40, 60))


def test_the_norm_of_chapter_06_changes_no_text_and_the_lean_one_does():
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    with LLM(dtype="float32", attention_backend="torch", enforce_eager=True, num_kvcache_blocks=64) as llm:
        healthy = llm.generate([PROMPT], params, use_tqdm=False)[0].text
    assert ch06.speak_with(solved06.MyNorm, PROMPT, "float32", 12) == healthy
    assert ch06.speak_with(ch06.LeanNorm, PROMPT, "float32", 12) != healthy


def test_norms_are_put_back_after_a_failure_too():
    norm = RMSNorm(4, 1e-6)
    norm.weight.fill_(1)
    with pytest.raises(NotImplementedError), ch06.using_norm(norm, lambda weight, eps: _unwritten):
        norm(torch.ones(1, 4))
    assert torch.allclose(norm(torch.ones(1, 4)), torch.ones(1, 4))


def _unwritten(x, residual=None):
    raise NotImplementedError


def test_the_loader_of_chapter_07_starts_the_engine():
    assert "the engine with your loader" in ch07.serve_with(solved07.load_strictly, PROMPT)


def test_a_loader_that_loads_nothing_is_found_out():
    with pytest.raises(RuntimeError, match="instead of"):
        ch07.serve_with(lambda model, tensors: [p.zero_() for p in model.parameters()], PROMPT)
    assert "the engine with your loader" in ch07.serve_with(solved07.load_strictly, PROMPT)  # ours was put back


def test_the_chapter_is_told_which_accidents_pass_in_silence():
    tensors = ch07.checkpoint(ch07.TIED)
    del tensors["model.norm.weight"]
    assert ch07.complaint(ch07.unfilled(ch07.TIED), tensors).startswith("checkpoint: 1 tensor is missing, ")
    with pytest.raises(ValueError, match="differs"):
        ch07.check_same_as_load_weights(lambda model, tensors: solved07.load_strictly(
            model, ((name, 2 * tensor) for name, tensor in tensors.items())))


def test_the_network_of_chapter_13_changes_no_token_and_one_that_is_cut_wrongly_does():
    assert "13 sums, the same 24 next tokens" in ch13.run_with(solved13.ParallelMLP)
    with pytest.raises(RuntimeError, match="than in the model alone"):
        ch13.run_with(wrong_ch13.CutsThePackedWeight)

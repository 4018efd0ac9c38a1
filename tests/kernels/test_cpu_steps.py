"""Whole steps and draws of the CPU kernels: what the model, its logits and the plain draw say one after the other."""

import os
import shutil

import pytest
import torch

from nanovllm import LLM, SamplingParams
from nanovllm.config import DRAFT_MODEL
from nanovllm.engine import drafts_ahead, short_steps
from nanovllm.kernels.cpu import draw as draw_on_cpu
from nanovllm.kernels.cpu import library
from nanovllm.layers import sampler
from nanovllm.models import fused_cpu
from tests.kernels.test_cpu_kernels import model_and_batch

if not shutil.which(os.environ.get("CXX", "c++")):
    pytest.skip("there is no C++ compiler", allow_module_level=True)


def asked(num_rows, temperatures):
    generator = torch.Generator().manual_seed(num_rows)
    seeds = torch.randint(-2**63, 2**63 - 1, (num_rows,), generator=generator)
    offsets = torch.randint(0, 5000, (num_rows,), generator=generator)
    return torch.tensor(temperatures).repeat(num_rows)[:num_rows], seeds, offsets


@pytest.mark.parametrize("vocab_size", [1, 2, 15, 16, 17, 97, 2560, 151_936])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_draws_are_those_of_the_plain_form(vocab_size, dtype):
    num_rows = 400 if vocab_size < 10_000 else 20
    torch.manual_seed(vocab_size)
    logits = (torch.randn(num_rows, vocab_size + 3) * 3).to(dtype)[:, :vocab_size]  # rows with a gap between them
    asks = asked(num_rows, [0.0, 1.0, 0.3, 2.5, 1e6])
    found = draw_on_cpu.draw(logits, *asks)
    assert torch.equal(found, sampler.draw(logits, *asks))
    assert len(found.unique()) > min(vocab_size, num_rows) / 4


def test_of_equal_scores_the_first_is_drawn_greedily():
    logits = torch.randint(0, 3, (300, 70)).float()
    assert torch.equal(draw_on_cpu.draw(logits, *asked(300, [0.0])), logits.argmax(-1))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("place", [0, 13, 16, 69])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_scores_that_are_no_numbers_draw_nothing(masked, place, value):
    logits, asks = torch.randn(4, 70), asked(4, [0.0, 1.0])
    logits[1:3, place] = float(value)
    logits[3] = float("-inf")
    found = draw_on_cpu.draw(logits, *asks, masked=masked)
    assert torch.equal(found, sampler.draw(logits, *asks, masked=masked))
    assert found[0] >= 0 and found[3] < 0 and (found[1:3] < 0).all() != (masked and value == "-inf")


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("packs", [True, False], ids=["bfloat16 weights", "float32 weights"])
def test_a_step_in_one_call_is_the_same_in_three(dtype, num_threads, packs):
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        sequences = [(1, 17), (5, 9), (1, 130), (2, 9), (90, 95)]
        model, (tokens, positions, cache, context) = model_and_batch("Qwen3", sequences, dtype, packs=packs)
        fused = fused_cpu.FusedCPUModel(model, block_size=16)
        rows = torch.tensor([0, 3, 5, 6, 7, 8, 98])
        own = cache.clone()
        expected = fused.compute_logits(fused(tokens, positions, cache, context)[rows])
        tables = context.block_tables
        batch = library.Batch(len(tokens), len(tables), tables.shape[1], *(t.data_ptr() for t in (
            positions, context.slot_mapping, context.cu_seqlens_q, context.context_lens, tables)))
        draws = library.Draws(input_ids=tokens.data_ptr(), rows=rows.data_ptr(), num_rows=len(rows))
        logits, likeliest = fused.decode(batch, draws, own)
        assert torch.equal(logits, expected) and torch.equal(own, cache) and torch.equal(likeliest, expected.argmax(-1))
    finally:
        torch.set_num_threads(before)


STORY = "Tell me a story about a fox who found a kite in the snow. "
PROMPTS = ["Once upon a time", "A hen and a bell", STORY * 5, "Hi", "One"]
PARAMS = [SamplingParams(temperature=0, max_tokens=40, ignore_eos=True), SamplingParams(seed=3, max_tokens=30, top_p=0.9),
          SamplingParams(temperature=0, max_tokens=20, logprobs=2, prompt_logprobs=1),
          SamplingParams(seed=1, max_tokens=25, repetition_penalty=1.2, n=2), SamplingParams(seed=5, max_tokens=30)]


@pytest.mark.parametrize("settings", [
    {"speculative_config": {"method": "draft_model", "model": str(DRAFT_MODEL), "num_speculative_tokens": 4}},
    {}, {"async_scheduling": False}, {"num_kvcache_blocks": 14}, {"max_num_batched_tokens": 3}, {"dtype": "bfloat16"}], ids=str)
def test_the_engine_says_the_same_with_short_steps_and_without(settings, monkeypatch):
    launched = []
    monkeypatch.setattr(drafts_ahead, "measured_token_cost", lambda *args: 0.03)  # or the numbers of guesses may differ
    launch = short_steps.ShortSteps.launch
    monkeypatch.setattr(short_steps.ShortSteps, "launch", lambda *a, **k: (launched.append(a), launch(*a, **k))[1])

    def texts():
        own = {"device": "cpu", "dtype": "float32", "attention_backend": "cpu", "kvcache_block_size": 16}
        with LLM(**own | settings) as llm:
            outputs = [llm.generate(PROMPTS, PARAMS, use_tqdm=False) for _ in range(2)][1]  # with the prefix cached
            assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks
            drafts = llm.engine.speculation and llm.engine.speculation.counts.by_position  # the same guesses, too
            return [[(sample.token_ids, sample.logprobs) for sample in output.outputs] for output in outputs], drafts

    short = texts()
    assert len(launched) > 30
    monkeypatch.setattr(short_steps, "MOST_TOKENS", 0)
    del launched[:]
    assert texts() == short and not launched


def test_a_sampler_of_ones_own_is_asked():
    seen = []

    def second(logits, batch):
        seen.append(len(logits))
        return logits.topk(2).indices[:, 1]

    with LLM(device="cpu", dtype="float32", attention_backend="cpu", sampler=second) as llm:
        out, = llm.generate(["Once"], SamplingParams(temperature=0, max_tokens=5, ignore_eos=True), use_tqdm=False)
    assert len(seen) == 5 and len(out.token_ids) == 5

"""Drafts made and checked in one graph, on a GPU: the same text in float32, whatever comes together, and memory given back."""

import random

import pytest
import torch

from nanovllm import LLM, SamplingParams
from nanovllm.config import DRAFT_MODEL, OFFLINE_MODEL
from tests.engine.test_draft_graphs import BY_MODEL, KINDS, LOOK_UP, TEXTS, chats

SETTINGS = dict(device="cuda", dtype="float32", max_num_seqs=64)


def launches_of(llm):
    """Steps that the device drafted, counted from now on: how many, and how many of them behind one in flight."""
    graphs, engine, launches = llm.engine.model_runner.draft_graphs, llm.engine, []
    launch = graphs.launch
    graphs.launch = lambda *args: (launches.append(len(engine._in_flight)), launch(*args))[1]
    return launches


@pytest.fixture(scope="module")
def plain():
    with LLM(**SETTINGS) as llm:
        yield llm


@pytest.mark.parametrize("config", [BY_MODEL, LOOK_UP], ids=["draft_model", "ngram"])
@pytest.mark.parametrize("kind", [dict(temperature=0), dict(temperature=1.0), dict(temperature=0.8, top_k=20, top_p=0.9)],
                         ids=str)
def test_the_text_is_the_same_and_the_host_is_a_step_ahead(plain, config, kind):
    params = [SamplingParams(seed=i, max_tokens=40 + 20 * i, ignore_eos=i % 2 == 0, **kind) for i in range(5)]
    expected = [out.token_ids for out in plain.generate(*chats(plain, params), use_tqdm=False)]
    with LLM(speculative_config=config, **SETTINGS) as llm:
        llm.engine.speculation.times, llm.engine.speculation.drafter.cost = None, 0.0  # whether it pays or not
        launches = launches_of(llm)
        for _ in range(2):
            assert [out.token_ids for out in llm.generate(*chats(llm, params), use_tqdm=False)] == expected
            llm.engine.check_integrity()
        assert launches.count(1) > 0.5 * len(launches) >= 10


@pytest.mark.parametrize("times", [True, False])
@pytest.mark.parametrize("config", [BY_MODEL, LOOK_UP], ids=["draft_model", "ngram"])
def test_with_everything_mixed_and_too_few_blocks(config, times):
    rng = random.Random(0)
    kinds = [KINDS[i % len(KINDS)] for i in range(20)] + [KINDS[i % 5] for i in range(20)]
    params = [SamplingParams(max_tokens=rng.randint(1, 60), ignore_eos=rng.random() < 0.5, **kind) for kind in kinds]
    settings = SETTINGS | dict(num_kvcache_blocks=60, kvcache_block_size=4, max_num_batched_tokens=64, max_num_seqs=6, seed=7)

    def texts(**more):
        with LLM(**settings, **more) as llm:
            if more and not times:
                llm.engine.speculation.times, llm.engine.speculation.drafter.cost = None, 0.0
            prompts = [llm.tokenizer.encode(TEXTS[i % len(TEXTS)] * (1 + i % 3))[:40] for i in range(len(params))]
            tokens = [out.token_ids for out in llm.generate(prompts, params, use_tqdm=False)]
            llm.engine.check_integrity()
            assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks
            return tokens

    assert texts(speculative_config=config) == texts()


def test_a_draft_model_of_the_same_weights_is_right_every_time():
    params = [SamplingParams(temperature=1.0, seed=i, max_tokens=100, ignore_eos=True) for i in range(3)]
    with LLM(speculative_config={"model": OFFLINE_MODEL, "num_speculative_tokens": 3}, **SETTINGS) as llm:
        llm.engine.speculation.times, llm.engine.speculation.drafter.cost = None, 0.0
        llm.generate(*chats(llm, params), use_tqdm=False)
        counts = llm.engine.speculation.counts
        assert counts.drafted >= 150 and counts.accepted >= counts.drafted - 9 - 0.02 * counts.drafted, counts


def test_closing_gives_the_memory_back():
    def life() -> tuple[int, int]:
        llm = LLM(speculative_config={"model": DRAFT_MODEL}, num_kvcache_blocks=100, **SETTINGS)
        llm.generate([[1, 2, 3]], SamplingParams(max_tokens=8), use_tqdm=False)
        alive = torch.cuda.memory_reserved()
        llm.close()
        torch.cuda.empty_cache()
        return alive, torch.cuda.memory_reserved()

    (_, first), (alive, second) = life(), life()
    assert second <= first < alive

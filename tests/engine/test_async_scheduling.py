"""The engine that looks ahead generates what the engine that waits does, with a real model and every kind of request."""

import pytest

from nanovllm import LLM, SamplingParams
from tests.checkpoints import random_checkpoint

SHARED = list(range(30, 50))
REQUESTS = [
    (SHARED, SamplingParams(temperature=0, max_tokens=12)),
    (SHARED + [1], SamplingParams(max_tokens=9, seed=1)),
    (SHARED * 3, SamplingParams(max_tokens=15, seed=2, top_k=5, top_p=0.9)),
    ([7], SamplingParams(max_tokens=20, seed=3, min_p=0.05, stop_token_ids=list(range(60, 90)))),
    ([8, 9], SamplingParams(max_tokens=20, seed=4, repetition_penalty=1.5, presence_penalty=0.5, logit_bias={3: 2.0})),
    ([8, 9], SamplingParams(max_tokens=14, seed=5, frequency_penalty=1.0, min_tokens=5, stop_token_ids=list(range(50)))),
    ([5] * 9, SamplingParams(max_tokens=6, seed=6, logprobs=3, prompt_logprobs=2, n=2)),
    ([6] * 40, SamplingParams(max_tokens=1, temperature=0)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(random_checkpoint(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("limits", [{}, {"max_num_batched_tokens": 16, "max_num_seqs": 3}, {"num_kvcache_blocks": 22}],
                         ids=["roomy", "narrow", "short of blocks"])
def test_the_same_outputs_with_and_without_looking_ahead(folder, limits):
    prompts, params = zip(*REQUESTS)
    outputs = {}
    for looks_ahead in (False, True):
        with LLM(folder, device="cpu", kvcache_block_size=4, async_scheduling=looks_ahead, **limits) as llm:
            answers = llm.generate(list(prompts), list(params), use_tqdm=False)
            assert (llm.engine.scheduler.num_preemptions > 0) == ("num_kvcache_blocks" in limits)
            llm.engine.check_integrity()
        outputs[looks_ahead] = [[(o.token_ids, o.finish_reason, len(o.logprobs or [])) for o in a.outputs] for a in answers]
    assert outputs[True] == outputs[False]

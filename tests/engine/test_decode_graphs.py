"""Steps run from device rows, padded as graphs are, draw what steps laid out by the host draw. (The same step in a real
graph: tests/gpu/test_graphs_gpu.py.)"""

import pytest

from nanovllm import LLM, SamplingParams
from tests.checkpoints import random_checkpoint

KINDS = [dict(temperature=0), dict(temperature=0.8, seed=3), dict(temperature=1.2), dict(temperature=0.9, top_k=5, seed=8),
         dict(temperature=0.7, top_p=0.8), dict(temperature=0.5, repetition_penalty=1.3, seed=1),
         dict(temperature=0, logprobs=2), dict(temperature=0, min_tokens=6, stop_token_ids=[1, 2, 3])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def requests(count: int):
    shared = [5, 6, 7, 8, 9, 10, 11, 12]
    prompts = [(shared * 2 if i % 3 else [1, 2, 3]) + [13 + i % 60] * (i % 4) for i in range(count)]
    return prompts, [SamplingParams(max_tokens=6 + i * 7 % 20, ignore_eos=True, **KINDS[i % len(KINDS)]) for i in range(count)]


def serve(folder, count, rows, **settings):
    """Outputs of `count` requests; rows: whether steps of one token each run from device rows."""
    settings = dict(device="cpu", dtype="float32", kvcache_block_size=4, num_kvcache_blocks=300, seed=7) | settings
    with LLM(folder, **settings) as llm:
        runner = llm.engine.model_runner
        assert runner.graphs is None  # without a GPU no step is padded unless asked for
        if rows:
            runner.graphs, launches = runner.decode_graphs(llm.config, capture=False), []
            launch = runner.graphs.launch
            runner.graphs.launch = lambda *args: (launches.append(1), launch(*args))[1]
        outputs = llm.generate(*requests(count), use_tqdm=False)
        if rows:
            assert launches
        return [(out.token_ids, out.finish_reason, out.logprobs) for out in outputs]


@pytest.mark.parametrize("settings", [
    dict(), dict(async_scheduling=True), dict(async_scheduling=True, max_num_seqs=5), dict(max_num_batched_tokens=24),
    dict(async_scheduling=True, max_num_batched_tokens=24, num_kvcache_blocks=40),
    dict(async_scheduling=True, enable_prefix_caching=False, kvcache_block_size=1),
], ids=str)  # fmt: skip
def test_rows_draw_the_same_tokens(folder, settings):
    plain, rows = (serve(folder, 19, rows, **settings) for rows in (False, True))
    for (tokens, reason, logprobs), (own_tokens, own_reason, own_logprobs) in zip(plain, rows, strict=True):
        assert (own_tokens, own_reason) == (tokens, reason)
        assert (own_logprobs is None) == (logprobs is None)
        if logprobs:
            for mine, theirs in zip(own_logprobs, logprobs, strict=True):
                assert mine.keys() == theirs.keys()
                assert all(abs(mine[t].logprob - theirs[t].logprob) < 1e-4 for t in mine)


def test_a_sampler_of_ones_own_draws_for_every_row(folder):
    calls = []

    def most_likely(logits, batch):
        calls.append(len(logits))
        return logits.argmax(-1)

    own = serve(folder, 5, True, sampler=most_likely)
    assert sum(calls) == sum(len(tokens) for tokens, _, _ in own)
    assert own[1][0] != serve(folder, 5, True)[1][0]

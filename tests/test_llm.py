"""The whole engine against transformers: the same greedy tokens, whatever shares the batch or the cache."""

import random

import pytest

from nanovllm import LLM, SamplingParams
from nanovllm.config import OFFLINE_MODEL

from .checkpoints import greedy, random_checkpoint, reference

NUM_TOKENS = 16
SHAPES = {  # GQA 1, 2, 4 and 8; head_dim 32, 64 and 128; both spellings of RoPE's base; tied or not; with biases or not
    "gqa1_hd32": dict(num_attention_heads=4, num_key_value_heads=4, head_dim=32),
    "gqa2_hd64_bias": dict(num_attention_heads=4, num_key_value_heads=2, head_dim=64, attention_bias=True),
    "gqa4_hd128_untied": dict(num_attention_heads=4, num_key_value_heads=1, head_dim=128, tie_word_embeddings=False),
    "gqa8_hd32_theta1e4": dict(num_attention_heads=8, num_key_value_heads=1,
                               rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
    "gqa2_hd128_deep": dict(num_hidden_layers=5, num_attention_heads=2, num_key_value_heads=1, head_dim=128),
    "gqa4_hd64_bias_untied": dict(num_attention_heads=8, num_key_value_heads=2, head_dim=64, attention_bias=True,
                                  tie_word_embeddings=False),
}
# name -> (engine settings, what must have happened for the case to mean anything)
PRESSURE = {
    "at ease": (dict(), lambda t: True),
    "chunks of 16 tokens": (dict(max_num_batched_tokens=16), lambda t: sum(r.num_prefill_tokens > 0 for r in t) > 20),
    "a tiny cache": (dict(kvcache_block_size=4, num_kvcache_blocks=24),
                     lambda t: sum(len(r.preempted) for r in t) >= 3),
    "blocks of one token": (dict(kvcache_block_size=1, max_num_seqs=7), lambda t: sum(len(r.hit_tokens) for r in t) >= 20),
    "no prefix caching": (dict(enable_prefix_caching=False), lambda t: not any(sum(r.hit_tokens.values()) for r in t)),
}


def make_prompts(vocab_size: int, seed: int = 0) -> list[list[int]]:
    """20 prompts: some share a prefix of many blocks, two are equal, lengths 1 to 70."""
    rng = random.Random(seed)
    shared = [rng.randrange(vocab_size) for _ in range(50)]
    prompts = [[rng.randrange(vocab_size) for _ in range(rng.choice([1, 2, 3, 15, 16, 17, 33, 60]))] for _ in range(12)]
    prompts += [shared + [rng.randrange(vocab_size) for _ in range(i * 3)] for i in range(6)]
    return prompts + [list(shared), list(prompts[3])]


@pytest.fixture(scope="module", params=["offline", *SHAPES])
def checkpoint(request, tmp_path_factory):
    folder = OFFLINE_MODEL
    if request.param != "offline":
        folder = random_checkpoint(tmp_path_factory.mktemp(request.param), **SHAPES[request.param])
    prompts = make_prompts(2560 if request.param == "offline" else 96)
    model = reference(folder)
    return folder, prompts, [greedy(model, p, NUM_TOKENS) for p in prompts]


@pytest.mark.parametrize("pressure", PRESSURE)
def test_greedy_tokens_equal_transformers(checkpoint, pressure):
    folder, prompts, expected = checkpoint
    settings, happened = PRESSURE[pressure]
    with LLM(folder, device="cpu", **settings) as llm, llm.trace() as trace:
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True), use_tqdm=False)
        llm.engine.check_integrity()
        assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks
        assert happened(trace), "the case did not put the engine under the pressure it is named after"
        assert [o.token_ids for o in outputs] == expected
        # a second time, now from a warm prefix cache
        again = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True), use_tqdm=False)
        assert [o.token_ids for o in again] == expected


def test_a_repeated_prompt_is_found_cached_and_recomputes_one_token_defect_12(tmp_path):
    folder = random_checkpoint(tmp_path)
    prompt = list(range(32))
    with LLM(folder, device="cpu", kvcache_block_size=8) as llm:
        first, = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
        with llm.trace() as trace:
            second, = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
    assert second.token_ids == first.token_ids
    assert second.num_cached_tokens == 32 and trace[0].num_prefill_tokens == 1


def test_seeded_draws_do_not_depend_on_the_batch(tmp_path):
    folder = random_checkpoint(tmp_path)
    params = [SamplingParams(temperature=0.8, top_p=0.95, seed=i, max_tokens=10) for i in range(5)]
    prompts = [[i + 1, i + 2, i + 3] for i in range(5)]
    with LLM(folder, device="cpu") as llm:
        together = [o.token_ids for o in llm.generate(prompts, params, use_tqdm=False)]
        alone = [llm.generate([p], s, use_tqdm=False)[0].token_ids for p, s in zip(prompts, params)]
    assert together == alone and len({tuple(t) for t in together}) == 5


def test_the_engines_seed_makes_a_run_repeat_itself(tmp_path):
    folder = random_checkpoint(tmp_path)
    unseeded, prompts = SamplingParams(temperature=1.0, max_tokens=10, ignore_eos=True), [[1, 2, 3]] * 3

    def run(seed):
        with LLM(folder, device="cpu", seed=seed) as llm:
            return [o.token_ids for o in llm.generate(prompts, unseeded, use_tqdm=False)]

    first = run(3)
    assert first == run(3) and len({tuple(t) for t in first}) == 3, "equal prompts must draw apart"
    assert first != run(4) and run(None) != run(None)


def test_your_own_scheduler_runs_in_the_engine(tmp_path):
    from nanovllm.engine.scheduler import Scheduler

    class OneAtATime(Scheduler):
        def schedule(self):
            self.max_num_seqs = 1
            return super().schedule()

    folder = random_checkpoint(tmp_path)
    with LLM(folder, device="cpu", scheduler_cls=OneAtATime) as llm, llm.trace() as trace:
        llm.generate([[1, 2], [3, 4]], SamplingParams(temperature=0, max_tokens=3), use_tqdm=False)
    assert max(len(r.scheduled) for r in trace) == 1


def test_your_own_sampler_runs_in_the_engine(tmp_path):
    folder, asked = random_checkpoint(tmp_path), []

    def least_likely(logits, batch):
        asked.append(tuple(logits.shape))
        return logits.argmin(-1)

    prompts, params = [[1, 2], [3, 4]], SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, logprobs=0)
    with LLM(folder, device="cpu", sampler=least_likely) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        vocab_size = llm.config.hf_config.vocab_size
    assert asked == [(2, vocab_size)] * 3
    ranks = [entry[token].rank for out in outputs for token, entry in zip(out.token_ids, out.logprobs)]
    assert ranks == [vocab_size] * 6

"""Whatever shares the engine with a request, it gets the text that it would get alone."""

import random

import pytest

from nanovllm import LLM, SamplingParams
from nanovllm.requests import Request

NUM_REQUESTS = 200


def random_request(rng: random.Random, tokenizer, stories: list[list[int]]) -> tuple[list[int], SamplingParams]:
    """A prompt that may share its beginning with others, and options that may be any."""
    def sometimes(chance, value, otherwise):
        return value() if rng.random() < chance else otherwise

    story = rng.choice(stories)
    prompt = story[:rng.randint(1, 28)] + [rng.randrange(300) for _ in range(rng.choice([0, 0, 3]))]
    max_tokens = rng.choice([1, 8, 24, 24])
    greedy = rng.random() < 0.4
    return prompt, SamplingParams(
        max_tokens=max_tokens,
        temperature=0 if greedy else rng.uniform(0.5, 1.5),
        seed=rng.randrange(2**40),
        n=1 if greedy else rng.choice([1, 1, 1, 2, 3]),
        top_k=sometimes(0.3, lambda: rng.randint(1, 50), 0),
        top_p=sometimes(0.3, lambda: rng.uniform(0.3, 1), 1.0),
        min_p=sometimes(0.2, lambda: rng.uniform(0, 0.3), 0.0),
        repetition_penalty=sometimes(0.3, lambda: rng.uniform(0.8, 1.5), 1.0),
        presence_penalty=sometimes(0.2, lambda: rng.uniform(-1, 2), 0.0),
        frequency_penalty=sometimes(0.2, lambda: rng.uniform(-1, 2), 0.0),
        logit_bias=sometimes(0.2, lambda: {rng.randrange(300): rng.uniform(-5, 5) for _ in range(3)}, None),
        min_tokens=sometimes(0.3, lambda: rng.randint(0, max_tokens), 0),
        stop=sometimes(0.3, lambda: rng.sample([" the", "a", ".", "er ", "said", "x", "\n"], 2), ()),
        stop_token_ids=sometimes(0.3, lambda: [rng.choice(story) for _ in range(3)], ()),
        ignore_eos=rng.random() < 0.5,
        logprobs=sometimes(0.2, lambda: rng.randint(0, 5), None),
        prompt_logprobs=sometimes(0.1, lambda: rng.randint(0, 3), None),
        skip_special_tokens=rng.random() < 0.5,
        include_stop_str_in_output=rng.random() < 0.3)


@pytest.fixture(scope="module")
def together_and_alone():
    """The outputs of all requests in one engine under pressure, and of each one by itself in another."""
    rng = random.Random(0)
    pressure = dict(kvcache_block_size=2, num_kvcache_blocks=56, max_num_batched_tokens=40, max_num_seqs=24)
    with LLM(device="cpu", **pressure) as llm, LLM(device="cpu", enable_prefix_caching=False) as quiet, llm.trace() as trace:
        stories = [llm.tokenizer.encode(f"Tell me a story about a {who}. Once upon a time there was a {who} who lived in a "
                                        "small house by the sea. Every day she went out to look for shells.")
                   for who in ("fox", "hen", "bear")]
        work = [random_request(rng, llm.tokenizer, stories) for _ in range(NUM_REQUESTS)]
        requests = [Request(llm.engine, llm.tokenizer, *w, priority=rng.randint(-1, 1)) for w in work]
        arriving, running, aborted = list(requests), [], set()
        while arriving or running:
            for _ in range(min(len(arriving), rng.choice([0, 1, 5]))):
                running.append(arriving.pop(0).submit())
            if running and rng.random() < 0.08:
                victim = rng.choice(running)
                victim.abort()
                aborted.add(requests.index(victim))
            llm.engine.step()
            llm.engine.check_integrity()
            for request in running:
                if rng.random() < 0.7:  # whoever looks rarely must see the same
                    request.advance()
            running = [request for request in running if not request.is_finished]
        assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks
        together = [request.output() for request in requests]
        alone = [quiet.generate([prompt], params, use_tqdm=False)[0] for prompt, params in work]
    return work, together, alone, aborted, trace


def test_the_engine_was_under_pressure(together_and_alone):
    _, together, _, aborted, trace = together_and_alone
    assert sum(len(record.preempted) for record in trace) >= 20
    assert sum(sum(record.hit_tokens.values()) for record in trace) >= 500
    assert max(len(record.running) for record in trace) >= 8
    assert len([i for i in aborted if "abort" in {o.finish_reason for o in together[i].outputs}]) >= 5
    assert {o.finish_reason for out in together for o in out.outputs} == {"stop", "length", "abort"}


def test_each_request_gets_what_it_would_get_alone(together_and_alone):
    work, together, alone, aborted, _ = together_and_alone
    for i, ((_, params), ours, expected) in enumerate(zip(work, together, alone, strict=True)):
        for a, b in zip(ours.outputs, expected.outputs, strict=True):
            where = f"request {i}, sample {a.index}, {params}"
            if i in aborted and a.finish_reason == "abort":
                assert a.token_ids == b.token_ids[:len(a.token_ids)], where
                continue
            assert (a.token_ids, a.text, a.finish_reason, a.stop_reason) == (
                b.token_ids, b.text, b.finish_reason, b.stop_reason), where
            assert_close(a.logprobs, b.logprobs)
        if i not in aborted:
            assert_close(ours.prompt_logprobs, expected.prompt_logprobs)


def assert_close(ours, expected):
    assert (ours is None) == (expected is None) and len(ours or ()) == len(expected or ())
    for a, b in zip(ours or (), expected or ()):
        assert (a is None) == (b is None)
        for token in set(a or ()) & set(b or ()):  # which of two equal ones is reported last may differ
            assert a[token].logprob == pytest.approx(b[token].logprob, abs=1e-3)

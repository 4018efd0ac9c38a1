"""Whatever shares the engine with a request, it gets the text that it would get alone."""

import random

import pytest

from nanovllm import LLM, SamplingParams
from nanovllm.config import DRAFT_MODEL
from nanovllm.engine.drafts import Drafter
from nanovllm.serving.request import Request

NUM_REQUESTS = 200
WAYS = ["step by step", "looking ahead", "looking ahead, from rows", "looking ahead, two ranks", "drafting",
        "drafting, looking ahead, two ranks", "drafting, looking ahead, from rows",
        "drafting with a model, looking ahead", "drafting with a model, from rows"]
pytestmark = pytest.mark.slow


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


class HalfRight(Drafter):
    """Knows what each request would get alone, and tells it with a mistake now and then."""

    cost = 0.0

    def __init__(self, work, alone):
        self.random, self.answers = random.Random(2), {}
        for (prompt, params), output in zip(work, alone):
            for sample in output.outputs:
                self.answers[tuple(prompt), params.seed + sample.index] = sample.token_ids

    def propose(self, sequences, limits):
        proposals = []
        for seq, limit in zip(sequences, limits):
            answer = self.answers[tuple(seq.prompt_token_ids), seq.seed][seq.num_output_tokens:]
            drafts = (answer + [self.random.randrange(300) for _ in range(limit)])[:limit]
            proposals.append([self.random.randrange(300) if self.random.random() < 0.25 else token for token in drafts])
        return proposals


@pytest.fixture(scope="module")
def work_and_alone():
    """All requests, and the output of each one by itself."""
    rng = random.Random(0)
    with LLM(device="cpu", enable_prefix_caching=False) as quiet:
        stories = [quiet.tokenizer.encode(f"Tell me a story about a {who}. Once upon a time there was a {who} who lived in a "
                                          "small house by the sea. Every day she went out to look for shells.")
                   for who in ("fox", "hen", "bear")]
        work = [random_request(rng, quiet.tokenizer, stories) for _ in range(NUM_REQUESTS)]
        return work, [quiet.generate([prompt], params, use_tqdm=False)[0] for prompt, params in work]


@pytest.fixture(scope="module", params=WAYS)
def together(work_and_alone, request):
    """The outputs of all requests in one engine under pressure, with random arrivals, looks and aborts; who was aborted."""
    rng, ahead = random.Random(1), "ahead" in request.param
    pressure = dict(kvcache_block_size=2, num_kvcache_blocks=56, max_num_batched_tokens=40, max_num_seqs=24)
    ranks = 2 if "ranks" in request.param else 1
    if "drafting" in request.param:
        pressure["speculative_config"] = {"disable_by_batch_size": 64}
        if "model" in request.param:
            pressure["speculative_config"]["model"] = DRAFT_MODEL
        else:
            pressure["drafter"] = HalfRight(*work_and_alone)
    with LLM(device="cpu", async_scheduling=ahead, tensor_parallel_size=ranks, **pressure) as llm:
        if "rows" in request.param:  # as CUDA graphs run them
            runner = llm.engine.model_runner
            runner.graphs = runner.decode_graphs(llm.config, capture=False)
            if "model" in request.param:
                draft = llm.engine.speculation.drafter.runner
                draft.graphs = draft.decode_graphs(llm.config.draft, capture=False)
        requests = [Request(llm.engine, llm.tokenizer, *each, priority=rng.randint(-1, 1)) for each in work_and_alone[0]]
        arriving, running, aborted, most = list(requests), [], set(), 0
        while arriving or running:
            for _ in range(min(len(arriving), rng.choice([0, 1, 5]))):
                running.append(arriving.pop(0).submit())
            if running and rng.random() < 0.08:
                victim = rng.choice(running)
                victim.abort()
                aborted.add(requests.index(victim))
            llm.engine.step()
            llm.engine.check_integrity()
            most = max(most, len(llm.engine.scheduler.running))
            for one in running:
                if rng.random() < 0.7:  # whoever looks rarely must see the same
                    one.advance()
            running = [one for one in running if not one.is_finished]
        assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks
        outputs = [one.output() for one in requests]
        if "drafting" in request.param:
            counts = llm.engine.speculation.counts
            assert counts.accepted >= 200 and counts.drafted - counts.accepted >= 200, counts
        # The test is worth something only under pressure.
        assert llm.engine.scheduler.num_preemptions >= 20 and most >= 8
        assert sum(out.usage.cached_tokens for out in outputs) >= 500
        assert len([i for i in aborted if "abort" in {o.finish_reason for o in outputs[i].outputs}]) >= 5
        assert {o.finish_reason for out in outputs for o in out.outputs} == {"stop", "length", "abort"}
    return outputs, aborted


def test_each_request_gets_what_it_would_get_alone(work_and_alone, together):
    (work, alone), (outputs, aborted) = work_and_alone, together
    for i, ((_, params), ours, expected) in enumerate(zip(work, outputs, alone, strict=True)):
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

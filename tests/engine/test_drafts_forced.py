"""What a grammar forces is taken several tokens a step: the same text in fewer steps."""

from types import SimpleNamespace

import pytest

from nanovllm import LLM, SamplingParams, StructuredOutputsParams
from nanovllm.engine.drafts_forced import MOST, ForcedTokens
from nanovllm.engine.scheduler import Scheduler

CARD = StructuredOutputsParams(disable_any_whitespace=True, json={
    "type": "object", "additionalProperties": False, "required": ["name", "age", "tags"], "properties": {
        "name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["red", "old"]}, "minItems": 1, "maxItems": 3}}})
LETTERS = StructuredOutputsParams(regex="[a-z]{60}")
PROMPTS = [f"Write down what you know of the {who}: " for who in ("fox", "hen", "bear", "kite")]


@pytest.fixture(scope="module")
def llm():
    with LLM(device="cpu", num_kvcache_blocks=400, kvcache_block_size=16) as llm:
        yield llm


def params_of(shape, **options):
    return [SamplingParams(seed=i, **dict(temperature=i % 2, max_tokens=60) | options, structured_outputs=shape)
            for i in range(len(PROMPTS))]


def generate(llm, params, forced=True):
    """The tokens of each, and how many steps they took; and what was counted."""
    engine = llm.engine
    own, engine._forced = engine._forced, ForcedTokens(engine.scheduler) if forced else None
    try:
        before = engine.num_steps
        outputs = llm.generate(PROMPTS, params, use_tqdm=False)
        engine.check_integrity()
        assert engine.block_manager.num_free_blocks == engine.block_manager.num_blocks
        counts = engine._forced.counts if engine._forced else None
        return [(out.token_ids, out.finish_reason) for out in outputs], engine.num_steps - before, counts
    finally:
        engine._forced = own


@pytest.mark.parametrize("options", [dict(), dict(max_tokens=7), dict(min_tokens=30),
                                     dict(top_k=20, top_p=0.9, repetition_penalty=1.2)], ids=str)
def test_the_text_is_the_same_in_fewer_steps(llm, options):
    params = params_of(CARD, **options)
    expected, steps, _ = generate(llm, params, forced=False)
    found, fewer, counts = generate(llm, params)
    assert found == expected
    assert counts.accepted == counts.drafted >= 8 and fewer < 0.85 * steps


def test_log_probabilities_stand_by_every_forced_token(llm):
    params = params_of(CARD, logprobs=2)
    outputs = []
    for forced in (None, llm.engine._forced):
        llm.engine._forced, own = forced, llm.engine._forced
        outputs.append(llm.generate(PROMPTS, params, use_tqdm=False))
        llm.engine._forced = own
    for plain, drafted in zip(*outputs, strict=True):
        assert plain.token_ids == drafted.token_ids
        for a, b in zip(plain.outputs[0].logprobs, drafted.outputs[0].logprobs, strict=True):
            assert list(a) == list(b) and all(a[t].logprob == pytest.approx(b[t].logprob, abs=1e-4) for t in a)


def test_with_nothing_forced_there_are_as_many_steps_as_tokens(llm):
    expected, steps, _ = generate(llm, params_of(LETTERS), forced=False)
    found, as_many, counts = generate(llm, params_of(LETTERS))
    assert found == expected and counts.drafted == 0 and as_many == steps


def test_rows_without_a_grammar_go_on_beside_the_others(llm):
    params = params_of(None, ignore_eos=True)[:2] + params_of(CARD)[2:]
    expected, _, _ = generate(llm, params, forced=False)
    found, _, counts = generate(llm, params)
    assert found == expected and counts.accepted == counts.drafted > 3


def test_an_engine_that_looks_ahead_goes_on_looking():
    with LLM(device="cpu", num_kvcache_blocks=400, kvcache_block_size=16, async_scheduling=True) as llm:
        assert llm.engine._forced is None
        assert llm.generate(PROMPTS[:1], params_of(CARD)[:1], use_tqdm=False)[0].num_drafted_tokens == 0


def test_there_is_room_for_as_many_as_may_run():
    """Graphs have a row for each sequence, and no more."""
    with LLM(device="cpu", num_kvcache_blocks=400, kvcache_block_size=16, max_num_seqs=len(PROMPTS)) as llm:
        runner, rows = llm.engine.model_runner, []
        launch = runner.launch
        runner.launch = lambda batch: (rows.append(len(batch.draws)), launch(batch))[1]
        outputs = llm.generate(PROMPTS, params_of(CARD), use_tqdm=False)
        counts = llm.engine._forced.counts
        assert max(rows) == len(PROMPTS) and counts.drafted == sum(out.num_accepted_tokens for out in outputs)
        alone = llm.generate(PROMPTS[:1], params_of(CARD)[:1], use_tqdm=False)[0]
        assert alone.num_accepted_tokens > 3 and alone.token_ids == outputs[0].token_ids and max(rows) == len(PROMPTS)


def test_a_scheduler_of_ones_own_is_given_one_token_at_a_time():
    class Own(Scheduler):
        def schedule(self):
            return super().schedule()

    with LLM(device="cpu", num_kvcache_blocks=400, kvcache_block_size=16, scheduler_cls=Own) as llm:
        assert llm.generate(PROMPTS[:1], params_of(CARD)[:1], use_tqdm=False)[0].num_drafted_tokens == 0


def test_no_more_are_proposed_than_a_request_may_still_have():
    forced = ForcedTokens(SimpleNamespace(running=[], max_model_len=100))

    class Seq(SimpleNamespace):
        def __len__(self):
            return self.length

    def most(length, num_output_tokens, max_tokens=500):
        return forced._most(Seq(length=length, num_output_tokens=num_output_tokens,
                                sampling_params=SimpleNamespace(max_tokens=max_tokens)))

    assert most(20, 4) == MOST and most(20, 4, max_tokens=8) == 3 and most(20, 7, max_tokens=8) == 0
    assert most(95, 4) == 4 and most(99, 4) == 0 and most(100, 4) == 0

"""Answers with a shape, from a request to its text: whatever else the request asks for, and whoever runs beside it."""

import asyncio
import json
import random
from contextlib import contextmanager

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema

from nanovllm import LLM, AsyncLLM, InvalidRequest, RequestFailed, SamplingParams, StructuredOutputsParams
from nanovllm.config import DRAFT_MODEL
from nanovllm.engine.drafts import Drafter
from nanovllm.layers.sampler import Sampler

PROMPT = "Write down what you know of the fox: "
CARD = {"type": "object", "additionalProperties": False, "required": ["name", "age"], "properties": {
    "name": {"enum": ["fox", "hen", "cat"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99},
    "tags": {"type": "array", "items": {"enum": ["red", "old"]}, "maxItems": 3}}}
NOTE = {"type": "object", "additionalProperties": False, "required": ["text"],  # little of it is forced
        "properties": {"text": {"type": "string", "minLength": 40}}}
SHAPES = {
    "json": dict(json=CARD, disable_any_whitespace=True), "regex": dict(regex="[0-9]{4}-[0-9]{2}-[0-9]{2}"),
    "choice": dict(choice=["yes", "no", "perhaps"]), "json_object": dict(json_object=True),
    "grammar": dict(grammar='start: "<" item ("," item)* ">"\nitem: /[a-z]{1,5}/ | %json {"type": "boolean"}')}
BOUNDED = dict(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def llm():
    with LLM(device="cpu", num_kvcache_blocks=2000, kvcache_block_size=16) as llm:
        yield llm


def generate(llm, params, prompts=PROMPT):
    prompts = [prompts] * len(params) if isinstance(params, list) else prompts
    outputs = llm.generate(prompts, params, use_tqdm=False)
    llm.engine.check_integrity()
    assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks
    return [completion for output in outputs for completion in output.outputs]


def is_completable(llm, shape, token_ids):
    """Whether the grammar takes these tokens, as the beginning of an answer."""
    matcher = llm.grammars.matcher(shape)
    return all(matcher.advance(token) for token in token_ids)


# What a request gets.

@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("options", [dict(temperature=0), dict(temperature=1, seed=5, n=3)], ids=["greedy", "drawn"])
def test_an_answer_has_its_shape(llm, name, options):
    shape = StructuredOutputsParams(**SHAPES[name])
    for out in generate(llm, SamplingParams(max_tokens=80, structured_outputs=shape, **options)):
        assert is_completable(llm, shape, out.token_ids)
        if out.finish_reason == "stop" and name in ("json", "json_object"):
            jsonschema.validate(json.loads(out.text), CARD if name == "json" else {"type": "object"})
        elif name in ("choice", "regex"):
            assert out.finish_reason == "stop" and out.stop_reason is None
            assert out.text in SHAPES["choice"]["choice"] if name == "choice" else len(out.text) == 10


def test_where_the_shape_ends_the_answer_ends_whatever_else_the_request_says(llm):
    """And all its tokens are text: none of them is the end-of-sequence token, which would be left out."""
    shape = StructuredOutputsParams(choice=["perhaps"])
    for options in (dict(), dict(ignore_eos=True), dict(min_tokens=30), dict(min_tokens=30, ignore_eos=True),
                    dict(stop_token_ids=[5, 6], min_tokens=9), dict(include_stop_str_in_output=True)):
        out, = generate(llm, SamplingParams(temperature=0, max_tokens=40, structured_outputs=shape, **options))
        assert (out.text, out.finish_reason, out.stop_reason) == ("perhaps", "stop", None)
        assert llm.tokenizer.decode(out.token_ids) == "perhaps"


def test_the_end_of_sequence_token_comes_only_where_the_answer_may_end(llm):
    """All tokens but those of "ab" and the end are forbidden, and the end is what the bias asks for."""
    shape, eos = StructuredOutputsParams(regex="(ab){2,}"), llm.config.eos_token_ids[0]
    wanted = dict(temperature=0, max_tokens=40, structured_outputs=shape, logit_bias={eos: 100})
    out, = generate(llm, SamplingParams(**wanted))
    assert out.text == "abab" and out.finish_reason == "stop" and out.token_ids[-1] == eos
    out, = generate(llm, SamplingParams(**wanted, ignore_eos=True))
    assert out.finish_reason == "length" and set(out.text) == {"a", "b"} and eos not in out.token_ids
    out, = generate(llm, SamplingParams(**wanted, min_tokens=20))
    assert out.finish_reason == "stop" and len(out.token_ids) in (20, 21, 22) and out.token_ids[-1] == eos


def test_stop_strings_and_stop_tokens_end_an_answer_early(llm):
    shape = StructuredOutputsParams(json=CARD, disable_any_whitespace=True)
    out, = generate(llm, SamplingParams(temperature=0, max_tokens=60, structured_outputs=shape, stop='"age"'))
    assert out.finish_reason == "stop" and out.stop_reason == '"age"' and out.text.endswith(",")
    whole, = generate(llm, SamplingParams(temperature=0, max_tokens=60, structured_outputs=shape))
    at, token = next((i, token) for i, token in enumerate(whole.token_ids) if ":" in llm.tokenizer.decode([token]))
    out, = generate(llm, SamplingParams(temperature=0, max_tokens=60, structured_outputs=shape, stop_token_ids=[token]))
    assert out.stop_reason == token and out.token_ids == whole.token_ids[:at + 1]
    assert out.text == llm.tokenizer.decode(whole.token_ids[:at])


def test_logprobs_are_the_models_own(llm):
    """A mask is no opinion of the model: a forced token keeps the probability that the model gave it."""
    shape = StructuredOutputsParams(choice=["zebra"])
    out, = generate(llm, SamplingParams(temperature=0, max_tokens=9, structured_outputs=shape, logprobs=3))
    assert out.text == "zebra" and all(len(entry) in (3, 4) for entry in out.logprobs)
    prompt = llm.tokenizer.encode(PROMPT)
    scored = llm.generate([prompt + out.token_ids], SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)[0]
    for token, entry, expected in zip(out.token_ids, out.logprobs, scored.prompt_logprobs[len(prompt):], strict=True):
        assert entry[token].logprob == pytest.approx(expected[token].logprob, abs=1e-4) and entry[token].logprob < -1e-3


def test_streamed_pieces_are_the_whole_text(llm):
    params = SamplingParams(temperature=1, seed=4, max_tokens=80, structured_outputs=StructuredOutputsParams(json=NOTE))
    whole, = generate(llm, params)
    pieces = list(llm.stream(PROMPT, params))
    assert "".join(pieces) == whole.text and len(pieces) > 5


# Random schemas.

names = st.sampled_from(["a", "b", "kind", "it's", 'say "x"', "größe", ""])
formats = st.sampled_from(["date", "time", "uuid", "ipv4"]).map(lambda name: {"type": "string", "format": name})
leaves = st.one_of(
    st.just({"type": "boolean"}), st.just({"type": "null"}),
    st.lists(st.one_of(st.integers(-9, 9), st.sampled_from(["x", "y z", "é", '"']), st.none(), st.booleans()), min_size=1,
             max_size=4, unique_by=repr).map(lambda values: {"enum": values}),
    st.tuples(st.integers(-200, 50), st.integers(50, 2000)).map(
        lambda ends: {"type": "integer", "minimum": ends[0], "maximum": ends[1]}),
    st.tuples(st.integers(-5, 5), st.integers(5, 99)).map(
        lambda ends: {"type": "number", "minimum": ends[0], "exclusiveMaximum": ends[1] + 0.5}),
    st.tuples(st.integers(0, 3), st.integers(3, 12)).map(
        lambda ends: {"type": "string", "minLength": ends[0], "maxLength": ends[1]}),
    st.sampled_from(["^[a-c]{2,4}$", "^(ab|cd)+$", "x[0-9]"]).map(lambda p: {"type": "string", "pattern": p, "maxLength": 12}))


def compound(inner):
    arrays = st.tuples(inner, st.integers(0, 2), st.integers(2, 4)).map(
        lambda t: {"type": "array", "items": t[0], "minItems": t[1], "maxItems": t[2]})
    objects = st.dictionaries(names, inner, max_size=4).flatmap(lambda properties: st.lists(
        st.sampled_from(sorted(properties) or ["-"]), unique=True).map(lambda required: {
            "type": "object", "properties": properties, "additionalProperties": False,
            "required": [name for name in required if name in properties]}))
    return arrays | objects


plain_schemas = st.recursive(leaves, compound, max_leaves=6)
schemas = st.recursive(leaves | formats, lambda inner: compound(inner) | st.lists(inner, min_size=1, max_size=3).map(
    lambda options: {"anyOf": options}), max_leaves=6)


@given(st.data())
@settings(max_examples=12, **BOUNDED)
def test_finished_answers_validate_and_unfinished_ones_can_be_completed(llm, data):
    shapes = [StructuredOutputsParams(json=data.draw(schemas), disable_any_whitespace=data.draw(st.booleans()))
              for _ in range(3)]
    params = [SamplingParams(temperature=data.draw(st.sampled_from([0, 0.7, 1.5])), seed=i, max_tokens=64,
                             structured_outputs=shape) for i, shape in enumerate(shapes)]
    for shape, out in zip(shapes, generate(llm, params), strict=True):
        if out.finish_reason == "stop":
            jsonschema.validate(json.loads(out.text), shape.json, format_checker=jsonschema.FormatChecker())
        else:
            assert out.finish_reason == "length" and is_completable(llm, shape, out.token_ids)


def values_of(schema):
    """Values that a schema allows, their keys in the schema's order: in that order alone a grammar takes them."""
    if schema.get("type") == "array":
        return st.lists(values_of(schema["items"]), min_size=schema["minItems"], max_size=schema["maxItems"])
    if schema.get("type") == "object":
        fields = {name: values_of(inner) for name, inner in schema["properties"].items()}
        optional = [name for name in fields if name not in schema["required"]]
        left_out = st.sets(st.sampled_from(optional)) if optional else st.just(set())
        return st.tuples(st.fixed_dictionaries(fields), left_out).map(
            lambda t: {name: t[0][name] for name in fields if name not in t[1]})
    if "minimum" in schema:  # llguidance writes a number that has bounds without an exponent
        return from_schema(schema).filter(lambda value: "e" not in json.dumps(value))
    return from_schema(schema)


@given(st.data())
@settings(max_examples=50, **BOUNDED)
def test_every_value_of_a_schema_can_be_written(llm, data):
    schema = data.draw(plain_schemas)
    value = data.draw(values_of(schema))
    matcher = llm.grammars.matcher(StructuredOutputsParams(json=schema))
    tokens = llm.tokenizer.encode(json.dumps(value, ensure_ascii=False), add_special_tokens=False)
    assert all(matcher.advance(token) for token in tokens) and matcher.is_accepting


# In a batch with everybody else.

def mixed_requests(llm, count=18):
    """Requests of every kind, with shapes and without, and for each its own prompt."""
    rng, prompts, params = random.Random(5), [], []
    story = llm.tokenizer.encode("Once upon a time there was a fox who lived by the sea, and who could write. " * 3)
    for i in range(count):
        shape = StructuredOutputsParams(**SHAPES[rng.choice(list(SHAPES))]) if i % 3 else None
        options = rng.choice([dict(temperature=0), dict(temperature=1), dict(temperature=0.8, top_k=5),
                              dict(temperature=1, n=2),
                              dict(temperature=0.9, top_p=0.8, min_p=0.01), dict(temperature=1, repetition_penalty=1.4)])
        extras = rng.choice([{}, {}, dict(logprobs=2), dict(min_tokens=6), dict(ignore_eos=True), dict(stop=["red", "9"]),
                             dict(logit_bias={30: 5.0}), dict(presence_penalty=1.0), dict(prompt_logprobs=1)])
        params.append(SamplingParams(**options, **extras, seed=i, max_tokens=rng.randint(8, 40), structured_outputs=shape))
        prompts.append(story[:rng.randint(5, len(story))])
    return prompts, params


class Guesses(Drafter):
    """Drafts that are right, wrong, forbidden or behind the end: what was drawn without drafts, with errors here and there."""

    def __init__(self, texts, vocab_size):
        self.texts, self.rng, self.vocab_size = texts, random.Random(3), vocab_size

    def propose(self, sequences, limits):
        proposals = []
        for seq, limit in zip(sequences, limits):
            known = next((t for t in self.texts if t[:len(seq)] == seq.token_ids), seq.token_ids)[len(seq):]
            drafts = [t if self.rng.random() < 0.8 else self.rng.randrange(self.vocab_size) for t in known[:limit]]
            proposals.append((drafts + [self.rng.randrange(self.vocab_size) for _ in range(limit)])[:limit])
        return proposals


@pytest.fixture(scope="module")
def work(llm):
    """Mixed requests, and what each gets alone, a token at a time."""
    prompts, params = mixed_requests(llm)
    with one_token_at_a_time(llm):
        return prompts, params, [summary(generate(llm, p, [prompt])) for prompt, p in zip(prompts, params, strict=True)]


@contextmanager
def one_token_at_a_time(llm):
    """Within the block, what a grammar forces is drawn as everything else is."""
    forced, llm.engine._forced = llm.engine._forced, None
    yield
    llm.engine._forced = forced


def summary(completions):
    return [(out.token_ids, out.text, out.finish_reason, out.stop_reason) for out in completions]


PRESSURE = dict(kvcache_block_size=4, num_kvcache_blocks=32, max_num_batched_tokens=48, max_num_seqs=8)
SETUPS = {"one step at a time": dict(async_scheduling=False), "looks ahead": dict(async_scheduling=True),
          "drafts from the text": dict(speculative_config={"method": "ngram"}, async_scheduling=True),
          "drafts from a model": dict(speculative_config={"model": str(DRAFT_MODEL)}),
          "drafts of all kinds": "guesses", "decode rows": "rows"}


@pytest.mark.parametrize("setup", SETUPS)
def test_each_gets_what_it_gets_alone_under_cache_pressure(work, setup):
    prompts, params, expected = work
    own = SETUPS[setup] if isinstance(SETUPS[setup], dict) else {}
    if setup == "drafts of all kinds":
        texts = [p + tokens for p, outs in zip(prompts, expected, strict=True) for tokens, *_ in outs]
        own = dict(async_scheduling=True, drafter=Guesses(texts, 2560), speculative_config={"num_speculative_tokens": 4})
    with LLM(device="cpu", **PRESSURE, **own) as llm:
        if setup == "decode rows":  # as CUDA graphs lay them out
            runner = llm.engine.model_runner
            runner.graphs = runner.decode_graphs(llm.config, capture=False)
        if llm.engine.speculation:
            llm.engine.speculation.drafter.cost = 0.0
        outputs = llm.generate(prompts, params, use_tqdm=False)
        llm.engine.check_integrity()
        assert [summary(output.outputs) for output in outputs] == expected
        if setup != "drafts of all kinds":  # which need so few steps that hardly any two meet
            assert sum(out.num_preemptions for output in outputs for out in output.outputs) > 0
        assert llm.engine.block_manager.num_free_blocks == 32
        if setup == "drafts of all kinds":
            counts = llm.engine.speculation.counts
            assert 0 < counts.accepted < counts.drafted


def test_with_a_shape_only_the_draw_waits_for_the_token_before_it():
    """Where the engine looks ahead, a step with shapes is launched before the one before it is collected, as any other is. Its
    draws come once that step's tokens are taken in."""
    with LLM(device="cpu", num_kvcache_blocks=200, kvcache_block_size=16, async_scheduling=True) as llm:
        shape = StructuredOutputsParams(regex="[a-z]{40}")
        runner, told, batches, in_flight = llm.engine.model_runner, [], [], []
        launch, draw, collect = runner.launch, runner.draw, runner.collect

        def launching(batch):
            told.append(("launch", len(batches)))
            batches.append(batch)
            in_flight.append(launch(batch))
            return in_flight[-1]

        runner.launch = launching
        runner.draw = lambda launched: (told.append(("draw", in_flight.index(launched))), draw(launched))[1]
        runner.collect = lambda launched: (told.append(("collect", in_flight.index(launched))), collect(launched))[1]
        llm.generate([PROMPT] * 2, [SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, structured_outputs=s)
                                    for s in (None, shape)], use_tqdm=False)
        both = [i for i, batch in enumerate(batches) if len(batch.items) == 2]
        assert len(both) >= 18 and both == list(range(both[0], both[-1] + 1)), "one of them sat a step out"
        waited = [i for i in both if batches[i].masks_wait]
        assert len(waited) >= 17
        for i in waited:
            assert told.index(("launch", i)) < told.index(("collect", i - 1)) < told.index(("draw", i)) < told.index(
                ("collect", i))


def test_a_draw_that_fails_loses_no_sequence_that_the_step_before_it_ended(llm, monkeypatch):
    """The two steps are the same call's affair, but not the same step's."""
    with LLM(device="cpu", num_kvcache_blocks=200, kvcache_block_size=16, async_scheduling=True) as llm:
        shapes = [StructuredOutputsParams(regex=f"[a-z]{{{n}}}") for n in (3, 4, 5, 30)]
        params = [SamplingParams(temperature=0, max_tokens=25, structured_outputs=shape) for shape in shapes]
        expected = summary(generate(llm, params))
        draw, calls = llm.engine.model_runner.draw, []

        def fails_often(launched):
            calls.append(1)
            if len(calls) % 2:
                raise RuntimeError("now and then")
            draw(launched)

        monkeypatch.setattr(llm.engine.model_runner, "draw", fails_often)
        assert summary(generate(llm, params)) == expected
        assert llm.engine.num_failed_steps == (len(calls) + 1) // 2 > 3


def test_rows_without_a_shape_cost_no_mask(llm, monkeypatch):
    """No mask is made, and nothing that masks is called."""
    from nanovllm.engine import device_masks
    masks, bitmasks_of = [], device_masks.bitmasks_of
    monkeypatch.setattr(device_masks, "bitmasks_of", lambda *args: masks.append(bitmasks_of(*args)) or masks[-1])
    generate(llm, SamplingParams(temperature=1, seed=1, max_tokens=5))
    assert masks and all(mask is None for mask in masks)
    generate(llm, [SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, structured_outputs=shape)
                   for shape in (None, StructuredOutputsParams(regex="[a-z]{9}"), None)])
    assert {tuple(mask.rows) for mask in masks if mask is not None} <= {(0,), (1,)}


# What goes wrong.

def test_a_sampler_of_ones_own_must_apply_the_processors():
    shape = StructuredOutputsParams(choice=["zebra"])
    params = [SamplingParams(temperature=0, max_tokens=20, structured_outputs=shape),
              SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)]
    with LLM(device="cpu", num_kvcache_blocks=100, sampler=lambda logits, batch: logits.argmax(-1)) as llm:
        bad, good = llm.generate([PROMPT] * 2, params, use_tqdm=False)
        assert bad.outputs[0].finish_reason == "error" and "apply batch.processors in a sampler of your own" in bad.error
        assert good.outputs[0].finish_reason == "length" and llm.engine.block_manager.num_free_blocks == 100
    with LLM(device="cpu", num_kvcache_blocks=100, sampler=Sampler()) as llm:
        assert generate(llm, params)[0].text == "zebra"


def test_a_grammar_that_cannot_be_followed_ends_its_own_request_only(llm, monkeypatch):
    from nanovllm.serving.grammar_matcher import GrammarMatcher

    fill, calls = GrammarMatcher.fill_bitmask, []

    def too_complex(self, bitmask):
        calls.append(1)
        if len(calls) == 4:
            raise RequestFailed("structured_outputs: its grammar cannot be followed any further (LexerTooComplex)")
        fill(self, bitmask)

    shape = StructuredOutputsParams(regex="[a-z]{30}")
    llm.grammars.matcher(shape)
    monkeypatch.setattr(GrammarMatcher, "fill_bitmask", too_complex)
    outputs = llm.generate([PROMPT] * 2, [SamplingParams(temperature=0, max_tokens=9, ignore_eos=True, structured_outputs=s)
                                          for s in (shape, None)], use_tqdm=False)
    assert [out.outputs[0].finish_reason for out in outputs] == ["error", "length"]
    assert "LexerTooComplex" in outputs[0].error and llm.engine.num_failed_steps == 0
    llm.engine.check_integrity()


def test_a_step_that_fails_leaves_grammars_where_they_were(llm, monkeypatch):
    params = SamplingParams(temperature=1, seed=3, max_tokens=30, structured_outputs=StructuredOutputsParams(json=NOTE))
    expected, = generate(llm, params)
    runner = llm.engine.model_runner
    collect, calls = runner.collect, []

    def fails_now_and_then(launched):
        calls.append(1)
        if len(calls) % 4 == 3:
            raise RuntimeError("now and then")
        return collect(launched)

    monkeypatch.setattr(runner, "collect", fails_now_and_then)
    out, = generate(llm, params)
    assert out.token_ids == expected.token_ids and llm.engine.num_failed_steps > 2


def test_the_engine_alone_knows_no_grammars(llm):
    params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a"))
    with pytest.raises(InvalidRequest, match=r"structured_outputs=.*use LLM, or pass matcher"):
        llm.engine.add_request([1, 2], params)
    with pytest.raises(InvalidRequest, match="structured_outputs=None"):
        llm.engine.add_request([1, 2], SamplingParams(), matcher=llm.grammars.matcher(params.structured_outputs))
    with pytest.raises(InvalidRequest, match=r"structured_outputs\.regex='\(': must be a shape that can be compiled"):
        llm.generate(PROMPT, SamplingParams(structured_outputs=StructuredOutputsParams(regex="(")), use_tqdm=False)
    assert not llm.engine.has_unfinished


async def answer(llm, shape):
    async with AsyncLLM(llm) as engine:
        return await engine.generate(PROMPT, SamplingParams(temperature=0, max_tokens=30, structured_outputs=shape))


def test_async_llm_serves_shapes(llm):
    assert asyncio.run(answer(llm, StructuredOutputsParams(choice=["zebra"]))).outputs[0].text == "zebra"

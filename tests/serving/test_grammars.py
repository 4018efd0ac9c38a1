"""Shapes: what is refused, with which words and how fast, and which tokens a compiled one allows."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pytest

from nanovllm import InvalidRequest, SamplingParams, StructuredOutputsParams
from nanovllm.config import Config
from nanovllm.serving.grammars import LEXERS_PER_THREAD, MAX_CACHED, GrammarCompiler
from nanovllm.serving.tokenizer import load_tokenizer

CONFIG = Config(None)
VOCAB_SIZE = CONFIG.hf_config.vocab_size
TOKENIZER = load_tokenizer(CONFIG.model)


@pytest.fixture(scope="module")
def compiler():
    return GrammarCompiler(TOKENIZER, VOCAB_SIZE, CONFIG.eos_token_ids)


def allowed(matcher):
    """The tokens whose bits are set."""
    bitmask = np.zeros(-(-VOCAB_SIZE // 32), np.int32)
    matcher.fill_bitmask(bitmask)
    return set(np.flatnonzero(np.unpackbits(bitmask.view(np.uint8), bitorder="little")).tolist())


def write(matcher, text):
    """How many of a text's tokens the grammar takes, and how many it has."""
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    return sum(1 for token in tokens if matcher.advance(token)), len(tokens)


def nested(depth, **inner):
    schema = dict(inner)
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


BAD_VALUES = [
    ({}, "structured_outputs={}: must be exactly one of json, regex"),
    ({"regex": "a", "choice": ["a"]}, "'choice': ['a']}: must be exactly one"),
    ({"json_object": False}, "structured_outputs={}: must be exactly one"),
    ({"chioce": ["a"]}, "did you mean 'choice'?"),
    ({"json": "{"}, "structured_outputs.json='{': must be JSON"),
    ({"json": "[1]"}, "must be a JSON object"),
    ({"json": 5}, "structured_outputs.json=5: must be a JSON schema"),
    ({"json": {"a": float("nan")}}, "must be what JSON can say"),
    ({"json": {"a": object()}}, "must be what JSON can say"),
    ({"json": nested(10_000)}, "must be what JSON can say"),
    ({"json": '{"items":' * 5000 + "{}" + "}" * 5000}, "must be JSON"),
    ({"json": nested(80)}, "structured_outputs.json depth=65: must be at most 64 levels"),
    ({"json": {"properties": {f"p{i}": {} for i in range(401)}, "required": "p1"}}, "optional=401: must be at most 400"),
    ({"json": {"required": [f"p{i}" for i in range(2001)], "properties": {f"p{i}": {} for i in range(2001)}}},
     "properties=2001: must be at most 2000 in all"),
    ({"json": {"description": "x" * 70_000}}, "must be at most 65536 characters"),
    ({"json": {"type": "integer", "multipleOf": 999983}}, "multipleOf=20001: must be at most 20000"),
    ({"json": {"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}}, "multipleOf=988027: must be at most 20000"),
    ({"json": {"items": {"multipleOf": 0.999983}}}, "multipleOf=999983: must be"),
    ({"grammar": 'start: "x" %json {"multipleOf": 999983}'}, "structured_outputs.grammar multipleOf=20001"),
    ({"grammar": "start: %json {"}, "must have a JSON schema behind each %json"),
    ({"regex": ""}, "structured_outputs.regex='': must be a regular expression"),
    ({"regex": 5}, "structured_outputs.regex=5: must be a regular expression"),
    ({"regex": "x" * 70_000}, "structured_outputs.regex length=70000: must be at most 65536"),
    ({"choice": "abc"}, "structured_outputs.choice='abc': must be a list of at least one text"),
    ({"choice": []}, "structured_outputs.choice=[]: must be a list"),
    ({"choice": ["a", ""]}, "must be texts of at least one character"),
    ({"choice": ["\ud800"]}, "half of a surrogate pair"),
    ({"choice": ["x" * 700] * 100}, "structured_outputs.choice length=70000"),
    ({"json_object": 1}, "structured_outputs.json_object=1: must be True or left out"),
    ({"json_object": True, "disable_any_whitespace": 2}, "disable_any_whitespace=2: must be True or False"),
]


@pytest.mark.unmeasured
@pytest.mark.parametrize(("given", "words"), BAD_VALUES, ids=[words[:40] for _, words in BAD_VALUES])
def test_what_is_no_shape_is_refused_by_name(given, words):
    before = time.thread_time()
    with pytest.raises(InvalidRequest) as error:
        StructuredOutputsParams(**given)
    assert words in str(error.value) and time.thread_time() - before < 1


def test_sampling_params_take_a_shape_and_nothing_else():
    shape = StructuredOutputsParams(json={"type": "object"})
    assert hash(SamplingParams(structured_outputs=shape)) == hash(SamplingParams(structured_outputs=shape))
    with pytest.raises(InvalidRequest, match=r"structured_outputs=\{'json': \{\}\}: must be None or StructuredOutputsParams"):
        SamplingParams(structured_outputs={"json": {}})


IMPOSSIBLE = [
    ({"json": {"type": "string", "minLength": 5, "maxLength": 2}}, "minLength (5) is greater than maxLength (2)"),
    ({"json": {"type": "object", "properties": {"a": False}, "required": ["a"]}}, "required property 'a' is unsatisfiable"),
    ({"json": {"type": "number", "minimum": 5, "maximum": 2}}, "minimum (5) is greater"),
    ({"json": {"type": "bogus"}}, "Invalid type: bogus"),
    ({"json": {"not": {"type": "string"}}}, 'Unimplemented keys: ["not"]'),
    ({"json": {"type": "array", "uniqueItems": True}}, 'Unimplemented keys: ["uniqueItems"]'),
    ({"json": {"$ref": "#/nowhere"}}, "'/nowhere' does not exist"),
    ({"json": {"$ref": "http://example.com/schema"}}, "http://example.com/schema"),
    ({"json": {"$ref": "#"}}, "no text has this shape, or none that ends"),
    ({"json": {"allOf": [{"type": "string", "pattern": f".*a{i}.*"} for i in range(12)]}}, "Unable to determine"),
    ({"json": {"allOf": [{"anyOf": [{"properties": {f"k{i}{j}": {"const": i}}} for i in range(10)]} for j in range(5)]}},
     "too large"),
    ({"regex": ".*" * 500}, "limits"),
    ({"regex": "(a"}, "unclosed group"),
    ({"regex": "a(?=b)"}, "look-around"),
    ({"regex": r"(a)\1"}, "backreferences are not supported"),
    ({"regex": r"[^\s\S]"}, "structured_outputs.regex"),
    ({"regex": "a{0}"}, "no text has this shape"),
    ({"grammar": 'start: "x" | y'}, "unknown name"),
    ({"grammar": 'begin: "x"'}, "start"),
]


@pytest.mark.unmeasured
@pytest.mark.parametrize(("given", "words"), IMPOSSIBLE, ids=[words[:40] for _, words in IMPOSSIBLE])
def test_what_no_answer_can_have_is_refused_by_name_within_a_second(compiler, given, words):
    compiler.matcher(StructuredOutputsParams(regex="a"))  # the vocabulary is read once, not for each
    shape, before = StructuredOutputsParams(**given), time.thread_time()
    with pytest.raises(InvalidRequest) as error:
        compiler.matcher(shape)
    assert time.thread_time() - before < 1
    assert words in str(error.value) and f"structured_outputs.{shape.shape}=" in str(error.value)


@pytest.mark.unmeasured
@pytest.mark.parametrize("given", [
    {"json": {"type": "object", "properties": {f"p{i}": {} for i in range(400)}}},
    {"json": {"type": "object", "properties": {f"p{i}": {} for i in range(2000)}, "required": [f"p{i}" for i in range(1600)]}},
    {"json": {"allOf": [{"type": "object", "properties": {f"p{i}_{j}": {} for i in range(390)}} for j in range(5)]}},
    {"json": {"type": "integer", "multipleOf": 19_997}},
    {"json": {"type": "array", "prefixItems": [{"type": "integer", "multipleOf": n} for n in (9999, 3333, 1111)]}},
    {"json": {"enum": [{"a": i, "b": [i]} for i in range(2500)]}},
    {"choice": [f"w{i}" for i in range(10_000)]},
    {"regex": "((a{1,100}){1,100}){1,100}"}, {"regex": "(a|b)*a(a|b){20}"}, {"regex": "(x+x+)+y"}, {"regex": "a" * 60_000},
    {"grammar": "start: a0\n" + "\n".join(f"a{i}: a{i + 1} a{i + 1} a{i + 1}" for i in range(60)) + '\na60: "x"?'},
], ids=lambda given: str(given)[:40])
def test_the_worst_that_is_taken_is_compiled_within_a_second(compiler, given):
    shape, before = StructuredOutputsParams(**given), time.thread_time()
    assert allowed(compiler.matcher(shape))
    assert time.thread_time() - before < 1


def test_python_goes_on_while_a_grammar_is_compiled(compiler):
    """Or the event loop, and the thread that steps the engine, would wait for it."""
    shape = StructuredOutputsParams(json={
        "allOf": [{"type": "object", "properties": {f"name{i}_{j}": {} for i in range(390)}} for j in range(5)]})
    thread = threading.Thread(target=compiler.matcher, args=(shape,))
    gaps, last = [0.0], time.perf_counter()
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        gaps.append(time.perf_counter() - last)
        last += gaps[-1]
    assert len(gaps) > 20 and max(gaps) < 0.1


TEXTS = ['say "hi"\n', "café\\", "東京", "\x00\x7f", "a/b", "a|b", ".*", " ", "a", "ab"]


def test_each_choice_can_be_written_and_nothing_else(compiler):
    shape = StructuredOutputsParams(choice=TEXTS)
    for text in TEXTS:
        matcher = compiler.matcher(shape)
        taken, count = write(matcher, text)
        assert taken == count and matcher.is_accepting
        assert matcher.is_finished == (text != "a")  # which may become "a/b"
    taken, count = write(compiler.matcher(shape), "xyz")
    assert taken == 0 < count


def test_bits_are_what_may_be_taken_and_rollback_restores_them(compiler):
    matcher = compiler.matcher(StructuredOutputsParams(json={
        "type": "object", "properties": {"size": {"enum": ["small", "large"]}}, "required": ["size"]}))
    masks = []
    for token in TOKENIZER.encode('{"size": "large"}', add_special_tokens=False):
        masks.append(allowed(matcher))
        assert token in masks[-1]
        for other in (0, 100, 2000, *CONFIG.eos_token_ids):
            probe = matcher.copy()
            assert probe.advance(other) == (other in masks[-1])
        assert matcher.advance(token)
    assert matcher.is_finished and allowed(matcher) == set(CONFIG.eos_token_ids)
    for mask in reversed(masks):
        matcher.rollback(1)
        assert allowed(matcher) == mask
    tokens = TOKENIZER.encode('{"size": "huge"}', add_special_tokens=False)
    assert TOKENIZER.decode(tokens[:matcher.num_allowed(tokens)]) == '{"size": "' and allowed(matcher) == masks[0]


@pytest.mark.parametrize("shape", [StructuredOutputsParams(json_object=True), StructuredOutputsParams(json={"type": "array"})])
def test_blanks_in_json_come_to_an_end(compiler, shape):
    matcher = compiler.matcher(shape)
    write(matcher, "{" if shape.json_object else "[")
    written = 0
    while written < 100:
        blanks = [token for token in allowed(matcher) if TOKENIZER.decode([token]).isspace()]
        if not blanks:
            break
        matcher.advance(blanks[-1])
        written += 1
    assert 0 < written <= 17


def test_compiled_grammars_are_kept_the_last_used_longest(compiler):
    compiler = GrammarCompiler(TOKENIZER, VOCAB_SIZE, CONFIG.eos_token_ids)
    first = StructuredOutputsParams(choice=["first"])
    for i in range(MAX_CACHED + 10):
        compiler.matcher(StructuredOutputsParams(choice=[str(i)]))
        compiler.matcher(first)
    assert compiler.num_compiled == MAX_CACHED + 11 and len(compiler._compiled) == MAX_CACHED
    compiler.matcher(StructuredOutputsParams(choice=["0"]))  # forgotten by now
    assert compiler.num_compiled == MAX_CACHED + 12


STRINGS = StructuredOutputsParams(json={"type": "object", "required": ["name"], "additionalProperties": False,
                                        "properties": {"name": {"type": "string", "maxLength": 9}}})


def threaded(num_threads):
    return GrammarCompiler(TOKENIZER, VOCAB_SIZE, CONFIG.eos_token_ids, num_threads=num_threads)


def test_matchers_in_use_at_once_are_compiled_apart_as_far_as_threads_can_use_it():
    """Copies of one of llguidance's matchers wait for each other."""
    compiler, most = threaded(2), 2 * LEXERS_PER_THREAD
    alone = compiler.matcher(STRINGS)
    grammar = compiler._compiled[STRINGS]
    del alone
    alone = compiler.matcher(STRINGS)  # nobody has the first any more
    assert grammar.num_lexers == 1
    others = [compiler.matcher(STRINGS) for _ in range(most + 2)]
    assert grammar.num_lexers == most and compiler.num_compiled == 1
    assert sorted(len(lexer.in_use) for lexer in grammar._lexers) == [1] * (most - 3) + [2] * 3
    del others, alone
    assert [len(lexer.in_use) for lexer in grammar._lexers] == [0] * most
    one = threaded(1)
    kept = [one.matcher(STRINGS) for _ in range(4)]
    assert one._compiled[STRINGS].num_lexers == 1 and one._executor is None and len(kept) == 4


def test_callers_that_ask_at_once_compile_no_more_than_they_may():
    compiler, kept, gate = threaded(2), [], threading.Barrier(16)
    compiler.matcher(STRINGS)

    def ask():
        gate.wait()
        kept.append(compiler.matcher(STRINGS))

    callers = [threading.Thread(target=ask) for _ in range(16)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(kept) == 16 and compiler._compiled[STRINGS].num_lexers == 2 * LEXERS_PER_THREAD


def test_what_takes_long_to_compile_is_compiled_once(monkeypatch):
    monkeypatch.setattr("nanovllm.serving.grammars.COSTLY", 0)
    compiler = threaded(4)
    kept = [compiler.matcher(STRINGS) for _ in range(5)]
    assert compiler._compiled[STRINGS].num_lexers == 1 and len(kept) == 5


@pytest.mark.parametrize("num_matchers", [1, 3, 4, 20])
def test_masks_filled_together_are_those_filled_alone(num_matchers):
    """Of several grammars and places, into rows in any order, by one thread and by several."""
    shapes = [STRINGS, StructuredOutputsParams(regex="[a-z ]{3,20}"), StructuredOutputsParams(json_object=True)]
    texts = ["", '{"name": "', '{"name": "the fox', '{"name"', "the fo"]
    for compiler in (threaded(1), threaded(4)):
        matchers = [compiler.matcher(shapes[i % 3]) for i in range(num_matchers)]
        for i, matcher in enumerate(matchers):
            write(matcher, texts[i % 5])
        bits = np.full((num_matchers + 2, -(-VOCAB_SIZE // 32)), 7, np.int32)
        rows = [(i * 7 + 1) % (num_matchers + 2) for i in range(num_matchers)]
        rows = rows if len(set(rows)) == num_matchers else list(range(num_matchers))
        assert type(matchers[0]).fill_bitmasks(matchers, bits, rows, [[] for _ in rows]) == {}
        for row, matcher in zip(rows, matchers):
            assert set(np.flatnonzero(np.unpackbits(bits[row].view(np.uint8), bitorder="little")).tolist()) == allowed(matcher)
        assert all((bits[row] == 7).all() for row in range(num_matchers + 2) if row not in rows)


@pytest.mark.parametrize("num_matchers", [1, 5, 12])
def test_masks_behind_drafts_are_those_of_a_matcher_that_took_them(num_matchers):
    """Up to the first draft that may not come, behind which nothing is masked; the matchers stay where they are."""
    texts = ["", '{"name": "', '{"name": "the fox', '{"name"']
    follow = ['{"name": "a', 'fox and the hen"', "}}", "", ': "a bear", "size"']
    for compiler in (threaded(1), threaded(4)):
        matchers = [compiler.matcher(STRINGS) for _ in range(num_matchers)]
        drafts = [TOKENIZER.encode(follow[i % 5], add_special_tokens=False)[:4] for i in range(num_matchers)]
        rows, total = [], 0
        for i, matcher in enumerate(matchers):
            write(matcher, texts[i % 4])
            rows.append(total)
            total += 1 + len(drafts[i])
        bits = np.full((total, -(-VOCAB_SIZE // 32)), 7, np.int32)
        assert type(matchers[0]).fill_bitmasks(matchers, bits, rows, drafts) == {}
        refused = 0
        for row, matcher, tokens in zip(rows, matchers, drafts):
            copy, right = matcher.copy(), True
            for i, token in enumerate([None, *tokens]):
                right = right and (token is None or copy.advance(token))
                found = set(np.flatnonzero(np.unpackbits(bits[row + i].view(np.uint8), bitorder="little")).tolist())
                assert found == allowed(copy) if right else (bits[row + i] == -1).all(), (i, tokens)
                refused += not right
            assert allowed(matcher) == set(
                np.flatnonzero(np.unpackbits(bits[row].view(np.uint8), bitorder="little")).tolist())
        assert bool(refused) == (num_matchers > 1)


def test_forced_tokens_are_those_that_masks_leave_no_choice_about(compiler):
    """At every place of an answer, whoever asked before, after a copy and after a rollback."""
    shape = StructuredOutputsParams(disable_any_whitespace=True, json={
        "type": "object", "additionalProperties": False, "required": ["name", "size"], "properties": {
            "name": {"type": "string", "maxLength": 6}, "size": {"enum": ["small", "large"]}}})
    rng, found = np.random.default_rng(0), 0
    for _ in range(12):
        matcher = compiler.matcher(shape)
        while not matcher.is_finished:
            forced, copy = matcher.forced_tokens(9), matcher.copy()
            assert copy.forced_tokens(9) == forced and matcher.forced_tokens(1) == forced[:1]
            for token in forced:
                assert allowed(copy) == {token} and copy.advance(token)
            copy.rollback(len(forced))
            assert copy.forced_tokens(9) == forced
            found += len(forced)
            assert matcher.advance(int(rng.choice(sorted(allowed(matcher)))))
    assert found > 40


def test_without_a_fast_tokenizer_no_shape_is_served():
    compiler = GrammarCompiler(None, VOCAB_SIZE)
    compiler.prepare()
    with pytest.raises(InvalidRequest, match="structured_outputs: must be None for a model without a fast tokenizer"):
        compiler.matcher(StructuredOutputsParams(regex="a"))


def test_many_properties_that_may_be_left_out_can_be_followed(compiler):
    """llguidance keeps some four notes for each of them, and gives up at 2,000: such a request would end with an error."""
    shape = StructuredOutputsParams(json={"type": "object", "properties": {f"p{i}": {} for i in range(400)}})
    matcher = compiler.matcher(shape)
    taken, count = write(matcher, '{"p7": 1, "p300": [2], "p399": true')
    assert taken == count and allowed(matcher)


def test_a_lexer_that_could_not_be_compiled_leaves_its_place_to_the_next(monkeypatch):
    """An interrupt, or memory that is short, in the middle of compiling again: the next request tries once more."""
    compiler = threaded(2)
    kept = [compiler.matcher(STRINGS)]
    grammar, most = compiler._compiled[STRINGS], 2 * LEXERS_PER_THREAD
    again = grammar._compile_again
    for error in (KeyboardInterrupt, MemoryError):
        monkeypatch.setattr(grammar, "_compile_again", Mock(side_effect=error))
        for _ in range(most):
            with pytest.raises(error):
                compiler.matcher(STRINGS)
    monkeypatch.setattr(grammar, "_compile_again", again)
    kept += [compiler.matcher(STRINGS) for _ in range(most - 1)]
    assert grammar.num_lexers == most and [len(lexer.in_use) for lexer in grammar._lexers] == [1] * most == [1] * len(kept)


def test_threads_that_compile_one_shape_at_once_keep_one_grammar_of_it(monkeypatch):
    compiler, together = threaded(2), threading.Barrier(3)
    compile_one = compiler._compile

    def compile_together(*arguments):
        together.wait(30)
        return compile_one(*arguments)

    monkeypatch.setattr(compiler, "_compile", compile_together)
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(compiler._grammar, [STRINGS] * 3))
    assert len(set(map(id, found))) == 1 and found[0] is compiler._compiled[STRINGS] and compiler.num_compiled == 3

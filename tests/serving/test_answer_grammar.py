"""The grammar of an answer that thinks, calls tools or has a shape: what it takes, and what it never takes."""

import json

import pytest

from nanovllm.config import OFFLINE_MODEL
from nanovllm.errors import InvalidRequest
from nanovllm.serving.answer_grammar import MOST_CALLS, CallableTool, answer_grammar
from nanovllm.serving.grammars import GrammarCompiler
from nanovllm.serving.thinking import Thinks
from nanovllm.serving.tokenizer import load_tokenizer
from nanovllm.structured_outputs import StructuredOutputsParams

ADD = CallableTool("add", {"type": "object", "required": ["a"], "$defs": {"N": {"type": "integer"}}, "properties": {
    "a": {"$ref": "#/$defs/N"}, "b": {"type": "string", "description": '100 %json { "/" \\'}}})
NOW, ANY = CallableTool("now", None), CallableTool("any", {})
TOOLS = [ADD, NOW, ANY]
SHAPE = StructuredOutputsParams(json={"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"],
                                      "additionalProperties": False})


def call(name, **arguments) -> str:
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False) + "\n</tool_call>"


@pytest.fixture(scope="module")
def takes():
    """(grammar, text) -> whether the whole text is an answer; None where it is the beginning of one."""
    tokenizer = load_tokenizer(OFFLINE_MODEL)
    compiler = GrammarCompiler(tokenizer, 2560, (2557, 2559))

    def takes(grammar, text):
        matcher = compiler.matcher(grammar)
        if not all(matcher.advance(token) for token in tokenizer.encode(text)):
            return False
        return matcher.is_accepting or None
    return takes


@pytest.mark.parametrize("text, taken", [
    (call("add", a=1), True), (call("add", a=-7, b='x"y'), True), (call("now"), True), (call("any", q=[1], r="é"), True),
    (call("now") + "\n" + call("add", a=5), True), ("\n".join([call("now")] * MOST_CALLS), True),
    ("\n".join([call("now")] * (MOST_CALLS + 1)), False), (call("add", a=1, c=2), False), (call("add"), False),
    (call("add", a="1"), False), (call("now", a=1), False), (call("never"), False), ("Hm. " + call("now"), False),
    (call("now")[:20], None), (call("now") + "\n", None), ("", None),
])
def test_an_answer_that_must_call(takes, text, taken):
    assert takes(answer_grammar(Thinks.NO, TOOLS, must_call=True), text) is taken


def test_one_call_and_no_more(takes):
    one = answer_grammar(Thinks.NO, [NOW], must_call=True, max_calls=1)
    assert takes(one, call("now")) and takes(one, call("now") + "\n") is False


@pytest.mark.parametrize("text, taken", [
    ("Hello", True), ("", True), ("a < b", True), ("See: " + call("now") + " there", True),
    (call("add", a=1) + call("now"), True),
    (call("add", a=True), False), (call("never"), False), ("<tool_call>x", False), ("<tool_call>", None),
])
def test_an_answer_that_may_call_strict_tools(takes, text, taken):
    assert takes(answer_grammar(Thinks.NO, TOOLS), text) is taken


@pytest.mark.parametrize("text, taken", [
    (call("now"), True), ('{"x": 1}', True), ('{"x":1}', True), ("Hello", False), (call("now") + '\n{"x": 1}', False)])
def test_an_answer_that_calls_or_has_a_shape(takes, text, taken):
    assert takes(answer_grammar(Thinks.NO, TOOLS, shape=SHAPE), text) is taken


@pytest.mark.parametrize("shape, good, bad", [
    (SHAPE, '{"x": 1}', '{"y": 1}'), (StructuredOutputsParams(json_object=True), '{"y": [1]}', "[1]"),
    (StructuredOutputsParams(regex=r"a/\/b+[/\d]\n"), "a//bb/\n", "ab"),
    (StructuredOutputsParams(choice=["yes/n\no", "é"]), "é", "e"),
    (StructuredOutputsParams(json={"type": "object"}, disable_any_whitespace=True), '{"a": 1}', '{ "a": 1}'),
])
def test_thoughts_come_before_a_shape(takes, shape, good, bad):
    maybe, already = answer_grammar(Thinks.MAYBE, shape=shape), answer_grammar(Thinks.ALREADY, shape=shape)
    for grammar, prefix in ((maybe, ""), (maybe, "<think>\nHm {\n</think>\n\n"), (already, "Hm <tool_call> {\n</think>\n\n")):
        assert takes(grammar, prefix + good) is True and takes(grammar, prefix + bad) is False
    assert takes(maybe, "<think>" + good) is None and takes(already, good) is None
    assert takes(answer_grammar(Thinks.ALREADY, TOOLS, must_call=True), f"Hm.</think>{call('now')}") is True


def test_what_needs_no_grammar_of_its_own():
    assert answer_grammar(Thinks.MAYBE) is None and answer_grammar(Thinks.NO, shape=SHAPE) is SHAPE
    own = StructuredOutputsParams(grammar='start: "a"')
    assert answer_grammar(Thinks.NO, shape=own) is own
    with pytest.raises(InvalidRequest, match=r"structured_outputs\.grammar=.*: must be left out when the model thinks"):
        answer_grammar(Thinks.ALREADY, shape=own)

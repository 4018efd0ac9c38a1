"""Thoughts, content and tool calls in an answer, however the text is cut into pieces."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanovllm.serving.answer import Answer, AnswerFormat, AnswerParser
from nanovllm.serving.thinking import Reasoning, Thinks
from nanovllm.serving.tool_calls import CallArguments, CallBegun, CallBroken, CallEnded, Content

TOOLS = AnswerFormat(calls_tools=True)


def call(name="f", **arguments) -> str:
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"


def streamed(pieces: list[str], form: AnswerFormat) -> Answer:
    """The answer that a client puts together from the pieces of a stream; a call that broke stands in the content."""
    parser, answer, arguments, broken = AnswerParser(form), Answer(), {}, {}
    names = {}
    for i, text in enumerate([*pieces, ""]):
        for piece in parser.push(text, final=i == len(pieces)):
            if isinstance(piece, Reasoning):
                answer.reasoning += piece.text
            elif isinstance(piece, Content):
                answer.content += piece.text
            elif isinstance(piece, CallBegun):
                assert piece.index == len(names)  # in order, and each begun once
                names[piece.index], arguments[piece.index] = piece.name, ""
            elif isinstance(piece, CallArguments):
                assert piece.text
                arguments[piece.index] += piece.text
            elif isinstance(piece, CallBroken):
                broken[piece.index] = piece.source
                answer.content += piece.source
            else:
                assert isinstance(json.loads(arguments[piece.index]), dict)
    answer.calls = [(names[i], arguments[i]) for i in names if i not in broken]
    return answer


def parts(answer: Answer):
    return answer.reasoning, answer.content, [each if isinstance(each, tuple) else (each.name, each.arguments)
                                              for each in answer.calls]


@pytest.mark.parametrize("text, content, calls", [
    ("Hello", "Hello", []), ("", "", []), (" a \n", " a \n", []), ("a < b <tool", "a < b <tool", []),
    (call(city="Paris"), "", [("f", '{"city": "Paris"}')]),
    ("Let me see.\n" + call(a=1) + "\n" + call("g", b=[{}, "}"]), "Let me see.",
     [("f", '{"a": 1}'), ("g", '{"b": [{}, "}"]}')]),
    (call(a="</tool_call>"), "", [("f", '{"a": "</tool_call>"}')]),
    (call(a='x"\\'), "", [("f", json.dumps({"a": 'x"\\'}))]),
    (call(a="<tool_call>{") + " and on", "and on", [("f", '{"a": "<tool_call>{"}')]),
    ('<tool_call>{"name":"f","arguments":{}}</tool_call>', "", [("f", "{}")]),
    ('<tool_call>{"name": "f", "arguments": {"a" :1}}', "", [("f", '{"a" :1}')]),  # the end came instead of the tag
    ('<tool_call>{"name": "f", "arguments": {}}\n</tool', "", [("f", "{}")]),
    ('<tool_call>{"arguments": {"a" :  "é"}, "name": "f"}</tool_call>!', "!", [("f", '{"a": "é"}')]),  # another order
    ('<tool_call>{"name": "f", "arguments": {"a": 1}, "id": 7}</tool_call>', "", [("f", '{"a": 1}')]),
    ('<tool_call>{"name": "f\\u0041", "arguments": {}}</tool_call>', "", [("fA", "{}")]),
])
def test_calls_and_content(text, content, calls):
    assert parts(Answer.of(text, TOOLS)) == ("", content, calls)


@pytest.mark.parametrize("text", [
    "<tool_call>", "<tool_call>\n", "<tool_call>no JSON</tool_call>", '<tool_call>{"name": "f"}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"a": 1</tool_call>', '<tool_call>{"name": "f", "arguments": {"a": 1',
    '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"a": b}}</tool_call>', '<tool_call>{"name": "f", "arguments": {}, }</tool_call>',
    '<tool_call>[{"name": "f", "arguments": {}}]</tool_call>', '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>',
    'Well \n <tool_call>{"name": "f", "arguments": {}, "name": "g"}</tool_call>', '<tool_call>{]}</tool_call> x',
    '<tool_call>{"name": "f", "arguments": {}, "arguments": {"a": 1}}</tool_call>', "</tool_call>", "<tool_call><tool_call>",
    '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
    "<tool_call>" * 3 + "{" * 5000, '<tool_call>{"name": "f", "arguments": ' + '{"a":' * 3000 + "1" + "}" * 3001,
])
def test_what_is_no_call_comes_back_as_it_was_written(text):
    for pieces in ([text], list(text[:4000]) + [text[4000:]]):
        answer = streamed(pieces, TOOLS)
        assert (answer.content, answer.calls) == (text, [])
    assert parts(Answer.of(text, TOOLS)) == ("", text, [])


def test_a_good_call_after_a_broken_one():
    text = '<tool_call>{"name": "f", "arguments": {"a": }}</tool_call>\n' + call("g") + call("h")
    answer = Answer.of(text, TOOLS)
    assert answer.content == '<tool_call>{"name": "f", "arguments": {"a": }}</tool_call>'
    assert [each.name for each in answer.calls] == ["g", "h"]
    one = Answer.of(call("f") + call("g") + "end", AnswerFormat(calls_tools=True, max_calls=1))
    assert [each.name for each in one.calls] == ["f"] and one.content == "end"


def test_a_name_and_arguments_come_as_soon_as_they_are_known():
    parser = AnswerParser(TOOLS)
    assert parser.push("Hm. <tool_call>\n{") == [Content("Hm.")]
    assert parser.push('"name": "get_weather", "argu') == []
    assert parser.push('ments": {"ci') == [CallBegun(0, "get_weather"), CallArguments(0, '{"ci')]
    assert parser.push('ty": "Par') == [CallArguments(0, 'ty": "Par')]
    assert parser.push('is"}}\n</tool_') == [CallArguments(0, 'is"}'), CallEnded(0)]
    assert parser.push("call>\n") == [] and parser.push("", final=True) == []


@pytest.mark.parametrize("thinks, text, reasoning, content", [
    (Thinks.MAYBE, "<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."), (Thinks.MAYBE, "Yes.", "", "Yes."),
    (Thinks.MAYBE, " <think></think>Yes", "", "Yes"), (Thinks.MAYBE, "<think>Hm. </thi", "Hm. </thi", ""),
    (Thinks.MAYBE, " <thin", "", " <thin"), (Thinks.MAYBE, "<thinker>", "", "<thinker>"), (Thinks.MAYBE, " ", "", " "),
    (Thinks.MAYBE, "A <think>b</think>", "", "A <think>b</think>"), (Thinks.MAYBE, "\n\nx", "", "\n\nx"),
    (Thinks.ALREADY, "Hm.\n\nWell.\n</think>\n\nYes.", "Hm.\n\nWell.", "Yes."), (Thinks.ALREADY, "Hm. ", "Hm.", ""),
    (Thinks.ALREADY, "\n</think>\n", "", ""), (Thinks.NO, "<think>x</think>", "", "<think>x</think>"),
    (Thinks.ALREADY, "a </think> <think>b</think>", "a", "<think>b</think>"),
])
def test_thoughts(thinks, text, reasoning, content):
    for form in (AnswerFormat(thinks), AnswerFormat(thinks, calls_tools=True)):
        assert parts(Answer.of(text, form)) == (reasoning, content, [])
        assert parts(streamed(list(text), form)) == (reasoning, content, [])


def test_thoughts_about_calls_are_no_calls():
    answer = Answer.of(f"<think>{call('f')}</think>\n{call('g')}", AnswerFormat(Thinks.MAYBE, calls_tools=True))
    assert (answer.reasoning, answer.content, [each.name for each in answer.calls]) == (call("f"), "", ["g"])


def test_what_a_prompt_leaves_open():
    assert Thinks.after("<|im_start|>assistant\n") is Thinks.MAYBE
    assert Thinks.after("<|im_start|>assistant\n<think>\n") is Thinks.ALREADY
    assert Thinks.after("<|im_start|>assistant\n<think>\n\n</think>\n\n") is Thinks.NO


WORDS = ["<tool_call>", "</tool_call>", "<think>", "</think>", "\n", " ", '{"name": "f", "arguments": ', "{}", '{"a": "}"}',
         "}", '"', "\\", "Hello", "<", "[", "]", call("g", x=1), '{"arguments": {}, "name": "h"}', ",", "é"]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=9).map("".join), st.lists(st.integers(1, 6), max_size=80),
       st.sampled_from(list(Thinks)))
def test_how_a_text_is_cut_never_changes_what_is_found(text, cuts, thinks):
    form = AnswerFormat(thinks, calls_tools=True)
    pieces, rest = [], text
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    pieces.append(rest)
    assert parts(streamed(pieces, form)) == parts(streamed([text], form)) == parts(Answer.of(text, form))


@pytest.mark.unmeasured
def test_a_long_call_takes_time_in_proportion():
    text = call(a="x" * 200_000, b=[{"c": i} for i in range(20_000)])
    began = time.monotonic()
    answer = streamed([text[i:i + 4] for i in range(0, len(text), 4)], TOOLS)
    assert json.loads(answer.calls[0][1])["b"][-1] == {"c": 19_999}
    assert time.monotonic() - began < 10

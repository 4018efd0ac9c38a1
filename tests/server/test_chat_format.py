"""What a chat template says of a model: whether it thinks, whether it can be told not to, how it calls tools."""

import pytest

from nanovllm.config import OFFLINE_MODEL
from nanovllm.server.chat_format import ChatFormat, TemplateFacts
from nanovllm.serving.tokenizer import load_tokenizer

QWEN3 = ("{{ messages[0].content }}{% if tools %}<tool_call>{% endif %}<|im_start|>assistant\n"
         "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}")
R1 = "{{ messages[0].content.split('</think>')[-1] }}<|im_start|>assistant\n<think>\n"
CODER = "{{ messages[0].content }}{% if tools %}<tool_call><function=f>{% endif %}"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(OFFLINE_MODEL)


@pytest.mark.parametrize("template, thinks, unasked, calls", [
    (QWEN3, True, True, True), (R1, True, False, False), (CODER, False, False, False),
    ("{{ messages[0].content }}", False, False, False), ("{% if %}", False, False, False),
    ("{{ raise_exception('no') }}{{ enable_thinking }}</think>", True, False, False)])
def test_facts(tokenizer, template, thinks, unasked, calls):
    class Templated:
        chat_template = template
        encode, decode = tokenizer.encode, tokenizer.decode

        @staticmethod
        def apply_chat_template(messages, **how):
            return tokenizer.apply_chat_template(messages, chat_template=template, **how)

    facts = TemplateFacts.of(Templated(), template)
    assert (facts.thinks, facts.thinks_unasked, facts.calls_tools, facts.hides_tags) == (thinks, unasked, calls, False)


def test_facts_of_the_offline_model(tokenizer):
    facts = ChatFormat(tokenizer).facts
    assert facts.thinks and not facts.thinks_unasked and facts.calls_tools and not facts.hides_tags


def test_tags_that_are_special_tokens_are_known_to_be_hidden(tokenizer):
    class Hiding:
        encode = tokenizer.encode

        @staticmethod
        def decode(token_ids, skip_special_tokens=False):
            return tokenizer.decode(token_ids).replace("<tool_call>", "" if skip_special_tokens else "<tool_call>")

        @staticmethod
        def apply_chat_template(messages, **how):
            return ""

    assert TemplateFacts.of(Hiding(), QWEN3).hides_tags


def test_no_tokenizer_and_no_template():
    assert ChatFormat(None).facts == TemplateFacts()
    with pytest.raises(ValueError, match="reasoning_parser='hermes'"):
        ChatFormat(None, "hermes")

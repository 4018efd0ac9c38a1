"""From a conversation to a prompt: what transformers makes of it, vLLM's keywords, and every way in which it can fail."""

import asyncio
import json
import shutil
import warnings

import pytest
from transformers import AutoTokenizer

from nanovllm import LLM, AsyncLLM, SamplingParams
from nanovllm.config import OFFLINE_MODEL
from nanovllm.errors import InvalidRequest
from nanovllm.serving.chat import ChatPrompt

HI = [{"role": "user", "content": "Hi"}]
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me a story."},
        {"role": "assistant", "content": "Once upon a time"}]
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def llm():
    with LLM(device="cpu", num_kvcache_blocks=64) as llm:
        yield llm


@pytest.fixture(scope="module")
def reference():
    return AutoTokenizer.from_pretrained(OFFLINE_MODEL)


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(OFFLINE_MODEL, tmp_path / "model")


def edit(folder, file, **changes):
    values = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps(values | changes), encoding="utf-8")


def opened(folder):
    return LLM(folder, device="cpu", num_kvcache_blocks=64)


# Special tokens.

def with_bos(folder):
    """A tokenizer whose post-processor adds a token in front, and a template that writes it, as Llama 3's."""
    values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    bos = {"id": "<|im_start|>", "ids": [2558], "tokens": ["<|im_start|>"]}
    first, text = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    values["post_processor"] = {"type": "TemplateProcessing", "single": [first, text], "pair": [first, text],
                                "special_tokens": {"<|im_start|>": bos}}
    (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "GPT2Tokenizer"])
def test_a_rendered_chat_gets_no_second_bos(folder, tokenizer_class):
    edit(with_bos(folder), "tokenizer_config.json", tokenizer_class=tokenizer_class)
    reference = AutoTokenizer.from_pretrained(folder)
    expected = reference.apply_chat_template(HI, add_generation_prompt=True, return_dict=False)
    plain = reference.encode("Hi")
    with opened(folder) as llm:
        assert llm.chat(HI, GREEDY, use_tqdm=False)[0].prompt_token_ids == expected
        text = llm.render_chat(HI)
        assert llm.generate(text, GREEDY, use_tqdm=False)[0].prompt_token_ids == expected
        assert llm.generate([text, "Hi"], GREEDY, use_tqdm=False)[1].prompt_token_ids == plain
        assert type(llm.generate(text, GREEDY, use_tqdm=False)[0].prompt) is str
        streamed = "".join(llm.stream(text, GREEDY))
        assert streamed == llm.chat(HI, GREEDY, use_tqdm=False)[0].text

        async def chat():
            async with AsyncLLM(llm) as serving:
                return await serving.chat(HI, GREEDY)

        assert asyncio.run(chat()).prompt_token_ids == expected
    assert expected.count(2558) == 2 and len(expected) == len(reference.encode(str(text))) - 1
    assert (tokenizer_class == "GPT2Tokenizer") or plain[0] == 2558


# Keywords.

def test_vllms_keywords_reach_the_template(folder):
    template = "{{ messages[0].content }}|{{ enable_thinking }}|{{ add_generation_prompt }}|{{ tools }}|{{ documents }}"
    edit(folder, "tokenizer_config.json", chat_template=template)
    with opened(folder) as llm:
        assert llm.render_chat(HI, chat_template_kwargs={"enable_thinking": False}) == "Hi|False|True|None|None"
        assert llm.render_chat(HI, enable_thinking=False) == "Hi|False|True|None|None"
        assert llm.render_chat(HI, enable_thinking=0, add_generation_prompt=False, tools=[{"a": 1}], documents=[{"b": 2}]
                               ) == "Hi|0|False|[{'a': 1}]|[{'b': 2}]"
        assert llm.render_chat(HI, chat_template_kwargs={"add_generation_prompt": False}) == "Hi||False|None|None"
        assert llm.render_chat(HI, chat_template="{{ messages | length }}{{ x }}", x=5) == "15"
        output, = llm.chat(HI, GREEDY, use_tqdm=False, chat_template_kwargs={"enable_thinking": False})
        assert output.prompt == "Hi|False|True|None|None"


def test_an_answer_that_is_begun_is_continued(llm, reference):
    text = llm.render_chat(TALK, continue_final_message=True)
    assert text == reference.apply_chat_template(TALK, tokenize=False, continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nOnce upon a time")
    output, = llm.chat(TALK, GREEDY, use_tqdm=False, continue_final_message=True)
    assert output.text == llm.generate(text, GREEDY, use_tqdm=False)[0].text
    assert output.prompt == text
    with pytest.raises(InvalidRequest, match="add_generation_prompt=True: must be False with continue_final_message"):
        llm.chat(TALK, continue_final_message=True, add_generation_prompt=True)
    for wrong in ("reasoning", "nothing"):
        with pytest.raises(InvalidRequest, match="the final message cannot be continued: it, or the chat template, has no"):
            llm.chat(TALK, continue_final_message=wrong)
    closed = llm.render_chat(TALK, add_generation_prompt=False)
    assert closed == reference.apply_chat_template(TALK, tokenize=False)


@pytest.mark.parametrize("name", ["tokenize", "padding", "max_length", "return_tensors", "messages", "conversation"])
def test_names_that_are_no_variables_are_refused(llm, name):
    with pytest.raises(InvalidRequest, match=f"chat template argument='{name}'"):
        llm.chat(HI, chat_template_kwargs={name: 1})


def test_keywords_never_vanish_nor_collide(llm):
    with pytest.raises(InvalidRequest, match=r"'max_tokens'.*pass SamplingParams\(max_tokens"):
        llm.chat(HI, max_tokens=5)
    with pytest.raises(InvalidRequest, match="must be given once"):
        llm.render_chat(HI, tools=None, chat_template_kwargs={"tools": []})
    for wrong in ("enable_thinking", [1], {1: 2}):
        with pytest.raises(InvalidRequest, match="chat_template_kwargs="):
            llm.chat(HI, chat_template_kwargs=wrong)
    with pytest.warns(UserWarning, match="does not read think_hard"):
        assert llm.render_chat(HI, think_hard=False) == llm.render_chat(HI)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.render_chat(HI, chat_template_kwargs={}, tools=None)
    outputs = llm.chat([HI, TALK[:2]], GREEDY, use_tqdm=False, priority=[1, -1])
    assert [output.prompt for output in outputs] == [llm.render_chat(HI), llm.render_chat(TALK[:2])]


@pytest.mark.parametrize("several", [[HI, TALK[:2]], (HI, TALK[:2]), (tuple(HI), tuple(TALK[:2]))])
def test_conversations_may_be_lists_or_tuples(llm, several):
    assert len(llm.chat(several, GREEDY, use_tqdm=False)) == 2
    assert len(llm.chat(several[0], GREEDY, use_tqdm=False)) == 1
    assert llm.chat([], GREEDY, use_tqdm=False) == []


@pytest.mark.parametrize("messages", [None, "Hi", 5, [[]], ["Hi"], [None], [{"role": "user"}], [{"content": "Hi"}],
                                      [{"role": 5, "content": "Hi"}], [{"role": "user", "content": None}], {"role": "user"}])
def test_messages_that_are_none_are_named(llm, messages):
    with pytest.raises(InvalidRequest, match="message="):
        llm.chat(messages, use_tqdm=False)


# Templates that fail.

@pytest.mark.parametrize("template, error, match", [
    ("{{ raise_exception('no system') }}", InvalidRequest, "the chat template refuses these messages: no system"),
    ("{{ 1 / 0 }}", InvalidRequest, "cannot render these messages .ZeroDivisionError"),
    ("{{ 'a' + 5 }}", InvalidRequest, "cannot render these messages .TypeError"),
    ("{{ nothing.at.all }}", InvalidRequest, "refuses these messages: 'nothing' is undefined"),
    ("{{ messages[0].__class__.__mro__ }}", InvalidRequest, "refuses these messages: access to attribute '__class__'"),
    ("{{ range(10**9) }}", InvalidRequest, "Range too big"),
    ("{% include 'other' %}", InvalidRequest, "no loader"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", InvalidRequest, "RecursionError"),
    ("{{ messages", InvalidRequest, "the chat template of model is not valid, in line 1"),
    ("\n\n{% for %}", InvalidRequest, "the chat template of model is not valid, in line 3")])
def test_a_template_that_fails_says_why(folder, template, error, match):
    edit(folder, "tokenizer_config.json", chat_template=template)
    with opened(folder) as llm:
        with pytest.raises(error, match=match):
            llm.chat(HI, GREEDY, use_tqdm=False)
        with pytest.raises(error, match=match):
            llm.render_chat(HI, x=1)
        assert not llm.engine.has_unfinished
        assert llm.generate("Hi", GREEDY, use_tqdm=False)[0].token_ids


@pytest.mark.parametrize("template", [5, ["a"], {"default": "{{ 1 }}"}])
def test_a_chat_template_that_is_no_text(llm, template):
    with pytest.raises(InvalidRequest, match="chat template"):
        llm.render_chat(HI, chat_template=template)


def test_a_folder_without_a_template_says_so(folder):
    edit(folder, "tokenizer_config.json", chat_template=None)
    with opened(folder) as llm:
        with pytest.raises(InvalidRequest, match=r"must have a chat template for chat.*pass chat_template"):
            llm.chat(HI, use_tqdm=False)
        assert llm.render_chat(HI, chat_template="{{ messages[0].content }}") == "Hi"


def test_a_chat_prompt_is_a_text():
    prompt = ChatPrompt("a")
    assert prompt == "a" and json.dumps([prompt]) == '["a"]' and type(str(prompt)) is str


def test_the_tokenizers_own_end_token_ends_a_text_too(folder):
    """vLLM takes it as well; transformers writes on where a fine-tuned model's generation_config.json was forgotten."""
    for named, expected in ([2557], (2557, 2559)), (2559, (2559,)), (None, (2559,)), ([], (2559,)):
        edit(folder, "generation_config.json", eos_token_id=named)
        with opened(folder) as llm:
            assert llm.config.eos_token_ids == expected
            assert llm.chat(HI, SamplingParams(temperature=0, max_tokens=600), use_tqdm=False)[0].finish_reason == "stop"
    edit(folder, "tokenizer_config.json", eos_token=None)
    edit(folder, "generation_config.json", eos_token_id=2557)
    with opened(folder) as llm:
        assert llm.config.eos_token_ids == (2557,)

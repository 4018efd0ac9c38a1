"""The tokenizer without transformers says what transformers says, for every folder it takes on, and leaves the others alone."""

import copy
import json
import random
import shutil
import subprocess
import sys
from datetime import datetime

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from nanovllm import LLM, SamplingParams
from nanovllm.config import DRAFT_MODEL, OFFLINE_MODEL
from nanovllm.errors import CheckpointError
from nanovllm.serving.chat_template import render, variables_of
from nanovllm.serving.fast_tokenizer import QWEN_PARTS, FastTokenizer
from nanovllm.serving.tokenizer import load_tokenizer

TALK = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": " <|im_end|> é\n"},
        {"role": "assistant", "content": " Once "}]


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(OFFLINE_MODEL, tmp_path / "model")


def read(folder, file="tokenizer_config.json"):
    return json.loads((folder / file).read_text(encoding="utf-8"))


def edit(folder, file="tokenizer_config.json", **changes):
    (folder / file).write_text(json.dumps(read(folder, file) | changes), encoding="utf-8")


def like_qwen(folder):
    """The offline vocabulary in the files of a real Qwen3 checkpoint."""
    edit(folder, "tokenizer.json", **QWEN_PARTS)
    added = {str(token["id"]): {key: value for key, value in token.items() if key != "id"}
             for token in read(folder, "tokenizer.json")["added_tokens"]}
    edit(folder, tokenizer_class="Qwen2Tokenizer", added_tokens_decoder=added, split_special_tokens=False, errors="replace",
         add_bos_token=False)
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}', encoding="utf-8")
    return folder


def texts(count=300):
    rng = random.Random(5)
    kinds = [lambda: rng.randrange(32, 127), lambda: rng.randrange(0x300, 0x370), lambda: rng.randrange(0x4e00, 0x4f00),
             lambda: rng.randrange(0x1f300, 0x1f600), lambda: 10, lambda: 32, lambda: rng.randrange(0x110000 - 10, 0x110000)]
    for _ in range(count):
        text = "".join(chr(rng.choice(kinds)()) for _ in range(rng.randrange(40)))
        yield text + rng.choice(["", "<|im_start|>", " <|im_end|> x", "<|endoftext|>", "<|im_end", "e\u0301", "don't"])


@pytest.mark.parametrize("make", [
    lambda folder: folder, like_qwen, lambda folder: edit(folder, tokenizer_class="TokenizersBackend"),
    lambda folder: edit(folder, add_bos_token=True), lambda folder: edit(folder, eos_token=None)])
def test_it_encodes_and_decodes_as_transformers_does(folder, make):
    make(folder)
    ours, theirs = FastTokenizer.read(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.special_tokens_map == theirs.special_tokens_map and ours.eos_token_id == theirs.eos_token_id
    assert len(ours) == len(theirs) and ours.chat_template == theirs.chat_template
    rng = random.Random(6)
    for text in texts():
        ids = theirs.encode(text)
        assert ours.encode(text) == ids and ours.encode(text, add_special_tokens=False) == theirs.encode(
            text, add_special_tokens=False)
        for some in (ids, [rng.randrange(len(theirs)) for _ in range(9)]):
            for skip in (False, True):
                assert ours.decode(some, skip_special_tokens=skip) == theirs.decode(some, skip_special_tokens=skip)
    assert ours.decode(5) == theirs.decode(5) and ours.decode(np.array([5, 6])) == theirs.decode([5, 6])


def test_the_models_that_ship_need_no_transformers():
    for folder in (OFFLINE_MODEL, DRAFT_MODEL):
        assert not (folder / "tokenizer.json").is_file() or isinstance(load_tokenizer(folder), FastTokenizer)
    code = ("import sys; from nanovllm import LLM, SamplingParams\n"
            "with LLM(device='cpu', num_kvcache_blocks=16) as llm:\n"
            "    llm.chat([{'role': 'user', 'content': 'Hi'}], SamplingParams(max_tokens=3), use_tqdm=False)\n"
            "sys.exit('transformers' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("change", [
    dict(tokenizer_class="GPT2Tokenizer"), dict(tokenizer_class=None), dict(auto_map={"AutoTokenizer": ["x.Y", None]}),
    dict(add_prefix_space=True), dict(split_special_tokens=True), dict(eos_token="<|new|>"), dict(image_token="<|image|>"),
    dict(additional_special_tokens=["Once"]), dict(fast_tokenizer_files=["tokenizer.4.json"]),
    dict(chat_template=[{"name": "default", "template": "x"}]), dict(extra_special_tokens={"a": "<|im_end|>"}),
    dict(tokenizer_class="Qwen2Tokenizer"), dict(added_tokens_decoder={"2557": {"content": "x"}}), dict(eos_token=5)])
def test_any_other_folder_is_left_to_transformers(folder, change):
    edit(folder, **change)
    assert FastTokenizer.read(folder) is None


@pytest.mark.parametrize("file, content", [("special_tokens_map.json", "{}"), ("added_tokens.json", "{}"),
                                           ("tokenizer_config.json", "{"), ("tokenizer.json", ""), ("tokenizer.json", "{}"),
                                           ("config.json", '{"model_type": "mistral"}')])
def test_files_that_may_change_the_tokens_are_left_to_transformers(folder, file, content):
    (folder / file).write_text(content, encoding="utf-8")
    assert FastTokenizer.read(folder) is None


@pytest.mark.parametrize("part, said", [("normalizer", None), ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": False,
                                                                                "trim_offsets": True, "use_regex": True})])
def test_a_qwen_tokenizer_with_parts_of_its_own_is_left_to_transformers(folder, part, said):
    edit(like_qwen(folder), "tokenizer.json", **{part: said})
    assert FastTokenizer.read(folder) is None


def test_everything_else_is_transformers_own(folder):
    ours = FastTokenizer.read(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert ours(["a", "b"]).input_ids == theirs(["a", "b"]).input_ids
    assert ours.convert_tokens_to_ids("<|im_end|>") == 2559 and ours.pad_token_id == theirs.pad_token_id
    assert ours.batch_decode([[5, 6], [7]]) == theirs.batch_decode([[5, 6], [7]]) == ours.decode([[5, 6], [7]])
    assert ours.get_vocab() == theirs.get_vocab() and ours.vocab_size == theirs.vocab_size and bool(ours)
    assert ours.encode("a b", return_tensors="pt").tolist() == theirs.encode("a b", return_tensors="pt").tolist()
    assert ours.apply_chat_template(TALK, return_dict=False) == theirs.apply_chat_template(TALK, return_dict=False)
    assert ours.apply_chat_template([TALK, TALK], tokenize=False) == theirs.apply_chat_template([TALK, TALK], tokenize=False)
    with pytest.raises(AttributeError):
        getattr(ours, "nothing_of_this_name")  # noqa: B009
    assert copy.copy(ours).encode("a") == ours.encode("a") and "model" in repr(ours)


# Files of other kinds, and broken ones.

def test_vocab_json_and_merges_txt_are_a_tokenizer(folder):
    expected = AutoTokenizer.from_pretrained(folder)
    Backend.from_file(str(folder / "tokenizer.json")).model.save(str(folder))
    (folder / "tokenizer.json").unlink()
    edit(folder, tokenizer_class="Qwen2Tokenizer")
    theirs = AutoTokenizer.from_pretrained(folder)
    with LLM(folder, device="cpu", num_kvcache_blocks=16) as llm:
        for text in texts(100):
            assert llm.tokenizer.encode(text) == theirs.encode(text)
        assert llm.tokenizer.encode("A fox met a hen.") == expected.encode("A fox met a hen.")
        assert llm.generate("A fox", SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)[0].text


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", '"text"'])
def test_a_broken_file_is_named(folder, file, content):
    (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"{file}.*again"):
        LLM(folder, device="cpu")


@pytest.mark.parametrize("file, content", [
    ("tokenizer.json", "{}"), ("tokenizer.json", '{"version": "1.0", "model": {}, "added_tokens": []}'),
    ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["tok.Mine", null]}, "tokenizer_class": "Mine"}')])
def test_a_tokenizer_that_cannot_be_made_is_refused_by_the_folder(folder, file, content):
    """The last brings code of its own, which is never run, nor is anybody asked whether it may."""
    (folder / file).write_text(content, encoding="utf-8")
    (folder / "tok.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    if "auto_map" in content:
        edit(folder, "config.json", model_type="unheard_of")
    with pytest.raises(CheckpointError, match=r"model: its tokenizer cannot be read"):
        load_tokenizer(folder)


# Chat templates, against transformers.

QWEN3 = """{%- if tools %}{{- '<|im_start|>system\\n' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set reasoning = message.reasoning_content %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
        {{- message.content.lstrip('\\n') }}
    {%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content }}{%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
TEMPLATES = {
    "qwen3": QWEN3,
    "trimmed": "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}",
    "llama": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "json": "{{ messages | tojson(indent=2) }}{{ {'a<': 'é&'} | tojson }}{{ [1, 2] | tojson(separators=(',', ':')) }}",
    "date": "{{ strftime_now('%Y-%m') }}{{ messages[0].content }}{{ messages[-1].content }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "loop": "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
    "blocks": "{% for m in messages %}\n    {% if true %}\n  {{ m.content }}\n    {% endif %}\n{% endfor %}\n",
    "dict": "{{ dict(a=1) }}{{ dict.fromkeys([1]) }}{{ namespace(self=3, b=4).b }}{{ messages[-1].content }}",
    "fields": "{% for m in messages %}{{ m.get('reasoning_content') }}{{ m.get('thinking') }}{{ m.content }}"
              "{{ m.keys() | list }}{% endfor %}",
}
TALKS = [TALK, TALK[:2], [*TALK, {"role": "assistant", "content": "x", "tool_calls": None}],
         [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "reasoning": "R"}],
         [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A\n", "reasoning_content": "R", "thinking": "T"}]]


def outcome(call):
    try:
        return True, call()
    except Exception as error:
        return False, "ValueError" if isinstance(error, ValueError) else type(error).__name__


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_say_what_they_say_in_transformers(folder, name):
    (folder / "chat_template.jinja").write_text(TEMPLATES[name], encoding="utf-8")
    ours, theirs = FastTokenizer.read(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.chat_template == theirs.chat_template
    rendered = 0
    for talk in TALKS:
        for options in ({}, dict(add_generation_prompt=True), dict(continue_final_message=True),
                        dict(continue_final_message="reasoning_content"),
                        dict(enable_thinking=False, add_generation_prompt=True),
                        dict(tools=[{"type": "function", "function": {"name": "f<", "x": 1.5}}]), dict(bos_token="B"),
                        dict(documents=[{"title": "t"}]), dict(enable_thinking=np.bool_(False), add_generation_prompt=True)):
            expected = outcome(lambda: theirs.apply_chat_template(talk, tokenize=False, **options))  # noqa: B023
            assert outcome(lambda: ours.apply_chat_template(talk, tokenize=False, **options)) == expected  # noqa: B023
            rendered += expected[0]
    assert rendered > 20
    assert ours.__dict__["_transformers"] is None


@pytest.mark.parametrize("template", [
    "{{ messages.__class__ }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}",
    "{{ namespace(__class__=1) }}", "{% set ns = namespace() %}{% set ns.__init__ = 1 %}", "{{ dict.__class__.mro() }}",
    "{{ cycler.__init__.__globals__ }}", "{{ self.__init__ }}", "{{ dict.mro() }}", "{{ '%s' | format(messages.__class__) }}",
    "{{ raise_exception.__globals__ }}", "{{ tools.tofile('x') }}", "{% import 'os' as os %}", "{{ range(999999999) }}"])
def test_a_template_stays_in_its_sandbox_as_in_transformers(folder, template):
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    ours, theirs = FastTokenizer.read(folder), AutoTokenizer.from_pretrained(folder)
    tools = np.arange(3)
    expected = outcome(lambda: theirs.apply_chat_template(TALK, tokenize=False, extra=tools))
    assert outcome(lambda: ours.apply_chat_template(TALK, tokenize=False, extra=tools)) == expected


def test_objects_reach_a_template_as_plain_data():
    class Mine(str):
        def method(self):
            raise AssertionError

    text = render("{{ x }}|{{ y }}|{{ z[0] }}|{{ messages[0].content }}", [{"role": "user", "content": Mine("Hi")}],
                  add_generation_prompt=True, x=np.arange(3), y=np.float64(1.5), z=(Mine("a"),))
    assert text == "<ndarray>|1.5|a|Hi"
    assert render("{{ strftime_now('%Y') }}", TALK, add_generation_prompt=True) == str(datetime.now().year)


def test_the_variables_of_a_template():
    assert variables_of(QWEN3) >= {"messages", "tools", "add_generation_prompt", "enable_thinking"}
    assert "m" not in variables_of(TEMPLATES["generation"])

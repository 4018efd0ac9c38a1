"""Text in, text out: chat, streaming, and pieces that never split a character. On the offline model."""

import pytest

from nanovllm import LLM, SamplingParams
from nanovllm.__main__ import demo, main
from nanovllm.serving.detokenizer import IncrementalDetokenizer


@pytest.fixture(scope="module")
def llm():
    with LLM(device="cpu") as llm:
        yield llm


@pytest.mark.parametrize("text", [
    "A fox met a hen.", "naïve café — “quoted”", "狐狸和灯笼在森林里。", "🦊🏮 and 👩‍👩‍👧", "a\n\n b\t"])
def test_pieces_add_up_and_never_split_a_character(llm, text):
    ids = llm.tokenizer.encode(text)
    decoder = IncrementalDetokenizer(llm.tokenizer)
    pieces = [decoder.push([i], final=n == len(ids) - 1) for n, i in enumerate(ids)]
    assert "".join(pieces) == decoder.text == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_cut_short_comes_out_at_the_end(llm):
    ids = llm.tokenizer.encode("🦊")
    assert len(ids) > 1
    decoder = IncrementalDetokenizer(llm.tokenizer)
    assert [decoder.push([i]) for i in ids[:-1]] == [""] * (len(ids) - 1)
    assert "\ufffd" in decoder.push([], final=True)


def test_stream_gives_what_generate_gives(llm):
    prompts = [llm.render_chat([{"role": "user", "content": f"Tell me a story about a {who}."}])
               for who in ("fox", "hen", "bear")]
    params = SamplingParams(temperature=0, max_tokens=60)
    expected = [o.text for o in llm.generate(prompts, params, use_tqdm=False)]
    texts = [""] * 3
    for index, piece in llm.stream(prompts, params):
        texts[index] += piece
    assert texts == expected
    assert "".join(llm.stream(prompts[0], params)) == expected[0]


def test_a_stream_keeps_its_tokens_when_another_call_steps_the_engine(llm):
    prompt = llm.render_chat([{"role": "user", "content": "Tell me a story about a fox."}])
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    expected = llm.generate(prompt, params, use_tqdm=False)[0].text
    stream = llm.stream(prompt, params)
    text = next(stream)
    llm.generate("The", SamplingParams(max_tokens=40, ignore_eos=True), use_tqdm=False)
    assert text + "".join(stream) == expected


def test_chat_ends_by_itself_and_hides_special_tokens_defect_26(llm):
    output, = llm.chat([{"role": "user", "content": "Tell me a story about a fox and a lantern."}],
                       SamplingParams(temperature=0, max_tokens=600), use_tqdm=False)
    assert output.finish_reason == "stop" and output.token_ids[-1] in llm.config.eos_token_ids
    assert "<|" not in output.text and len(output.text) > 100
    assert len(llm.config.eos_token_ids) == 2


def test_generate_accepts_a_single_text_defect_10(llm):
    assert len(llm.generate("hello", SamplingParams(max_tokens=2), use_tqdm=False)) == 1
    with pytest.raises(ValueError, match="prompt='': must be at least one character"):
        llm.generate("", use_tqdm=False)
    with pytest.raises(ValueError, match="message='hello'"):
        llm.chat(["hello"], use_tqdm=False)


def test_demo_prints_the_texts_and_a_table_of_steps(llm, capsys):
    demo(llm, max_tokens=24)
    out = capsys.readouterr().out
    assert out.count("> Tell me a story") == 3
    for word in ("prompt tokens", "decode tokens", "running", "waiting", "blocks in use", "72 tokens generated"):
        assert word in out


def test_the_command_line_names_its_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "demo" in capsys.readouterr().out

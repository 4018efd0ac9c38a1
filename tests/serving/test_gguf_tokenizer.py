"""The tokenizer of a GGUF file says what the one says that it was made from; what nobody understands is named."""

import json
from unittest.mock import Mock

import gguf
import pytest
from tokenizers import Tokenizer

from nanovllm.config import OFFLINE_MODEL
from nanovllm.errors import CheckpointError
from nanovllm.serving.fast_tokenizer import QWEN_PARTS
from nanovllm.serving.tokenizer import load_tokenizer

from .test_fast_tokenizer import texts

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT, LEVEL = QWEN_PARTS["pre_tokenizer"]["pretokenizers"]
BY_THREES = SPLIT | {"pattern": {"Regex": SPLIT["pattern"]["Regex"].replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")}}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


KINDS = {  # tokenizer.ggml.pre: what the Hugging Face tokenizers of such models have
    "qwen2": (QWEN_PARTS, {}), "deepseek-r1-qwen": (QWEN_PARTS, {}),
    "llama-bpe": ({"normalizer": None, "pre_tokenizer": sequence(BY_THREES, LEVEL)}, {"ignore_merges": True}),
    "gpt-2": ({"normalizer": None, "pre_tokenizer": BYTES}, {}),
    "smollm": ({"normalizer": None, "pre_tokenizer": sequence({"type": "Digits", "individual_digits": True}, BYTES)}, {}),
}


@pytest.fixture(scope="module")
def vocabulary():
    return json.loads((OFFLINE_MODEL / "tokenizer.json").read_text(encoding="utf-8"))


def write(file, vocabulary, pre, **keys):
    added = {token["id"]: token for token in vocabulary["added_tokens"]}
    ids = {index: token for token, index in vocabulary["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    values = {"model": "gpt2", "pre": pre, "tokens": [ids[i] for i in range(len(ids))],
              "token_type": [(3 if added[i]["special"] else 4) if i in added else 1 for i in range(len(ids))],
              "merges": [" ".join(merge) for merge in vocabulary["model"]["merges"]], "eos_token_id": 2559} | keys
    writer = gguf.GGUFWriter(file, "llama")
    for name, value in values.items():
        if isinstance(value, list):
            writer.add_array(f"tokenizer.ggml.{name}", value)
        elif value is not None:
            writer.add_key_value(f"tokenizer.ggml.{name}", value, gguf.GGUFValueType.get_type(value))
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("pre", KINDS)
def test_it_cuts_texts_as_the_original_does(vocabulary, tmp_path, pre):
    parts, model = KINDS[pre]
    theirs = Tokenizer.from_str(json.dumps(vocabulary | parts | {"model": vocabulary["model"] | model}))
    ours = load_tokenizer(write(tmp_path / "model.gguf", vocabulary, pre))
    for text in (*texts(), "In 2026, 12345678 and 3.14159; ١٢٣٤ x²", "I'LL we've", "a\r\n\r\n b \t"):
        ids = theirs.encode(text).ids
        assert ours.encode(text) == ours.encode(text, add_special_tokens=False) == ids
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert ours.eos_token_id == 2559
    assert ours.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "<|im_start|>Hi"


def test_a_first_token_is_added_where_the_file_says_so(vocabulary, tmp_path):
    ours = load_tokenizer(write(tmp_path / "model.gguf", vocabulary, "llama-bpe", bos_token_id=2558, add_bos_token=True))
    assert ours.encode("A fox") == [2558, *ours.encode("A fox", add_special_tokens=False)] and ours.bos_token_id == 2558


def test_sentence_pieces_are_read(tmp_path):
    """As Llama 2 and Mistral have them."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "f", "o", "x", "fo", "fox", "▁fox"]
    kinds = [2, 3, 3, *[6] * 256, *[1] * 8]
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(8)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    ours = load_tokenizer(tmp_path / "model.gguf")
    ids = ours.encode("a fox é")
    assert ids[0] == 1 and pieces.index("▁fox") in ids and pieces.index("<0xC3>") in ids
    assert ours.decode(ids, skip_special_tokens=True) == "a fox é" and ours.eos_token_id == 2


@pytest.mark.parametrize("keys, message", [
    (dict(model="bert"), "tokenizer.ggml.model='bert'"), (dict(merges=None), "tokenizer.ggml.merges is missing"),
    (dict(tokens="a b"), "tokenizer.ggml.tokens is missing, or no list"), (dict(pre="tekken"), "tokenizer.ggml.pre='tekken'"),
    (dict(merges=["alone"]), "its tokenizer cannot be read"), (dict(merges=["☃ ☃"]), "its tokenizer cannot be read"),
    (dict(bos_token_id=99999, add_bos_token=True), "its tokenizer cannot be read")])
def test_what_nobody_understands_is_named(vocabulary, tmp_path, keys, message):
    with pytest.raises(CheckpointError, match=rf"model\.gguf: .*{message}"):
        load_tokenizer(write(tmp_path / "model.gguf", vocabulary, **{"pre": "qwen2"} | keys))


@pytest.mark.parametrize("again, first", [(300, 200), (2559, 2557), (2558, 200), (2557, 2556)])
def test_a_token_that_stands_twice_is_named_with_both_its_places(vocabulary, tmp_path, again, first):
    """One of the ids would be lost: a library would panic, or the special tokens behind it would have other ids."""
    tokens = [token for token, _ in sorted(Tokenizer.from_file(str(OFFLINE_MODEL / "tokenizer.json")).get_vocab().items(),
                                           key=lambda each: each[1])]
    tokens[again] = tokens[first]
    with pytest.raises(CheckpointError, match=rf"model\.gguf: tokenizer\.ggml\.tokens has '.*' at {first} and at {again}"):
        load_tokenizer(write(tmp_path / "model.gguf", vocabulary, "qwen2", tokens=tokens))


def test_so_is_a_piece_of_a_sentence_piece_vocabulary(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "</s>", "</s>", "a"])
    writer.add_token_scores([0.0] * 4)
    writer.add_token_types([2, 3, 3, 1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"model\.gguf: tokenizer\.ggml\.tokens has '</s>' at 1 and at 2"):
        load_tokenizer(tmp_path / "model.gguf")


def test_a_panic_of_a_rust_library_names_the_file_and_an_interrupt_stays_one(vocabulary, tmp_path, monkeypatch):
    class PanicException(BaseException):  # as pyo3 has it: no Exception
        pass

    file = write(tmp_path / "model.gguf", vocabulary, "qwen2")
    for error, told in ((PanicException("index out of bounds"), CheckpointError), (KeyboardInterrupt(), KeyboardInterrupt)):
        monkeypatch.setattr("nanovllm.serving.tokenizer.load_gguf_tokenizer", Mock(side_effect=error))
        with pytest.raises(told) as raised:
            load_tokenizer(file)
        if told is CheckpointError:
            assert str(raised.value).startswith(f"{file}: its tokenizer cannot be read (PanicException: index out of bounds)")
    monkeypatch.setattr("tokenizers.Tokenizer", Mock(from_file=Mock(side_effect=PanicException("index out of bounds"))))
    with pytest.raises(CheckpointError, match="PanicException"):  # of a folder's tokenizer.json, too
        load_tokenizer(OFFLINE_MODEL)

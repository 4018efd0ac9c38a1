"""A tokenizer without all of transformers: the Rust library behind it, its special tokens and its chat template.

To import transformers takes as long as to load a small model and answer. What it adds to `tokenizers` for the folders that
most people have is little: it reads four files and decides which of them wins. For those folders, told by `_reads`, that is
done here; any other folder is left to AutoTokenizer.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanovllm.utils.checkpoint import read_json
from nanovllm.utils.numbers import plain

if TYPE_CHECKING:
    import tokenizers

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# What a tokenizer_config.json may say beside its special tokens without changing what is done here. Whatever else it says,
# transformers is asked.
HARMLESS = {"tokenizer_class", "additional_special_tokens", "extra_special_tokens", "added_tokens_decoder", "add_bos_token",
            "add_eos_token", "clean_up_tokenization_spaces", "model_max_length", "chat_template", "errors", "padding_side",
            "truncation_side", "backend", "is_local", "name_or_path", "model_input_names", "local_files_only"}
PLAIN_TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
# Two classes of transformers, by the families whose config.json makes it choose them.
GENERIC, QWEN = {"PreTrainedTokenizerFast", "TokenizersBackend"}, {"Qwen2Tokenizer", "Qwen2TokenizerFast"}
FAMILIES = {"qwen3": GENERIC | QWEN, "qwen3_moe": GENERIC | QWEN, "qwen2": QWEN}
# Qwen2Tokenizer takes its vocabulary from tokenizer.json and the rest from its own code: these are the same.
QWEN_PARTS = {
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {
            "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
                     r"\s*[\r\n]+|\s+(?!\S)|\s+"}},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}}
QWEN_MODEL = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False,
              "ignore_merges": False}


class FastTokenizer:
    """Encodes, decodes and renders chats as the transformers tokenizer of the same folder does.

    Whatever else a transformers tokenizer can do, this one can, too: it loads that one when asked for it (`transformers`).
    """

    def __init__(self, folder: Path, backend: "tokenizers.Tokenizer", special: dict[str, str], chat_template: str | None):
        self.folder, self.backend_tokenizer, self.special_tokens_map = folder, backend, special
        self.chat_template = chat_template
        self._transformers: Any = None

    @classmethod
    def read(cls, folder: Path) -> "FastTokenizer | None":
        """The folder's tokenizer; None where it takes transformers to say what that is."""
        try:
            config, model = read_json(folder / "tokenizer_config.json"), read_json(folder / "config.json")
            tokenizer = read_json(folder / "tokenizer.json")
            if not _reads(folder, config, model, tokenizer):
                return None
            special = {name: _content(config[name]) for name in NAMED if config.get(name) is not None}
            template_file = folder / "chat_template.jinja"
            template = template_file.read_text(encoding="utf-8") if template_file.is_file() else config.get("chat_template")
        except (ValueError, OSError, KeyError, TypeError, AttributeError):
            return None  # transformers says what is wrong
        from tokenizers import Tokenizer
        try:
            backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception:  # the class that Rust's errors have
            return None
        backend.no_truncation()
        backend.no_padding()
        return cls(folder, backend, special, template)

    def __repr__(self) -> str:
        return f"FastTokenizer({self.folder.name}, {len(self)} tokens)"

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    def __bool__(self) -> bool:
        return True

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.transformers(*args, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("folder", "_transformers"):  # while it is being copied
            raise AttributeError(name)
        return getattr(self.transformers, name)

    @property
    def transformers(self) -> Any:
        """The same tokenizer as a transformers object."""
        if self._transformers is None:
            from transformers import AutoTokenizer
            self._transformers = AutoTokenizer.from_pretrained(self.folder)
        return self._transformers

    @property
    def eos_token_id(self) -> int | None:
        eos = self.special_tokens_map.get("eos_token")
        return None if eos is None else self.backend_tokenizer.token_to_id(eos)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.backend_tokenizer.get_vocab(with_added_tokens=True))

    def encode(self, text: Any, add_special_tokens: bool = True, verbose: bool = True, **options: Any) -> Any:
        """verbose: whether transformers may warn of a text that is longer than its model; this one never does."""
        if options or not isinstance(text, str):
            return self.transformers.encode(text, add_special_tokens=add_special_tokens, **options)
        return list(self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None,
               **options: Any) -> Any:
        """clean_up_tokenization_spaces: changes nothing for a tokenizer of this kind (BPE), as in transformers."""
        ids = plain(token_ids)
        ids = [ids] if isinstance(ids, int) else ids
        if options or not (isinstance(ids, (list, tuple)) and all(isinstance(token, int) for token in ids)):
            return self.transformers.decode(token_ids, skip_special_tokens=skip_special_tokens, **options)
        return str(self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def apply_chat_template(self, conversation: Any, tools: list[Any] | None = None, documents: Any = None,
                            chat_template: str | None = None, add_generation_prompt: bool = False,
                            continue_final_message: bool | str = False, tokenize: bool = True, **options: Any) -> Any:
        """The text of one conversation. Token ids, which transformers makes unless `tokenize` is False, are made by it."""
        one = isinstance(conversation, (list, tuple)) and len(conversation) > 0 and isinstance(conversation[0], dict)
        template = chat_template or self.chat_template
        if tokenize or not one or template is None or any(callable(tool) for tool in tools or ()):
            return self.transformers.apply_chat_template(
                conversation, tools=tools, documents=documents, chat_template=chat_template, tokenize=tokenize,
                add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message, **options)
        from nanovllm.serving.chat_template import render
        return render(template, conversation, add_generation_prompt=add_generation_prompt, tools=tools,
                      continue_final_message=continue_final_message,
                      **{"documents": documents} | self.special_tokens_map | options)


def _reads(folder: Path, config: dict[str, Any], model: dict[str, Any], tokenizer: dict[str, Any]) -> bool:
    """Whether the tokenizer that transformers would make of these files is what stands in tokenizer.json."""
    family = FAMILIES.get(model.get("model_type", ""), set())
    tokens = {token["content"]: token for token in tokenizer["added_tokens"]}
    ids = [token["id"] for token in tokens.values()]
    vocabulary = tokenizer["model"]["vocab"]
    named = [config[name] for name in NAMED if config.get(name) is not None]
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    decoder = {int(i): token for i, token in config.get("added_tokens_decoder", {}).items()}
    kept = {token["id"]: {key: value for key, value in token.items() if key != "id"} for token in tokens.values()}
    return (config.get("tokenizer_class") in family
            and config.keys() <= {*NAMED, *HARMLESS, "add_prefix_space", "split_special_tokens"}
            and not config.get("add_prefix_space") and not config.get("split_special_tokens")
            and isinstance(config.get("chat_template", ""), str) and not (folder / "additional_chat_templates").exists()
            and tokenizer["model"].get("type") == "BPE" and isinstance(more, list)
            # Special tokens that are there as they would be added stay as they are.
            and all(_is_kept(token, tokens) for token in (*named, *more))
            and (decoder == kept if decoder else not any(
                (folder / file).exists() for file in ("special_tokens_map.json", "added_tokens.json")))
            and (config["tokenizer_class"] in GENERIC or (
                all(tokenizer.get(part) == said for part, said in QWEN_PARTS.items())
                and (tokenizer.get("decoder") or {}).get("type") == "ByteLevel"
                and all(tokenizer["model"].get(key) == said for key, said in QWEN_MODEL.items())
                and not any(tokenizer["model"].get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix"))
                and {"eos_token", "pad_token", "unk_token"} <= config.keys()
                and ids == list(range(len(vocabulary), len(vocabulary) + len(ids))))))


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _is_kept(token: Any, tokens: dict[str, dict[str, Any]]) -> bool:
    there = tokens.get(_content(token), {})
    return all(there.get(key) == said for key, said in PLAIN_TOKEN.items())


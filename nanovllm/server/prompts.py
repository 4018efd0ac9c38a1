"""From what a client sent to the tokens of a prompt."""

import json
from functools import lru_cache
from typing import Any, NamedTuple

from nanovllm.errors import InvalidRequest
from nanovllm.llm import LLM
from nanovllm.sampling_params import SamplingParams
from nanovllm.server.chat_format import ChatFormat
from nanovllm.server.chat_protocol import ChatCompletionRequest, TokenizeRequest
from nanovllm.server.messages import Message
from nanovllm.server.protocol import CompletionRequest, GenerationRequest
from nanovllm.server.schemas import TokenizerInfoBody
from nanovllm.serving.answer import AnswerFormat
from nanovllm.serving.chat import OPTIONS, RESERVED
from nanovllm.serving.chat_template import variables_of
from nanovllm.serving.tokenizer import Tokenizer, require_tokenizer
from nanovllm.utils.checks import check

# A template is a program, and these are the tokenizer's own arguments; "messages" and the like are what it is given.
NOT_VARIABLES = {*OPTIONS, *RESERVED, "self", "kwargs"}


_variables_of = lru_cache(maxsize=4)(variables_of)


class EncodedPrompt(NamedTuple):
    """text: None for a prompt that came as token ids."""

    text: str | None
    token_ids: list[int]


class PromptEncoder:
    """Makes tokens of prompts and chats. Knows the tokenizer and the limits; queues nothing.

    A tokenizer takes seconds and gigabytes for a text of some megabytes, so a text is measured before it is encoded. No
    token is longer than the vocabulary's longest, so one of more than max_characters characters has more tokens than
    max_model_len.

    Its methods take milliseconds for a long prompt: call them in a thread. Raise ValueError for what cannot be served.
    """

    def __init__(self, llm: LLM, chat_format: ChatFormat):
        self._llm, self.format = llm, chat_format
        self.max_characters: int | None = None
        if llm.tokenizer is not None:
            self.max_characters = llm.config.max_model_len * max(map(len, llm.tokenizer.get_vocab()))

    def completion(self, body: CompletionRequest) -> list[EncodedPrompt]:
        """The prompts of a completion, one or several."""
        special = body.add_special_tokens is not False
        return [self._fit(prompt if isinstance(prompt, str) else None,
                          self.encode(prompt, special) if isinstance(prompt, str) else list(prompt), body)
                for prompt in body.prompt]

    def chat(self, body: ChatCompletionRequest) -> tuple[EncodedPrompt, AnswerFormat]:
        """The prompt that the model's chat template makes of a conversation, and what the answer will consist of."""
        text = self.render(body, body.messages)
        form = self.format.answer_format(body, text)
        return self._fit(text, self.encode(text, bool(body.add_special_tokens)), body), form

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """A text's tokens. add_special_tokens: such as the tokenizer itself puts around a text."""
        check(text != "", "prompt", text, "at least one character", "pass a non-empty prompt")
        tokenizer = self._tokenizer()
        if self.max_characters is not None and len(text) > self.max_characters:
            raise InvalidRequest(
                f"The prompt has {len(text)} characters: must be at most {self.max_characters}, as more cannot fit into "
                f"max_model_len={self._llm.config.max_model_len} tokens; shorten the prompt or raise max_model_len.")
        return tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False)

    def decode(self, token_ids: list[int]) -> str:
        vocab_size = self._llm.config.hf_config.vocab_size
        for token in token_ids:
            check(0 <= token < vocab_size, "tokens", token, f"in [0, {vocab_size}), the model's vocabulary", "leave it out")
        return self._tokenizer().decode(token_ids)

    def token_strings(self, token_ids: list[int]) -> list[str]:
        """The tokens as the vocabulary writes them."""
        return self._tokenizer().convert_ids_to_tokens(token_ids)

    def tokenizer_info(self) -> TokenizerInfoBody:
        """The tokenizer's special tokens and chat template."""
        tokenizer = self._tokenizer()
        special = {name: str(token) for name, token in getattr(tokenizer, "special_tokens_map", {}).items()}
        template = getattr(tokenizer, "chat_template", None)
        return {"tokenizer_class": type(tokenizer).__name__, "bos_token": special.get("bos_token"),
                "eos_token": special.get("eos_token"), "pad_token": special.get("pad_token"),
                "unk_token": special.get("unk_token"), "chat_template": template if isinstance(template, str) else None}

    def render(self, body: ChatCompletionRequest | TokenizeRequest, messages: list[Message]) -> str:
        """The text that the chat template makes of a conversation. Variables that it does not read change nothing."""
        arguments = self.format.template_arguments(body)
        for name in body.chat_template_kwargs or ():
            check(name not in NOT_VARIABLES, "chat_template_kwargs", name, "a variable of the model's chat template",
                  "leave it out")
        variables = {name: value for name, value in arguments.items() if name != "tools"} | (body.chat_template_kwargs or {})
        options: dict[str, Any] = {name: value for name in ("add_generation_prompt", "continue_final_message")
                                   if (value := getattr(body, name)) is not None}
        if "tools" in arguments:
            options["tools"] = tools = arguments["tools"]
            size, most = len(json.dumps(tools)), self.max_characters
            check(most is None or size <= most, "tools", f"{size} characters", f"at most {most}, as more cannot fit into "
                  f"max_model_len={self._llm.config.max_model_len} tokens", "send fewer, or say less of them")
        template = getattr(self._tokenizer(), "chat_template", None)
        if variables and isinstance(template, str):  # a warning for each that it does not read would fill the log
            variables = {name: value for name, value in variables.items() if name in _variables_of(template)}
        return self._llm.render_chat([message.for_template() for message in messages], **options, **variables)

    def _fit(self, text: str | None, token_ids: list[int], body: GenerationRequest) -> EncodedPrompt:
        """A prompt as short as the client wants it, if it can be served."""
        if body.truncate_prompt_tokens is not None:
            longest, keep = self._llm.config.max_model_len, body.truncate_prompt_tokens
            check(keep != 0 and keep < longest, "truncate_prompt_tokens", keep,
                  f"-1 or from 1 to {longest - 1}, as max_model_len={longest}", "use -1 for what leaves room for the answer")
            if keep == -1:
                keep = max(1, longest - (body.tokens_wanted[1] or 1))
            if len(token_ids) > keep:
                text, token_ids = None, token_ids[-keep:]
        self._llm.engine.validate(token_ids, SamplingParams(max_tokens=1))
        return EncodedPrompt(text, token_ids)

    def _tokenizer(self) -> Tokenizer:
        return require_tokenizer(self._llm.tokenizer, self._llm.config.model, "a text")

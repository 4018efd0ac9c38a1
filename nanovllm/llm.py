"""The public face: text in, text out."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

from tqdm.auto import tqdm

from nanovllm.config import Config
from nanovllm.engine.llm_engine import LLMEngine
from nanovllm.engine.sequence import Sequence
from nanovllm.engine.trace import Trace
from nanovllm.outputs import RequestOutput
from nanovllm.sampling_params import SamplingParams
from nanovllm.utils.checks import check, check_keywords
from nanovllm.utils.detokenizer import IncrementalDetokenizer

CONFIG_FIELDS = [f.name for f in fields(Config) if f.init]
ENGINE_CLASSES = ("scheduler_cls", "block_manager_cls")
Prompt = str | list[int]


class LLM:
    """An engine with a tokenizer in front. Drop-in for nano-vllm's class of this name.

    Owns the tokenizer and one LLMEngine. `LLM()` runs the model that ships with the package; the settings are those of
    `nanovllm.config.Config`. `close()` (or leaving a `with` block, or the last reference) gives all its memory back.

    Raises ValueError for a setting that cannot be served.
    """

    def __init__(self, model=None, **settings):
        check_keywords("LLM", settings, (*CONFIG_FIELDS, *ENGINE_CLASSES))
        classes = {name: settings.pop(name) for name in ENGINE_CLASSES if name in settings}
        config = Config(model, **settings)
        self.tokenizer = _load_tokenizer(config.model)
        self.engine = LLMEngine(config, **classes)
        self.config = config
        # No atexit hook and no __del__: nothing but your own variables keeps an engine alive.
        self._finalizer = weakref.finalize(self, _release, self.engine)

    def __repr__(self) -> str:
        if not self._finalizer.alive:
            return f"LLM({self.config.model.name}, closed)"
        return f"LLM({self.config.model.name}, {self.engine.model_runner!r}, {self.engine.scheduler!r})"

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights and the cache. May be called any number of times."""
        self._finalizer()

    def generate(self, prompts: Prompt | list[Prompt], sampling_params: SamplingParams | list[SamplingParams] | None = None,
                 use_tqdm: bool = True) -> list[RequestOutput]:
        """Serve the prompts together; returns one output a prompt, in order.

        prompts: a text, a list of texts, or a list of lists of token ids. sampling_params: one for all or one for each.
        Raises ValueError, before anything is queued, when any of them cannot be served. When the call is interrupted
        or fails, its requests are aborted and their blocks freed; the engine stays usable.
        """
        requests = self._requests(prompts, sampling_params)
        order = []
        with self._serving(requests, order):
            with tqdm(total=len(order), desc="Generating", unit=" requests", disable=not use_tqdm, dynamic_ncols=True) as bar:
                remaining, generated = {seq.seq_id for seq in order}, 0
                while remaining:
                    mine = [seq for seq in self.engine.step() if seq.seq_id in remaining]
                    if mine:
                        remaining.difference_update(seq.seq_id for seq in mine)
                        generated += sum(seq.num_output_tokens for seq in mine)
                        bar.set_postfix_str(f"{generated / max(bar.format_dict['elapsed'], 1e-9):.0f} tokens/s", refresh=False)
                        bar.update(len(mine))
        return [self._output(seq, text) for seq, (text, _, _) in zip(order, requests)]

    def stream(self, prompts: Prompt | list[Prompt], sampling_params: SamplingParams | list[SamplingParams] | None = None
               ) -> Iterator[str] | Iterator[tuple[int, str]]:
        """Yield text as it is generated: pieces of text for one prompt; (index, piece) for a list served together.

        A piece never splits a character. Raises as `generate` does; leaving the loop early aborts what still runs.
        """
        requests = self._requests(prompts, sampling_params)
        pieces = self._stream(requests)
        return pieces if isinstance(prompts, list) else (piece for _, piece in pieces)

    def chat(self, messages: list[dict] | list[list[dict]],
             sampling_params: SamplingParams | list[SamplingParams] | None = None, use_tqdm: bool = True,
             **template_arguments) -> list[RequestOutput]:
        """Continue one conversation, or each of a list, in the model's own chat format.

        messages: [{"role": "system" | "user" | "assistant", "content": text}, ...]. Further keywords go to the model's
        chat template.
        """
        conversations = [messages] if messages and isinstance(messages[0], dict) else messages
        prompts = [self.render_chat(conversation, **template_arguments) for conversation in conversations]
        return self.generate(prompts, sampling_params, use_tqdm)

    def render_chat(self, messages: list[dict], **template_arguments) -> str:
        """The text that the model's chat template makes of a conversation, ready for the assistant's turn."""
        self._require_tokenizer("chat")
        for message in messages if isinstance(messages, list) and messages else [messages]:
            check(isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str),
                  "message", message, "a dict with a 'role' and a 'content', both texts",
                  'pass [{"role": "user", "content": "Hello"}]')
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **template_arguments)

    @contextmanager
    def trace(self) -> Iterator[Trace]:
        """Record every step inside the `with` block: `with llm.trace() as trace: llm.generate(...)`."""
        trace = Trace()
        self.engine.attach(trace)
        try:
            yield trace
        finally:
            self.engine.detach(trace)

    @contextmanager
    def _serving(self, requests: list[tuple], order: list[Sequence]) -> Iterator[None]:
        """Queue all requests, filling `order`; on the way out, however that happens, none of them stays behind."""
        try:
            for _, token_ids, params in requests:  # one by one: an interrupt here, too, must find what is queued already
                order.append(self.engine.add_request(token_ids, params))
            yield
        finally:
            for seq in order:
                if not seq.is_finished:
                    self.engine.abort(seq.seq_id)

    def _stream(self, requests: list[tuple]) -> Iterator[tuple[int, str]]:
        self._require_tokenizer("stream")
        order = []
        with self._serving(requests, order):
            decoders = [IncrementalDetokenizer(self.tokenizer) for _ in order]
            sent, open_ = [0] * len(order), set(range(len(order)))
            while open_:
                if not all(order[i].is_finished for i in open_):
                    self.engine.step()
                for i in sorted(open_):
                    seq = order[i]
                    new = seq.output_token_ids[sent[i]:]
                    sent[i] += len(new)
                    if seq.is_finished:
                        open_.remove(i)
                    if piece := decoders[i].push(new, final=seq.is_finished):
                        yield i, piece

    def _requests(self, prompts, sampling_params) -> list[tuple[str | None, list[int], SamplingParams]]:
        """(text, token ids, parameters) of every prompt, each checked, so that a bad one harms no other."""
        check(self._finalizer.alive, "LLM", self.config.model.name, "open", "it was closed; make a new one")
        if isinstance(prompts, str):
            prompts = [prompts]
        check(isinstance(prompts, (list, tuple)), "prompts", prompts, "a text, a list of texts or a list of lists of token ids",
              "pass one of those")
        check(not any(isinstance(p, int) for p in prompts), "prompts", prompts, "a list of prompts",
              "wrap one prompt's token ids in a list: [[1, 2, 3]]")
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            sampling_params = [sampling_params or SamplingParams()] * len(prompts)
        check(len(sampling_params) == len(prompts), "len(sampling_params)", len(sampling_params),
              f"{len(prompts)}, one for each prompt", "pass one SamplingParams for all, or a list as long as prompts")
        requests = []
        for prompt, params in zip(prompts, sampling_params):
            check(isinstance(params, SamplingParams), "sampling_params", params, "SamplingParams", "pass a SamplingParams")
            text, token_ids = (prompt, self._encode(prompt)) if isinstance(prompt, str) else (None, list(prompt))
            self.engine.validate(token_ids, params)
            requests.append((text, token_ids, params))
        return requests

    def _encode(self, text: str) -> list[int]:
        check(text != "", "prompt", text, "at least one character", "pass a non-empty prompt")
        self._require_tokenizer("a text prompt")
        return self.tokenizer.encode(text)

    def _require_tokenizer(self, what: str) -> None:
        check(self.tokenizer is not None, "model", str(self.config.model), f"a folder with a tokenizer.json for {what}",
              "add the tokenizer's files, or pass lists of token ids to generate()")

    def _output(self, seq: Sequence, text: str | None) -> RequestOutput:
        generated = self.tokenizer.decode(seq.output_token_ids, skip_special_tokens=True) if self.tokenizer else ""
        return RequestOutput(seq.seq_id, text, seq.prompt_token_ids, generated, seq.output_token_ids, seq.finish_reason,
                             seq.num_cached_tokens, seq.num_preemptions)


def _load_tokenizer(folder):
    """The folder's tokenizer; None when it has none (random weights for benchmarks): prompts are then token ids."""
    if not (folder / "tokenizer.json").is_file():
        return None
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(folder)


def _release(engine: LLMEngine) -> None:
    engine.model_runner.close()

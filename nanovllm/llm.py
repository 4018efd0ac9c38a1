"""The public face: text in, text out."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, overload

from nanovllm.config import Config
from nanovllm.engine_parts import make_engine
from nanovllm.errors import EngineError
from nanovllm.outputs import RequestOutput
from nanovllm.sampling_params import SamplingParams
from nanovllm.serving.chat import render_chat
from nanovllm.serving.grammars import GrammarCompiler
from nanovllm.serving.request import Request
from nanovllm.serving.run_requests import run_requests, stream_requests
from nanovllm.serving.sampling_defaults import SamplingDefaults
from nanovllm.serving.tokenizer import load_tokenizer, require_tokenizer
from nanovllm.tracing.profiling import profiled
from nanovllm.tracing.recorder import Recorder
from nanovllm.tracing.trace import Trace
from nanovllm.utils.checks import check, check_keywords, check_request
from nanovllm.utils.numbers import plain

CONFIG_FIELDS = [f.name for f in fields(Config) if f.init]
ENGINE_PARTS = ("scheduler_cls", "block_manager_cls")
Prompt = str | list[int]
Prompts = list[str] | list[list[int]] | list[Prompt] | tuple[Prompt, ...]
PerPrompt = list[SamplingParams] | tuple[SamplingParams, ...]
Messages = list[dict[str, Any]]


class LLM:
    """An engine with a tokenizer. Drop-in for nano-vllm's class of this name.

    Owns the tokenizer and one LLMEngine. `LLM()` runs the model that ships with the package; the
    settings are those of `nanovllm.config.Config`. Parts of your own: `scheduler_cls` and `block_manager_cls` (see
    `LLMEngine`), a `drafter` (see `nanovllm.engine.drafts.Drafter`), and `sampler`, which turns (logits [num_rows,
    vocab_size], SamplingBatch) into token ids [num_rows] int64.
    `close()` (or leaving a `with` block, or the last reference) gives all its memory back.

    Any number of threads may call it, and use it beside an AsyncLLM of it: their requests run together, whichever thread takes
    a step takes it for all, and each gets what it would get alone. A stream that its owner leaves lying keeps nobody
    waiting. `close` waits for the step at hand; calls that still run in other threads then raise RequestFailed.

    Raises InvalidArgument for a setting that cannot be served, CheckpointError for a folder that cannot be read, and
    EngineError when the cache does not fit on the device.
    """

    def __init__(self, model: str | Path | None = None, **settings: Any):
        check_keywords("LLM", settings, (*CONFIG_FIELDS, *ENGINE_PARTS, "sampler", "drafter"))
        parts = {name: settings.pop(name) for name in ENGINE_PARTS if name in settings}
        sampler, drafter = settings.pop("sampler", None), settings.pop("drafter", None)
        config = Config(model, **settings)
        self.tokenizer = load_tokenizer(config.model)
        config.add_eos_token(getattr(self.tokenizer, "eos_token_id", None))
        self.engine = make_engine(config, sampler, drafter, **parts)
        self.config = config
        self.grammars = GrammarCompiler(self.tokenizer, config.hf_config.vocab_size, config.eos_token_ids)
        # No atexit hook and no __del__: nothing but your own variables keeps an engine alive.
        self._finalizer = weakref.finalize(self, self.engine.close)

    def __repr__(self) -> str:
        if not self._finalizer.alive:
            return f"LLM({self.config.model.name}, closed)"
        return f"LLM({self.config.model.name}, {self.engine.model_runner!r}, {self.engine.scheduler!r})"

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights and the cache. May be called any number of times."""
        self._finalizer()

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends, as vLLM's method of this name says; a fresh copy.

        Of that file temperature, top_p, top_k, min_p, repetition_penalty and max_new_tokens are taken; what it leaves out, or
        all where there is none, is as in `SamplingParams()`. Raises CheckpointError for a file that cannot be used.
        """
        return SamplingDefaults.of_model(self.config.model).sampling_params()

    def generate(self, prompts: str | Prompts, sampling_params: SamplingParams | PerPrompt | None = None,
                 use_tqdm: bool = True, priority: int | list[int] = 0) -> list[RequestOutput]:
        """Serve the prompts together; returns one output per prompt, in order.

        prompts: a text, a list of texts, or a list of lists of token ids. sampling_params: one for all or one for each.
        Without any the model's own recommendation holds (`get_default_sampling_params`), as in vLLM, cut to the tokens that the
        prompt leaves room for; `max_tokens` that you ask for are refused when the cache cannot hold them.
        priority: likewise; less is served sooner, but waiting outweighs it in the end (see `Scheduler`).
        Raises InvalidRequest, before anything is queued, when any of them cannot be served. When the call is interrupted
        or fails, its requests are aborted and their blocks freed; the engine stays usable.

        A prompt that cannot be served to its end does not cost the others their outputs: its own has finish_reason "error"
        and says why in `error`, and a warning is logged. When all fail, the first one's error is raised: NotFinite when the
        model's scores hold a NaN or an infinity, and what the step raised when it is this request that makes steps fail.
        """
        requests = self._requests(prompts, sampling_params, priority)
        return run_requests(self.engine, requests, use_tqdm)

    @overload
    def stream(self, prompts: str, sampling_params: SamplingParams | PerPrompt | None = None) -> Iterator[str]: ...

    @overload
    def stream(self, prompts: Prompts, sampling_params: SamplingParams | PerPrompt | None = None
               ) -> Iterator[tuple[int, str]]: ...

    def stream(self, prompts: str | Prompts, sampling_params: SamplingParams | PerPrompt | None = None
               ) -> Iterator[str] | Iterator[tuple[int, str]]:
        """Yield text as it is generated: pieces of text for one prompt; (index, piece) for a list served together.

        A piece never splits a character, nor holds the beginning of a stop string. Raises as `generate` does, and for
        n > 1; leaving the loop early aborts what still runs. When a prompt fails, the others go on, and
        its error is raised after their last piece.
        """
        requests = self._requests(prompts, sampling_params)
        require_tokenizer(self.tokenizer, self.config.model, "stream")
        for request in requests:
            check_request(request.params.n == 1, "n", request.params.n, "1 in stream",
                          "pass the prompt n times, with a seed each, and follow the pieces by their index")
        pieces = stream_requests(self.engine, requests)
        return (piece for _, piece in pieces) if isinstance(prompts, str) else pieces

    def chat(self, messages: Messages | list[Messages], sampling_params: SamplingParams | PerPrompt | None = None,
             use_tqdm: bool = True, priority: int | list[int] = 0, *, chat_template_kwargs: dict[str, Any] | None = None,
             **template_arguments: Any) -> list[RequestOutput]:
        """Continue one conversation, or each of a list, in the model's own chat format.

        messages: [{"role": "system" | "user" | "assistant", "content": text}, ...]. Further keywords: see `render_chat`.
        """
        several = isinstance(messages, (list, tuple)) and not (messages and isinstance(messages[0], dict))
        conversations: Any = messages if several else [messages]
        prompts = [self.render_chat(conversation, chat_template_kwargs=chat_template_kwargs, **template_arguments)
                   for conversation in conversations]
        return self.generate(prompts, sampling_params, use_tqdm, priority)

    def render_chat(self, messages: Messages, *, chat_template_kwargs: dict[str, Any] | None = None,
                    **template_arguments: Any) -> str:
        """The text that the model's chat template makes of a conversation, ready for the assistant's turn.

        Keywords, or a dict of them as `chat_template_kwargs`, are variables that the template reads, such as
        enable_thinking=False, or one of: continue_final_message=True, to go on with the last message, which is then the
        beginning of the answer; add_generation_prompt=False, to end behind it; chat_template, to use another; tools and
        documents, which some templates read.

        `generate` and `stream` know the text for what it is, and add no second beginning-of-sequence token.
        """
        tokenizer = require_tokenizer(self.tokenizer, self.config.model, "chat")
        return render_chat(tokenizer, self.config.model, messages, template_arguments, chat_template_kwargs)

    @contextmanager
    def trace(self, path: str | Path | None = None, *, max_records: int | None = None, profile: bool = False
              ) -> Iterator[Trace]:
        """Record every step inside the `with` block: `with llm.trace() as trace: llm.generate(...)`.

        path: a file that takes the records while the run goes on; max_records: how many of the newest stay in memory.
        Together they record runs of any length. profile: record the GPU's kernels, too (without a GPU the CPU's
        operators): for some seconds' worth of steps, as a profiler keeps all it sees in memory and slows the host down.
        """
        size = self.config.tensor_parallel_size
        check(not profile or size == 1, "profile", profile, f"False with tensor_parallel_size={size}",
              "the kernels run in other processes: profile the model at size 1")
        trace = Trace(path=path, max_records=max_records)
        recorder = Recorder(self.engine, trace)
        try:
            with profiled(trace, self.config.device) if profile else nullcontext():
                yield trace
        finally:
            recorder.close()
            trace.close()

    def _requests(self, prompts: str | Prompts, sampling_params: SamplingParams | PerPrompt | None,
                  priority: int | list[int] = 0) -> list[Request]:
        """A request for every prompt, each checked before any is queued, so that a bad one harms no other."""
        check(self._finalizer.alive, "LLM", self.config.model.name, "open", "it was closed; make a new one", error=EngineError)
        prompts = [prompts] if isinstance(prompts, str) else plain(prompts)
        check_request(isinstance(prompts, (list, tuple)), "prompts", prompts,
                      "a text, a list of texts or a list of lists of token ids", "pass one of those")
        check_request(not any(isinstance(plain(p), int) for p in prompts), "prompts", prompts, "a list of prompts",
                      "wrap one prompt's token ids in a list: [[1, 2, 3]]")
        priority, is_default = plain(priority), sampling_params is None
        if not isinstance(sampling_params, (list, tuple)):
            sampling_params = [sampling_params or self.get_default_sampling_params()] * len(prompts)
        if not isinstance(priority, (list, tuple)):
            priority = [priority] * len(prompts)
        for name, values in (("sampling_params", sampling_params), ("priority", priority)):
            check_request(len(values) == len(prompts), f"len({name})", len(values), f"{len(prompts)}, one for each prompt",
                          f"pass one {name} for all, or a list as long as prompts")
        return [Request(self.engine, self.tokenizer, *each, self.grammars, cuts_max_tokens=is_default)
                for each in zip(prompts, sampling_params, priority)]

"""One request from its prompt to its output: the sequences that run for it, their text, and the strings that stop it."""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import pairwise

from nanovllm.engine.llm_engine import LLMEngine
from nanovllm.engine.sequence import Sequence
from nanovllm.errors import RequestFailed
from nanovllm.outputs import CompletionOutput, Logprob, RequestOutput, Timings, Usage
from nanovllm.sampling_params import SamplingParams
from nanovllm.serving.bad_words import with_bad_words_ids
from nanovllm.serving.chat import encode
from nanovllm.serving.detokenizer import IncrementalDetokenizer
from nanovllm.serving.grammar_matcher import GrammarMatcher
from nanovllm.serving.grammars import GrammarCompiler
from nanovllm.serving.sampling_defaults import room_after
from nanovllm.serving.stop_strings import StopStrings
from nanovllm.serving.tokenizer import Tokenizer, require_tokenizer
from nanovllm.utils.checks import check_characters, check_request
from nanovllm.utils.interrupts import uninterrupted
from nanovllm.utils.numbers import as_token_ids, plain


@dataclass(slots=True)
class Delta:
    """What one sample gained since the last `advance`. finish_reason is set on its last delta, and on no other.

    text never splits a character, nor ends in what may become a stop string; token_ids may be ahead of it.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None = field(default=None, repr=False)
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Request:
    """One request, outside the engine: text goes in, sequences run, deltas and an output come out.

    Owns a sequence in the engine for each of its `n` samples, and everything about their text. It never steps the
    engine: the caller does, and calls `advance` afterwards to take in what a step gave. Between `submit` and the end of every
    sample the engine works for it; `abort` ends that at any time, and may be called at any time.

    prompt: a text or token ids. tokenizer: None serves token ids only, and their output has no text. priority: less is
    served sooner; see `Scheduler`. grammars: compiles `structured_outputs`, here and now; None: a request must not have any.
    cuts_max_tokens: whether `max_tokens` that are more than the prompt leaves room for are cut to that, as what nobody asked
    for is, the model's own recommendation; else they are refused where the cache could not hold them.

    Raises InvalidRequest, with nothing queued, when the request could not be served to its end.
    """

    def __init__(self, engine: LLMEngine, tokenizer: Tokenizer | None, prompt: str | list[int],
                 params: SamplingParams | None = None, priority: int = 0, grammars: GrammarCompiler | None = None,
                 *, cuts_max_tokens: bool = False):
        params = params or SamplingParams()
        # By name: when its file is edited in a notebook's session, autoreload gives what was made before another class.
        check_request(type(params).__name__ == "SamplingParams", "sampling_params", params, "SamplingParams",
                      "pass a SamplingParams")
        params = with_bad_words_ids(params, tokenizer)
        self.engine, self.tokenizer, self.params, self.priority = engine, tokenizer, params, plain(priority)
        self.prompt = str(prompt) if isinstance(prompt, str) else None
        self.prompt_token_ids = self._encode(prompt) if isinstance(prompt, str) else as_token_ids(prompt)
        if cuts_max_tokens and params.max_tokens > (room := room_after(engine, len(self.prompt_token_ids))):
            self.params = params = replace(params, max_tokens=room)
        check_request(tokenizer is not None or not params.stop, "stop", params.stop, "empty for a model without a tokenizer",
                      "use stop_token_ids")
        engine.validate(self.prompt_token_ids, params, self.priority)
        self._matchers: list[GrammarMatcher] = []  # one for each sample, until they are queued
        if params.structured_outputs is not None:
            check_request(grammars is not None, "structured_outputs", params.structured_outputs,
                          "None for a Request without a GrammarCompiler", "pass LLM's own: grammars=llm.grammars")
            assert grammars is not None
            self._matchers = [grammars.matcher(params.structured_outputs) for _ in range(params.n)]
        self._samples: list[_Sample] = []

    def __repr__(self) -> str:
        return f"Request({len(self.prompt_token_ids)} prompt tokens, {self.sequences})"

    @property
    def sequences(self) -> list[Sequence]:
        """The engine's side of it: one sequence for each sample; none before `submit`."""
        return [sample.seq for sample in self._samples]

    @property
    def watches_text(self) -> bool:
        """Whether the text may end it, so that `advance` is due after every step."""
        return bool(self.params.stop)

    @property
    def has_run(self) -> bool:
        """Whether the engine is done with every sample, whatever `advance` has seen."""
        return bool(self._samples) and all(sample.seq.is_finished for sample in self._samples)

    @property
    def is_finished(self) -> bool:
        """Whether every sample has ended, as far as `advance` has seen."""
        return bool(self._samples) and all(sample.finish_reason for sample in self._samples)

    @property
    def error(self) -> RequestFailed | None:
        """What ended a sample of it before its time."""
        return next((seq.error for seq in self.sequences if seq.error and seq.is_finished), None)

    def submit(self) -> "Request":
        """Queue it. The samples share the full blocks of the prompt: those after the first find them cached."""
        p = self.params
        matchers, self._matchers = self._matchers, []
        for i in range(p.n):
            own = p if p.n == 1 else replace(
                p, n=1, seed=None if p.seed is None else (p.seed + i) % 2**63, prompt_logprobs=None if i else p.prompt_logprobs)
            seq = self.engine.new_sequence(self.prompt_token_ids, own, self.priority, matchers[i] if matchers else None)
            self._samples.append(_Sample(i, seq, self.tokenizer, own.ending_tokens(self.engine.config.eos_token_ids)))
        for seq in self.sequences:  # known here before they are queued there: an interrupt in between loses none
            self.engine.enqueue(seq)
        return self

    def advance(self) -> list[Delta]:
        """Take in what the engine generated since the last call; one delta for each sample that gained something.

        A sample that met a stop string is ended in the engine, too.
        """
        deltas = []
        for sample in self._samples:
            if sample.finish_reason is None and (delta := sample.advance()):
                deltas.append(delta)
                if sample.finish_reason and not sample.seq.is_finished:
                    self.engine.abort(sample.seq.seq_id, sample.finish_reason)
        return deltas

    def abort(self, reason: str = "abort") -> None:
        """End what still runs, and free its blocks; its output keeps what was generated. reason: "abort" or "error"."""
        with uninterrupted(), ExitStack() as stack:  # which goes on when one of them raises
            for seq in self.sequences:
                if not seq.is_finished:
                    stack.callback(self.engine.abort, seq.seq_id, reason)

    def output(self) -> RequestOutput:
        """The output so far, as of the last `advance`."""
        first = self._samples[0].seq
        outputs = [sample.output() for sample in self._samples]
        usage = Usage(len(self.prompt_token_ids), sum(len(o.token_ids) for o in outputs), first.num_hit_tokens)
        return RequestOutput(first.seq_id, self.prompt, self.prompt_token_ids, outputs, usage, self.prompt_logprobs())

    def prompt_logprobs(self) -> list[dict[int, Logprob] | None] | None:
        """One entry for each prompt token: what the model thought of it, given those before; None for the first.

        None while the prompt is still being computed, or when not asked for.
        """
        k, seq = self.params.prompt_logprobs, self._samples[0].seq
        if k is None or not all(position in seq.logprobs for position in range(1, seq.num_prompt_tokens)):
            return None
        return [None, *(_entry(seq, position, k, self.tokenizer) for position in range(1, seq.num_prompt_tokens))]

    def _encode(self, text: str) -> list[int]:
        check_request(text != "", "prompt", text, "at least one character", "pass a non-empty prompt")
        tokenizer = require_tokenizer(self.tokenizer, self.engine.config.model, "a text prompt")
        check_characters("prompt", text)
        return encode(tokenizer, text)


class _Sample:
    """One sample's tokens and text, as of the last `advance`."""

    def __init__(self, index: int, seq: Sequence, tokenizer: Tokenizer | None, ending_tokens: set[int]):
        p = seq.sampling_params
        self.index, self.seq = index, seq
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self._tokenizer, self._ending_tokens = tokenizer, ending_tokens
        self._detokenizer = IncrementalDetokenizer(tokenizer, p.skip_special_tokens) if tokenizer else None
        self._stops = StopStrings(p.stop, p.include_stop_str_in_output) if p.stop else None

    def advance(self) -> Delta | None:
        """Take in the sequence's new tokens, up to the one that completes a stop string."""
        seq, seen = self.seq, len(self.token_ids)
        ended = seq.is_finished
        new = seq.token_ids[seq.num_prompt_tokens + seen:]
        if not new and not ended:
            return None
        self.token_ids += new
        hidden = ended and seq.finish_reason == "stop" and not seq.sampling_params.include_stop_str_in_output
        hidden = hidden and seq.token_ids[-1] in self._ending_tokens  # a grammar ends with a token of the text
        text = self._push(new[:-1] if hidden else new, seen, ended)
        if ended and not self.finish_reason:
            self.finish_reason, self.stop_reason = seq.finish_reason, seq.stop_reason
        self.text += text
        return Delta(self.index, text, self.token_ids[seen:], self._logprobs(seen), self.finish_reason, self.stop_reason)

    def _push(self, new: list[int], count: int, ended: bool) -> str:
        """The text that the `new` tokens complete, of which `count` came before. Ends the sample at the token that completes a
        stop string."""
        if self._detokenizer is None:
            return ""
        if self._stops is None:
            return self._detokenizer.push(new, final=ended)
        text = ""
        for token in new:
            count += 1
            text += self._stops.push(self._detokenizer.push([token]), count > self.seq.sampling_params.min_tokens)
            if self._stops.found:
                break
        if ended and not self._stops.found:
            text += self._stops.push(self._detokenizer.push([], final=True), count > self.seq.sampling_params.min_tokens)
            text += "" if self._stops.found else self._stops.flush()
        if self._stops.found:
            self.finish_reason, self.stop_reason = "stop", self._stops.found
            del self.token_ids[count:]
        return text

    def output(self) -> CompletionOutput:
        seq = self.seq
        times = seq.token_times[:len(self.token_ids)]
        timings = Timings(
            queued=None if seq.scheduled_at is None else seq.scheduled_at - seq.arrived_at,
            time_to_first_token=times[0] - seq.arrived_at if times else None,
            inter_token=[later - earlier for earlier, later in pairwise(times)],
            total=times[-1] - seq.arrived_at if times else None)
        return CompletionOutput(self.index, self.text, list(self.token_ids), self.finish_reason, self.stop_reason,
                                self._logprobs(0), seq.num_preemptions, timings, str(seq.error) if seq.error else None,
                                seq.num_drafted_tokens, seq.num_accepted_tokens)

    def _logprobs(self, first: int) -> list[dict[int, Logprob]] | None:
        """Of the generated tokens from `first` on; None when not asked for."""
        k, start = self.seq.sampling_params.logprobs, self.seq.num_prompt_tokens
        if k is None:
            return None
        return [_entry(self.seq, start + i, k, self._tokenizer) for i in range(first, len(self.token_ids))]


def _entry(seq: Sequence, position: int, k: int, tokenizer: Tokenizer | None) -> dict[int, Logprob]:
    """The token at a position, and the k likeliest there."""
    token_ids, logprobs, rank = seq.logprobs[position]

    def logprob(i: int, rank: int) -> Logprob:
        return Logprob(logprobs[i], rank, tokenizer.decode([token_ids[i]]) if tokenizer else None)

    return {token_ids[0]: logprob(0, rank)} | {token_ids[i]: logprob(i, i) for i in range(1, min(k + 1, len(token_ids)))}

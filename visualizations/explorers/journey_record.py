"""One prompt followed through every room of a live engine, as plain data: what was called, which of its lines ran, what
the objects held then."""

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import nanovllm
from nanovllm.engine.scheduled_batch import ScheduledSequence
from nanovllm.engine.sequence import Sequence
from nanovllm.layers.attention import Attention
from nanovllm.layers.sampler import draw
from nanovllm.sampling_params import SamplingParams
from nanovllm.serving.chat import encode
from nanovllm.serving.detokenizer import IncrementalDetokenizer
from nanovllm.serving.request import Request
from nanovllm.utils.checks import check
from visualizations.explorers.line_watch import LineWatch, code_of

PACKAGE_PARENT = Path(nanovllm.__file__).parents[1]
LONGEST_VALUE = 300  # characters
MOST_BLOCKS = 96     # of the cache that the picture shows


def record_journey(llm: Any, prompt: str, sampling_params: SamplingParams | None = None) -> dict[str, Any]:
    """Serve one prompt, step by step, and note every stop on its way. Returns JSON-able data for `JourneyExplorer`.

    llm: an idle `LLM`; afterwards it is idle again. prompt: a text, in the model's chat format if it is a chat
    (`llm.render_chat`). The tokens are those that `llm.generate` would draw. Raises ValueError when the engine is busy or
    the request cannot be served.
    """
    check(not llm.engine.has_unfinished, "engine", llm.engine.scheduler, "idle", "finish or abort what it serves first")
    params = sampling_params or SamplingParams(max_tokens=8)
    check(params.n == 1, "n", params.n, "1", "follow one sample")
    journey = _Journey(llm)
    try:
        return journey.travel(prompt, params)
    finally:
        journey.close()


class _Journey:
    """The notes of one journey. It calls the engine's own parts one after the other, as `LLMEngine.step` does."""

    def __init__(self, llm: Any) -> None:
        self.engine = engine = llm.engine
        self.names = {"llm": llm, "engine": engine, "scheduler": engine.scheduler, "blocks": engine.block_manager,
                      "runner": engine.model_runner}
        self.watch = LineWatch()
        self.stops: list[dict[str, Any]] = []
        self.sources: dict[str, dict[str, Any]] = {}
        self.num_steps = 0
        self.scheduled: tuple[int, int] | None = None  # (first position, number of tokens) of the step under way
        self.request: Request | None = None

    def close(self) -> None:
        if self.request is not None:
            self.request.abort()

    def travel(self, prompt: str, params: SamplingParams) -> dict[str, Any]:
        self._arrive(prompt, params)
        while self.engine.has_unfinished:
            self._step()
        return self._packed()

    # ---- the stops, in the order of the code

    def _arrive(self, prompt: str, params: SamplingParams) -> None:
        llm, scheduler, names = self.names["llm"], self.engine.scheduler, self.names
        names["prompt"], names["params"] = prompt, params
        with self._watching(encode, Request.submit, type(scheduler).add):
            request = self.request = names["request"] = Request(self.engine, llm.tokenizer, prompt, params)
            request.submit()
        names["seq"] = request.sequences[0]
        self._stop("tokenizer", encode,
                   f"{len(prompt)} characters become {len(request.prompt_token_ids)} token ids. From here on the engine "
                   "knows numbers only.", "prompt", "request.prompt_token_ids")
        self._stop("waiting queue", Request.submit,
                   "The ids go into a Sequence. It holds no block, and nothing is computed for it yet.", "seq",
                   "seq.num_uncomputed_tokens", "params.temperature", "params.max_tokens")
        self._stop("waiting queue", type(scheduler).add, "The sequence joins the queue in order, and waits for a step.",
                   "scheduler", "scheduler.waiting")

    def _step(self) -> None:
        names = self.names
        seq, scheduler = names["seq"], self.engine.scheduler
        self._schedule(seq, scheduler)
        item = names["item"]
        tokens = self._compute(item, seq)
        with self._watching(type(scheduler).update):
            scheduler.update(names["batch"], tokens)
        self.scheduled = None
        says = "the drawn token joins the sequence, which is one ahead of its cache." if tokens else \
            "the cache has followed the prompt this far."
        end = f" It is finished ({seq.finish_reason}) and gives its blocks back." if seq.is_finished else ""
        self._stop("scheduler", type(scheduler).update, f"The books are brought up to date: {says}{end}",
                   "len(seq)", "seq.num_computed_tokens", "seq.num_uncomputed_tokens", "seq.status", "blocks")
        if tokens:
            self._out(seq)

    def _schedule(self, seq: Sequence, scheduler: Any) -> None:
        names, kind, manager = self.names, type(scheduler), type(self.engine.block_manager)
        before, table = self._picture(), list(seq.block_table)
        admits = [getattr(kind, name) for name in ("_admit", "_schedule_running") if hasattr(kind, name)]
        with self._watching(kind.schedule, *admits, manager.append):
            batch = names["batch"] = scheduler.schedule()
        item = names["item"] = batch.items[0]
        self.scheduled = (item.start, item.num_tokens)
        self.num_steps += 1
        last = item.start + item.num_tokens - 1
        tokens = "one token" if item.num_tokens == 1 else f"{item.num_tokens} tokens, positions {item.start} to {last}"
        self._stop("scheduler", kind.schedule, f"Step {self.num_steps} begins. The scheduler gives the sequence {tokens}. "
                   f"The reason it gives: {item.reason}.",
                   "item.start", "item.num_tokens", "item.samples", "scheduler.max_num_batched_tokens", picture=before)
        ran = [function for function in admits if self.watch.calls[code_of(function)]]
        if not table and ran:
            self._stop("scheduler", ran[0], "It is admitted: there is budget, a place, and room in the cache for all of its "
                       "prompt.", "seq.status", "seq.num_cached_tokens", "scheduler.running", picture=before)
        if new := seq.block_table[len(table):]:
            joined = f"block {new[0]}" if len(new) == 1 else f"blocks {', '.join(map(str, new))}"
            self._stop("block table", manager.append, f"Room for {tokens}: {joined} joined its table. Position p lives in "
                       f"block table[p // {self.engine.block_manager.block_size}].", "seq.block_table", "blocks")

    def _compute(self, item: ScheduledSequence, seq: Sequence) -> list[int]:
        runner, names = self.engine.model_runner, self.names
        prepare, model, sampler = type(runner).prepare, type(runner.model.model).forward, type(runner.sampler).forward
        with self._watching(prepare, model, Attention.forward, sampler, draw):
            tokens: list[int] = runner.collect(runner.launch(names["batch"]))
        _, names["inputs"] = self.watch.last[code_of(prepare)]
        self._stop("model", prepare, "The step becomes tensors: which tokens, where in the text, and which slot of the cache "
                   "each one fills.", "inputs.input_ids", "inputs.positions", "inputs.context.slot_mapping",
                   "inputs.context.context_lens")
        some = "One token goes" if item.num_tokens == 1 else f"All {item.num_tokens} tokens go"
        wanted = "Only the last one's scores are wanted: one for every word that could come next." if item.samples else \
            "The prompt is not complete, so nobody asks for scores yet."
        self._stop("model", model, f"{some} through every layer, side by side. {wanted}", "runner",
                   "len(runner.model.model.layers)", "inputs.context.last_rows")
        context = names["inputs"].context
        new = int((context.slot_mapping >= 0).sum())
        self._stop("KV cache", Attention.forward, f"Each layer stores the new keys and values in {new} "
                   f"slot{'s' * (new != 1)} of its cache, then reads all {int(context.context_lens[0])} that hold a token now.",
                   "inputs.context.slot_mapping", "inputs.context.block_tables", "runner.kv_cache.shape")
        if tokens:
            self._drawn(tokens[0], self.watch.last[code_of(sampler)][0]["logits"],
                        sampler if seq.sampling_params.greedy else draw, seq.sampling_params)
        return tokens

    def _drawn(self, token: int, logits: torch.Tensor, function: Callable[..., Any], params: SamplingParams) -> None:
        names = self.names
        names["token"], names["word"], names["logits"] = token, self._decode(token), logits
        names["candidates"] = self._candidates(logits[0].float(), params.temperature)
        how = "It has the highest score." if params.greedy else \
            "Every token's score gets noise, and the highest sum wins: a draw from their probabilities."
        self._stop("sampler", function, f"The next token is {names['word']!r}. {how}", "logits.shape", "candidates",
                   "token", "word")

    def _out(self, seq: Sequence) -> None:
        with self._watching(IncrementalDetokenizer.push):
            deltas = self.names["request"].advance()
        self.names["delta"] = text = deltas[0].text if deltas else ""
        self.names["text"] = self.names["request"].output().outputs[0].text
        says = f"The reader sees {text!r}." if text else "No text yet: a character, or a marker, is not complete."
        self._stop("detokenizer", IncrementalDetokenizer.push, says + (
            " The answer is complete." if seq.is_finished else " Round again, with the new token as the only input."),
            "delta", "text", "seq")

    # ---- taking notes

    def _watching(self, *functions: Callable[..., Any]) -> LineWatch:
        return self.watch.watch(list(functions))

    def _stop(self, room: str, function: Callable[..., Any], says: str, *expressions: str,
              picture: dict[str, Any] | None = None) -> None:
        code = code_of(function)
        self.stops.append({
            "room": room, "source": self._source(function), "lit": sorted(self.watch.lines[code]),
            "calls": self.watch.calls[code], "says": says, "step": self.num_steps,
            "values": [[expression, self._shown(expression)] for expression in expressions]} | (picture or self._picture()))

    def _picture(self) -> dict[str, Any]:
        """Tokens and blocks at this moment."""
        seq, blocks = self.names["seq"], self.engine.block_manager
        return {"tokens": len(seq), "computed": seq.num_computed_tokens, "scheduled": self.scheduled,
                "table": list(seq.block_table), "text": self.names.get("text", ""),
                "blocks": "".join(blocks.block_state(b) for b in range(blocks.num_blocks))}

    def _source(self, function: Callable[..., Any]) -> str:
        function = inspect.unwrap(function)
        name = function.__qualname__
        if name not in self.sources:
            lines, number = inspect.getsourcelines(function)
            path = Path(inspect.getsourcefile(function) or "")
            file = path.relative_to(PACKAGE_PARENT) if path.is_relative_to(PACKAGE_PARENT) else Path(path.name)
            self.sources[name] = {"file": file.as_posix(), "first": number,
                                  "lines": textwrap.dedent("".join(lines)).rstrip().split("\n")}
        return name

    def _shown(self, expression: str) -> str:
        """The value of an expression that a reader could type here, in a line or two."""
        value = eval(expression, dict(self.names))  # only the expressions written above
        if isinstance(value, torch.Tensor):
            items = value.flatten().tolist()
            kind = str(value.dtype).removeprefix("torch.")
            text = f"{kind}{list(value.shape)}  {', '.join(map(str, items[:16]))}{' …' if len(items) > 16 else ''}"
        elif isinstance(value, list) and len(value) > 16:
            text = f"[{', '.join(map(repr, value[:16]))}, … {len(value)} in all]"
        else:
            text = value if isinstance(value, str) and expression == "candidates" else repr(value)
        return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE - 1] + "…"

    def _candidates(self, logits: torch.Tensor, temperature: float, most: int = 5) -> str:
        top = (logits / (temperature or 1)).softmax(-1).topk(most)
        return "  ".join(f"{self._decode(i)!r} {p:.3f}" for p, i in zip(top.values.tolist(), top.indices.tolist()))

    def _decode(self, token: int) -> str:
        return str(self.names["llm"].tokenizer.decode([token]))

    def _packed(self) -> dict[str, Any]:
        seq, blocks = self.names["seq"], self.engine.block_manager
        touched = {block for stop in self.stops for block in stop["table"]}
        numbers = sorted({*range(min(blocks.num_blocks, MOST_BLOCKS)), *touched})
        for stop in self.stops:
            stop["blocks"] = "".join(stop["blocks"][number] for number in numbers)
        return {"seq_id": seq.seq_id, "block_size": blocks.block_size, "num_blocks": blocks.num_blocks, "numbers": numbers,
                "num_prompt_tokens": seq.num_prompt_tokens, "words": [self._decode(token) for token in seq.token_ids],
                "sources": self.sources, "stops": self.stops}

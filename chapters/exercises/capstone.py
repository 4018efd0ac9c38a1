"""The capstone: one engine of the reader's own four parts serves the demo, and says what the finished engine says."""

import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from typing import Any

from nanovllm import LLM, SamplingParams
from nanovllm.__main__ import REQUESTS, SYSTEM, demo
from nanovllm.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from nanovllm.engine.scheduler import Scheduler
from nanovllm.outputs import RequestOutput

from .ch02 import as_block_manager
from .ch15 import REPEAT

PARAMS = SamplingParams(temperature=0, max_tokens=48)
DEMO_TOKENS = 60  # of each answer of the demo
SETTINGS: dict[str, Any] = dict(device="cpu", kvcache_block_size=16, num_kvcache_blocks=48, max_num_batched_tokens=64,
                                max_num_seqs=8, enable_prefix_caching=False)
PARTS = {"MyBlocks": "02", "MyScheduler": "04", "MySampler": "10", "Repeats": "15"}
CHATS = [*([{"role": "system", "content": SYSTEM}, {"role": "user", "content": request}] for request in REQUESTS),
         [{"role": "user", "content": REPEAT}]]


def with_drafts(scheduler_cls: type[Scheduler]) -> type[Scheduler]:
    """The reader's class where the engine has a drafter: guesses take what its plan has left over of the budget."""

    class Adapted(scheduler_cls):  # type: ignore[valid-type, misc]
        schedules_drafts = True

        def schedule(self) -> ScheduledBatch:
            batch: ScheduledBatch = super().schedule()
            budget = self.max_num_batched_tokens - batch.num_tokens
            for i, item in enumerate(batch.items):
                num_drafts = min(len(item.seq.draft_token_ids) - item.num_drafts, budget) if item.samples else 0
                if num_drafts > 0:  # their blocks are reserved already, see `Speculation`
                    batch.items[i] = ScheduledSequence(item.seq, item.start, item.num_tokens + num_drafts, item.reason)
                    budget -= num_drafts
            batch.items.sort(key=lambda item: item.num_tokens > 1)  # the attention kernels take single tokens first
            return batch

    return Adapted


def serve(parts: dict[str, Any], tell: Callable[[str], None] = print) -> Iterator[tuple[str, str]]:
    """Serve with one engine of `parts` (one for each name of PARTS), telling what happens; yields each request and its text.

    First the demo's chats at temperature 0, and with them one whose answer repeats its prompt, so that the drafter has
    something to guess: each text must be the finished engine's. Then `python -m nanovllm demo` itself, whose answers are drawn
    with a temperature: each must be what the same sampler draws among finished parts. Raises RuntimeError where a text is
    another, or where no guess of the drafter was kept.
    """
    sampler, drafter = parts["MySampler"](), parts["Repeats"]()
    with LLM(**SETTINGS) as finished:
        right = finished.chat(CHATS, PARAMS, use_tqdm=False)
    with LLM(**SETTINGS, block_manager_cls=as_block_manager(parts["MyBlocks"]), scheduler_cls=with_drafts(parts["MyScheduler"]),
             sampler=sampler, drafter=drafter) as llm:  # fmt: skip
        outputs = llm.chat(CHATS, PARAMS, use_tqdm=False)
        llm.engine.check_integrity()
        for chat, output, wanted in zip(CHATS, outputs, right, strict=True):
            _compare(chat[-1]["content"], output.text, wanted.text, "the finished one")
            yield chat[-1]["content"], output.text
        tell(f"\nEvery text is the finished engine's. {_steps(llm, outputs)}")
        tell("\nAnd now `python -m nanovllm demo`, by your engine:\n")
        answers = demo(llm, DEMO_TOKENS)
        llm.engine.check_integrity()
        with LLM(**SETTINGS, sampler=sampler) as finished, redirect_stdout(io.StringIO()):
            told = demo(finished, DEMO_TOKENS)
        for request, answer, wanted_answer in zip(REQUESTS, answers, told, strict=True):
            _compare(request, answer, wanted_answer, "your sampler among finished parts")


def _steps(llm: LLM, outputs: list[RequestOutput]) -> str:
    """What the drafter was worth, in words. Raises RuntimeError where it was worth nothing."""
    drafted, kept = (sum(getattr(out, name) for out in outputs) for name in ("num_drafted_tokens", "num_accepted_tokens"))
    speculation = llm.engine.speculation
    failures = speculation.num_failures if speculation else 0
    if not kept:
        raise RuntimeError(f"Repeats: none of {drafted} guesses was kept, and it failed {failures} times; where the answer "
                           "repeats its prompt, many should be. Guesses take what your plan leaves of the budget.")
    tokens = sum(len(out.token_ids) for out in outputs)
    return f"{tokens} tokens in {llm.engine.num_steps} steps; your drafter guessed {drafted} of them, and {kept} were right."


def _compare(request: str, text: str, wanted: str, whose: str) -> None:
    if text != wanted:
        raise RuntimeError(f"to {request!r} your engine says {text!r}, {whose} {wanted!r}")

"""The capstone: an engine of the reader's own parts serves the course's three chats, and says what the finished one says."""

from collections.abc import Callable, Iterator
from typing import Any

from nanovllm import LLM, SamplingParams
from nanovllm.__main__ import REQUESTS, SYSTEM

from .ch02 import as_block_manager
from .ch15 import REPEAT

PARAMS = SamplingParams(temperature=0, max_tokens=48)
SETTINGS: dict[str, Any] = dict(device="cpu", kvcache_block_size=16, num_kvcache_blocks=48, max_num_batched_tokens=64,
                                max_num_seqs=8, enable_prefix_caching=False)
PARTS = {"MyBlocks": "02", "MyScheduler": "04", "MySampler": "10", "Repeats": "15"}


def serve(parts: dict[str, Any], tell: Callable[[str], None] = print) -> Iterator[tuple[str, str]]:
    """Serve the chats with `parts` (a name of PARTS each), telling what happens; yields each request and its text.

    A scheduler of one's own and a drafter cannot serve in one engine, since the scheduler would have to plan for drafts. So
    there are two engines: one of the scheduler, the block manager and the sampler serves the demo's chats, and one of the
    drafter, the block manager and the sampler a request that a drafter without a model can help with. Raises RuntimeError
    where a text is not the finished engine's.
    """
    shared: dict[str, Any] = dict(block_manager_cls=as_block_manager(parts["MyBlocks"]), sampler=parts["MySampler"]())
    stories = [[{"role": "system", "content": SYSTEM}, {"role": "user", "content": request}] for request in REQUESTS]
    repeat = [[{"role": "user", "content": REPEAT}]]
    for what, own, chats in (("MyScheduler, MyBlocks and MySampler", dict(scheduler_cls=parts["MyScheduler"]), stories),
                             ("Repeats, MyBlocks and MySampler", dict(drafter=parts["Repeats"]()), repeat)):
        with LLM(**SETTINGS) as llm:
            right = [out.text for out in llm.chat(chats, PARAMS, use_tqdm=False)]
            usual = llm.engine.num_steps
        with LLM(**SETTINGS, **own, **shared) as llm:
            texts = [out.text for out in llm.chat(chats, PARAMS, use_tqdm=False)]
            steps = llm.engine.num_steps
            llm.engine.check_integrity()
        for chat, text, wanted in zip(chats, texts, right, strict=True):
            request = chat[-1]["content"]
            if text != wanted:
                raise RuntimeError(f"{what}: to {request!r} your engine says {text!r}, the finished one {wanted!r}")
            yield request, text
        tell(f"\n{what}: {steps} steps (the finished engine: {usual}), every text the finished engine's.")

"""Many requests served together, in the caller's thread: to their ends at once, or piece by piece."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack

from tqdm.auto import tqdm

from nanovllm.engine.llm_engine import LLMEngine
from nanovllm.outputs import RequestOutput
from nanovllm.serving.request import Request
from nanovllm.serving.stepping import step
from nanovllm.utils.interrupts import uninterrupted

logger = logging.getLogger("nanovllm")


def run_requests(engine: LLMEngine, requests: list[Request], use_tqdm: bool) -> list[RequestOutput]:
    """Serve all of them, and return an output for each, in order. None stays behind in the engine, however this ends.

    Where some fail, their outputs say why and a warning is logged; where all do, the first one's error is raised.
    """
    with uninterrupted():  # a step lets interrupts through, what lies between does not: threads share tqdm's locks
        try:
            _submit(engine, requests)
            _step_to_the_end(engine, requests, use_tqdm)
        finally:
            _abort(engine, requests)
    _report_failures(requests)
    return [request.output() for request in requests]


def stream_requests(engine: LLMEngine, requests: list[Request]) -> Iterator[tuple[int, str]]:
    """Yield (index of its request, piece of text) as it is generated; aborts what still runs when the loop is left.

    Raises the first error once the requests that did not fail have ended.
    """
    seen = engine.num_steps
    try:
        _submit(engine, requests)
        unfinished = dict(enumerate(requests))
        while unfinished:
            if not all(request.has_run for request in unfinished.values()):
                seen = step(engine, seen)
            for i, request in list(unfinished.items()):
                pieces = [delta.text for delta in request.advance() if delta.text]
                if request.is_finished:
                    del unfinished[i]
                yield from ((i, piece) for piece in pieces)
    finally:
        _abort(engine, requests)
    if errors := _errors(requests):
        raise errors[0]


def _submit(engine: LLMEngine, requests: list[Request]) -> None:
    """Queue them all before any runs."""
    with engine.turn:
        for request in requests:
            request.submit()


def _step_to_the_end(engine: LLMEngine, requests: list[Request], use_tqdm: bool) -> None:
    watched = any(request.watches_text for request in requests)
    generated, seen, num_ended = 0, engine.num_steps, -1
    with tqdm(total=len(requests), desc="Generating", unit=" requests", disable=not use_tqdm, dynamic_ncols=True) as bar:
        while requests:
            seen = step(engine, seen)
            if not watched and num_ended == engine.num_ended:
                continue  # no request ended: text is made once, at the end, unless it may end the request
            num_ended = engine.num_ended
            for request in requests:
                if request.watches_text or request.has_run:
                    request.advance()
                if request.is_finished and use_tqdm:
                    generated += sum(seq.num_output_tokens for seq in request.sequences)
                    bar.set_postfix_str(f"{generated / max(bar.format_dict['elapsed'], 1e-9):.0f} tokens/s", refresh=False)
                    bar.update()
            requests = [request for request in requests if not request.is_finished]


def _abort(engine: LLMEngine, requests: list[Request]) -> None:
    with engine.turn, ExitStack() as stack:  # which goes on when one of them raises
        for request in requests:
            stack.callback(request.abort)


def _report_failures(requests: list[Request]) -> None:
    """Raise when all of them failed; warn when some did."""
    errors = _errors(requests)
    if errors and len(errors) == len(requests):
        raise errors[0]
    if errors:
        logger.warning("%d of %d requests failed; their outputs have finish_reason 'error'. The first: %s", len(errors),
                       len(requests), errors[0])


def _errors(requests: list[Request]) -> list[BaseException]:
    """What failed, of each that did: of a step that raised, the exception itself."""
    return [request.error.__cause__ or request.error for request in requests if request.error is not None]

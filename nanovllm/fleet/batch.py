"""Batches on many engines: Ray Data maps an actor with an engine over the rows of a dataset. Needs the `fleet` extra.

    import ray
    from nanovllm.fleet.batch import generate
    answers = generate(ray.data.read_parquet("prompts/"), "path/to/model", replicas=4, num_gpus=1)
    answers.write_parquet("answers/")

Ray Data keeps the books: a row counts as done when the task that made it has handed over its block. An actor that dies is
started again and its unfinished blocks are computed again, so no row is lost or doubled; progress bars are Ray Data's own.
"""

import asyncio
import json
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from nanovllm.async_llm import AsyncLLM
from nanovllm.fleet.batch_file import BatchRow
from nanovllm.fleet.batch_run import answer, remaining, to_do
from nanovllm.fleet.extra import require
from nanovllm.outputs import RequestOutput
from nanovllm.sampling_params import SamplingParams
from nanovllm.server.app import create_app
from nanovllm.utils.checks import check

if TYPE_CHECKING:
    import ray.data

T = TypeVar("T")
Batch = dict[str, Any]  # a numpy array per column


class _EngineActor:
    """An `AsyncLLM` and an event loop of its own, so that several batches at a time can share the engine."""

    def __init__(self, model: str | None, settings: dict[str, Any]):
        self.llm = AsyncLLM(model, **settings)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class _Generate(_EngineActor):
    """Adds the answers, their finish reasons and the errors to a batch of prompts."""

    def __init__(self, model: str | None, settings: dict[str, Any], params: SamplingParams | None, prompt_column: str):
        super().__init__(model, settings)
        self._params, self._column = params, prompt_column

    def __call__(self, batch: Batch) -> Batch:
        outputs = self.wait_for(self._all(batch[self._column]))
        firsts = [out.outputs[0] if isinstance(out, RequestOutput) else None for out in outputs]
        return batch | {
            "generated_text": np.array([first and first.text for first in firsts], dtype=object),
            "finish_reason": np.array([first and first.finish_reason for first in firsts], dtype=object),
            "num_output_tokens": np.array([len(first.token_ids) if first else 0 for first in firsts]),
            "error": np.array([None if first else str(out) for first, out in zip(firsts, outputs)], dtype=object)}

    async def _all(self, prompts: Any) -> list[RequestOutput | BaseException]:
        outputs = await asyncio.gather(*(self._one(prompt) for prompt in prompts), return_exceptions=True)
        for out in outputs:
            if isinstance(out, BaseException) and not isinstance(out, ValueError):
                raise out  # not the row's fault: Ray Data decides whether the task runs again
        return outputs

    async def _one(self, prompt: Any) -> RequestOutput:
        return await self.llm.generate(prompt if isinstance(prompt, str) else [int(token) for token in prompt], self._params)


class _Answer(_EngineActor):
    """Turns a batch of requests in the OpenAI batch format into lines of the output file, by the server's own routes."""

    def __init__(self, model: str | None, settings: dict[str, Any]):
        super().__init__(model, settings)
        self._app = create_app(self.llm)

    def __call__(self, batch: Batch) -> Batch:
        rows = [BatchRow(str(custom_id), str(url), json.loads(body))
                for custom_id, url, body in zip(batch["custom_id"], batch["url"], batch["body"])]
        return {"line": np.array(self.wait_for(self._all(rows)), dtype=object)}

    async def _all(self, rows: list[BatchRow]) -> list[str]:
        return await asyncio.gather(*(answer(self._app, row) for row in rows))


def generate(dataset: "ray.data.Dataset", model: str | Path | None = None, sampling_params: SamplingParams | None = None, *,
             prompt_column: str = "prompt", replicas: int | tuple[int, int] = 1, num_gpus: int = 0, num_cpus: float = 1,
             batch_size: int = 64, keep_order: bool = False, **settings: Any) -> "ray.data.Dataset":
    """A dataset with the columns generated_text, finish_reason, num_output_tokens and error added to every row.

    dataset: any of Ray Data's (`ray.data.read_parquet`, `read_json`, ...), with a column of texts or of token id lists. It
        is read, and answered, as the result is consumed. model, settings: as for `LLM`, found alike on every node.
    replicas: engines, one actor each; (least, most) lets Ray Data scale between them. num_gpus: GPUs per engine; over 1 the
        model is split over them (tensor parallel). num_cpus: CPU cores that Ray reserves per engine.
    batch_size: rows that travel together. An engine works on two batches at a time, so the end of one overlaps with the
        beginning of the next.
    keep_order: rows come out in the order in which they went in, at the price of waiting for the slowest.

    A prompt that cannot be served has None as its text and the reason in `error`. Raises ValueError for a bad setting and
    where Ray is not installed.
    """
    require("fleet", "nanovllm.fleet.batch.generate", "ray")
    mapped = _map(dataset, _Generate, (_name(model), _engine_settings(num_gpus, settings), sampling_params, prompt_column),
                  replicas, num_gpus, num_cpus, batch_size)
    if keep_order:
        mapped.context.execution_options.preserve_order = True
    return mapped


def run_batch_on_ray(source: str | Path, target: str | Path, model: str | Path | None = None, *,
                     replicas: int | tuple[int, int] = 1, num_gpus: int = 0, num_cpus: float = 1, batch_size: int = 64,
                     keep_order: bool = False, **settings: Any) -> None:
    """`nanovllm.fleet.batch_run.run_batch` on a Ray cluster; arguments as for `generate`. Both files lie on this machine.

    Connects to the cluster that the environment names (RAY_ADDRESS), or starts Ray here. A run that was interrupted goes on
    where its output file ends.
    """
    require("fleet", "--ray", "ray")
    import ray.data

    from nanovllm.fleet.cluster import connect, cores_for, least_and_most

    _, most = least_and_most(replicas)
    total, done = to_do(source, target)
    print(f"{total} requests, {done} answered before", flush=True)
    if done == total:
        return
    connect(num_cpus=cores_for(most))
    rows = ray.data.from_items([{"custom_id": row.custom_id, "url": row.url, "body": json.dumps(row.body)}
                                for row in remaining(source, target)])
    mapped = _map(rows, _Answer, (_name(model), _engine_settings(num_gpus, settings)), replicas, num_gpus, num_cpus, batch_size)
    mapped.context.execution_options.preserve_order = keep_order
    with open(target, "a", encoding="utf-8") as file:
        for answered in mapped.iter_rows():
            file.write(answered["line"] + "\n")
            file.flush()


def _map(dataset: "ray.data.Dataset", actor: type, arguments: tuple[Any, ...], replicas: int | tuple[int, int], num_gpus: int,
         num_cpus: float, batch_size: int) -> "ray.data.Dataset":
    import ray.data

    from nanovllm.fleet.cluster import least_and_most

    least, most = least_and_most(replicas)
    check(batch_size >= 1, "batch_size", batch_size, "1 or more", "send at least one row at a time")
    pool = ray.data.ActorPoolStrategy(min_size=least, max_size=most, max_concurrent_calls_per_actor=2)
    return dataset.map_batches(actor, fn_constructor_args=arguments, batch_size=batch_size, compute=pool, num_cpus=num_cpus,
                               num_gpus=num_gpus or None)


def _engine_settings(num_gpus: int, settings: dict[str, Any]) -> dict[str, Any]:
    """An engine without GPUs runs on the CPU; one with several is split over them."""
    if num_gpus > 1:
        settings = {"tensor_parallel_size": num_gpus} | settings
    return settings if num_gpus else {"device": "cpu"} | settings


def _name(model: str | Path | None) -> str | None:
    return None if model is None else str(model)

"""The fleet on a real Ray: replicas that are killed, clients that disconnect, and a rolling restart.

One Ray node for all of it, with two engines: a second node starts six more processes, and shows nothing of ours that a second
engine does not. Whoever waits here waits for a condition; the machine may be busy.
"""

import json
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="needs the extra 'fleet'")
import httpx  # noqa: E402

from nanovllm import SamplingParams  # noqa: E402
from nanovllm.fleet.batch import generate, run_batch_on_ray  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]
SMALL = {"num_kvcache_blocks": 128}
PARAMS = SamplingParams(temperature=0, max_tokens=6)


def kill_an_engine_once(marker: Path):
    """A prompt that, when an engine's process reads it for the first time, ends that process."""
    from nanovllm.fleet import batch

    class Dying(batch._Generate):
        async def _one(self, prompt):
            import os
            if prompt == "Story 13" and not os.path.exists(marker):
                open(marker, "w", encoding="utf-8").close()
                os._exit(1)
            return await super()._one(prompt)

    return Dying


def test_a_killed_engine_loses_and_doubles_no_row_and_the_order_is_kept(tmp_path):
    from nanovllm.fleet import batch

    marker = tmp_path / "killed"
    rows = [{"id": i, "prompt": f"Story {i}"} for i in range(32)] + [{"id": 32, "prompt": ""}]
    dataset = ray.data.from_items(rows, override_num_blocks=4)
    dying = batch._map(dataset, kill_an_engine_once(marker), (None, batch._engine_settings(0, SMALL), PARAMS, "prompt"),
                       replicas=2, num_gpus=0, num_cpus=0.5, batch_size=4)
    dying.context.execution_options.preserve_order = True
    answers = dying.take_all()
    assert marker.exists()
    assert [a["id"] for a in answers] == list(range(33))
    assert all(a["num_output_tokens"] == 6 and a["error"] is None for a in answers[:32])
    assert answers[32]["generated_text"] is None and "at least one character" in answers[32]["error"]


def test_bad_settings_are_named_before_anything_starts():
    dataset = ray.data.from_items([{"prompt": "A fox"}])
    for wrong in ({"replicas": (2, 1)}, {"replicas": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            generate(dataset, **wrong)


def test_a_batch_file_on_ray_equals_the_one_in_process(tmp_path):
    from nanovllm import AsyncLLM
    from nanovllm.fleet.batch_run import run_batch

    source, here, there = (tmp_path / name for name in ("in.jsonl", "here.jsonl", "there.jsonl"))
    source.write_text("".join(json.dumps({"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": {
        "prompt": f"Story {i}" if i else [5, 6, 7], "temperature": 0, "max_tokens": 5 if i != 3 else -1}}) + "\n"
        for i in range(12)),
        encoding="utf-8")
    run_batch(source, here, AsyncLLM(device="cpu"), keep_order=True, progress=False)
    first = here.read_text(encoding="utf-8").splitlines()[:4]
    there.write_text("\n".join(first) + "\n", encoding="utf-8")  # an earlier run's
    run_batch_on_ray(source, there, replicas=1, batch_size=4, keep_order=True, **SMALL)

    def told(path):
        answers = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(a["custom_id"], a["response"]["status_code"], a["response"]["body"].get("choices")) for a in answers]

    assert told(there) == told(here) and there.read_text(encoding="utf-8").splitlines()[:4] == first


def test_room_for_more_engines_is_counted_node_by_node(cluster):
    """A rolling restart that starts new replicas where there is no room for them would wait for ever."""
    from nanovllm.fleet.cluster import cores_for, num_engines_that_fit

    wait_until(lambda: num_engines_that_fit(1, 0) == 4)  # what ran before has given its cores back
    assert num_engines_that_fit(3, 0) == 1 and num_engines_that_fit(0.5, 0) == 8
    assert num_engines_that_fit(5, 0) == num_engines_that_fit(1, 1) == 0  # too large; no GPUs
    assert cores_for(100) == 101


@pytest.fixture(scope="module")
def address(cluster):
    from ray import serve

    from nanovllm.fleet.serve import build, start
    from nanovllm.server.run import bind

    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    yield start(build(replicas=2, num_cpus=0.5, api_key="secret", max_body_bytes=100_000, shutdown_seconds=30, **SMALL),
                port=port)
    serve.shutdown()


def ask(address: str, text: str, key: str = "secret", **body: object) -> httpx.Response:
    messages = [{"role": "user", "content": text}]
    return httpx.post(f"{address}/chat/completions", json={"messages": messages, "max_tokens": 4, "temperature": 0} | body,
                      headers={"Authorization": f"Bearer {key}"}, timeout=60)


def stream(address: str, num_tokens: int):
    body = {"prompt": "A fox", "max_tokens": num_tokens, "min_tokens": num_tokens, "temperature": 0, "stream": True}
    return httpx.stream("POST", f"{address}/completions", json=body, headers={"Authorization": "Bearer secret"}, timeout=60)


def engine(name: str):
    return ray.get_actor(f"SERVE_REPLICA::nanovllm#Engine#{name}", namespace="serve")


def wait_until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def unfinished() -> int:
    """Of all engines: each is asked often enough that every replica has answered."""
    from ray import serve
    handle = serve.get_deployment_handle("Engine", app_name="nanovllm")
    return sum(handle.num_unfinished.remote().result(timeout_s=30) for _ in range(6))


def test_answers_come_from_replicas_and_refusals_are_the_servers_own(address):
    answer = ask(address, "Hi")
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 4
    assert answer.headers["x-nanovllm-replica"] and len(answer.headers.get_list("x-request-id")) == 1
    assert ask(address, "Hi", key="wrong").status_code == 401
    assert ask(address, "Hi", temperature=-1).status_code == 400
    assert ask(address, "x" * 200_000).status_code == 413


def test_one_beginning_goes_to_one_replica_and_others_are_spread(address):
    systems = [f"You are number {i}. " * 12 for i in range(4)]
    where = {text: Counter(ask(address, text + f" Question {i}").headers["x-nanovllm-replica"] for i in range(4))
             for text in systems}
    assert all(len(names) == 1 for names in where.values()), where
    assert len({name for names in where.values() for name in names}) == 2
    hits = ask(address, systems[0] + " Once more").json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert hits >= 32


def test_a_client_that_disconnects_ends_its_request_in_the_replica(address):
    def aborted() -> bool:
        exposed = httpx.get(f"{address.removesuffix('/v1')}/metrics", headers={"Authorization": "Bearer secret"}).text
        return any("abort" in line and not line.endswith(" 0.0") for line in exposed.splitlines())

    assert not any(aborted() for _ in range(4))
    with stream(address, 1800) as response:
        next(response.iter_lines())
    wait_until(aborted)  # each replica counts its own, and is asked in turn
    assert unfinished() == 0


def test_a_replica_killed_in_mid_stream_gives_an_error_event_and_the_next_request_an_answer(address):
    with stream(address, 1500) as response:
        lines = response.iter_lines()
        for _ in range(10):
            next(lines)
        ray.kill(engine(response.headers["x-nanovllm-replica"]))
        rest = [line.removeprefix("data: ") for line in lines if line]
    assert rest[-1] == "[DONE]"
    assert json.loads(rest[-2])["error"]["message"] == "The replica that served this stream ended; send the request again."
    assert all("text" in json.loads(event)["choices"][0] for event in rest[:-2])
    assert ask(address, "Hi").status_code == 200


def test_a_rolling_restart_loses_no_request_and_scales_with_the_queue(address):
    """Requests go on all the time while every replica is replaced; the new ones scale from one to two under load."""
    from nanovllm.fleet.serve import build, start

    before, statuses, ended = ask(address, "Hi").headers["x-nanovllm-replica"], [], threading.Event()

    def keep_asking(number: int) -> None:
        while not ended.is_set():
            answer = ask(address, f"Question {number}", max_tokens=24, min_tokens=24)
            statuses.append((answer.status_code, answer.headers.get("x-nanovllm-replica")))

    threads = [threading.Thread(target=keep_asking, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    try:
        port = int(address.split(":")[2].split("/")[0])
        start(build(replicas=(1, 2), target_requests=1, upscale_delay_s=0.5, num_cpus=0.5, api_key="secret",
                    router="least_loaded", **SMALL), port=port)
        new = len(statuses)
        wait_until(lambda: len({name for _, name in statuses[new:]} - {before}) >= 2, 60)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert Counter(status for status, _ in statuses).keys() == {200}

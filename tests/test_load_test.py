"""The load test: when requests leave, what is counted of them, and what it says of a server that misbehaves.

Times are checked on a clock that only this test moves, or as lower bounds that the server itself sets.
"""

import asyncio
import contextlib
import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("aiohttp", reason="needs the extra 'dev'")

from benchmarks import serve
from benchmarks.load_client import LoadClient, Outcome, Request
from benchmarks.load_driver import closed_loop, open_loop
from benchmarks.load_report import LoadReport, parse_goodput
from benchmarks.load_requests import requests
from benchmarks.serve import Quiet
from nanovllm.fleet.arrivals import TraceFile, Traffic

# ---- when requests leave


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self):
        super().__init__()
        self.now, select = 0.0, self._selector.select

        def at_once(timeout):
            assert timeout is not None, "everybody waits for ever"
            self.now += max(0.0, timeout)
            return select(0)

        self._selector.select = at_once

    def time(self):
        return self.now


def drive(make):
    """Run `make(clock)`, a coroutine, in virtual time."""
    with contextlib.closing(VirtualLoop()) as loop:
        return loop.run_until_complete(make(loop.time))


class OneAtATime:
    """A server that works `seconds` on each request, and lets the others wait."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.lock, self.under_way, self.most = clock, seconds, asyncio.Lock(), 0, 0

    async def send(self, request, outcome, began):
        outcome.sent = self.clock() - began
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        async with self.lock:
            await asyncio.sleep(self.seconds)
        self.under_way -= 1
        outcome.end = self.clock() - began
        outcome.token_times, outcome.output_tokens = [outcome.end], 1


def planned(*arrivals):
    return [Request(arrival, b"{}") for arrival in arrivals]


def test_a_slow_server_does_not_slow_the_arrivals_and_latency_counts_from_the_plan():
    outcomes = drive(lambda clock: open_loop(planned(0, 1, 2, 3), OneAtATime(clock, 10).send, Quiet(), clock))
    assert [o.sent for o in outcomes] == [0, 1, 2, 3]
    assert [o.latency for o in outcomes] == pytest.approx([10, 19, 28, 37])
    assert LoadReport(outcomes).most_in_flight == 4


def test_what_the_generator_itself_loses_is_part_of_the_latency_and_said():
    async def run(clock):
        server, loop = OneAtATime(clock, 0.5), asyncio.get_running_loop()

        async def send(request, outcome, began):
            if request.arrival == 1:
                loop.now += 5  # as if this program had been held up for five seconds
            await server.send(request, outcome, began)
        return await open_loop(planned(0, 1, 2), send, Quiet(), clock)

    outcomes = drive(run)
    assert outcomes[2].sent == pytest.approx(6) and outcomes[2].latency >= 4.5
    report = LoadReport(outcomes)
    assert report.figures()["sent late p99 ms"] > 3900 and "This program sent its requests late" in str(report)


@pytest.mark.parametrize("concurrency", [1, 3, 50])
def test_a_closed_loop_keeps_so_many_under_way(concurrency):
    async def run(clock):
        server = OneAtATime(clock, 2)
        return server, await closed_loop(planned(*[99.0] * 9), server.send, Quiet(), concurrency, clock)

    server, outcomes = drive(run)
    assert server.most == min(9, concurrency) == LoadReport(outcomes).most_in_flight and len(outcomes) == 9
    assert [o.arrival for o in outcomes] == pytest.approx([2.0 * max(0, i - concurrency + 1) for i in range(9)])


@pytest.mark.parametrize("way", [open_loop, lambda *args: closed_loop(*args[:3], 2, args[3])], ids=["open", "closed"])
def test_a_test_that_is_interrupted_keeps_what_had_ended(way):
    async def run(clock):
        task = asyncio.ensure_future(way(planned(*range(100)), OneAtATime(clock, 1).send, Quiet(), clock))
        await asyncio.sleep(4.5)
        task.cancel()
        return await task

    assert 3 <= len(drive(run)) <= 5


def test_an_exception_of_ours_fails_one_request():
    async def broken(request, outcome, began):
        outcome.sent = outcome.end = 0
        raise KeyError("x") if request.arrival == 1 else asyncio.TimeoutError

    outcomes = drive(lambda clock: open_loop(planned(0, 1), broken, Quiet(), clock))
    assert [o.error for o in outcomes] == ["TimeoutError: ", "KeyError: 'x'"]


# ---- what is counted


def answered(arrival, first, gaps, tokens=None):
    times = [arrival + first]
    for gap in gaps:
        times.append(times[-1] + gap)
    return Outcome(arrival, arrival, times[-1], times, prompt_tokens=10, output_tokens=tokens or len(times))


def test_latencies_throughput_and_goodput_of_known_times():
    outcomes = [answered(0, 0.1, [0.02] * 4), answered(1, 0.3, [0.02] * 4), answered(2, 0.1, [0.02, 0.02, 0.2, 0.02]),
                answered(3, 0.1, []), Outcome(4, 4, 10, error="HTTP 429: full")]
    report = LoadReport(outcomes, {"ttft": 200, "itl": 50})
    found = report.figures()
    assert found["requests"] == 5 and found["failed"] == 1 and found["seconds"] == 10
    assert found["completed req/s"] == pytest.approx(0.4) and found["output tok/s"] == pytest.approx(1.6)
    assert report.num_good == 2 and found["goodput req/s"] == pytest.approx(0.2) and found["good %"] == 40
    assert found["ttft p50 ms"] == pytest.approx(100) and found["ttft mean ms"] == pytest.approx(150)
    assert len(report.milliseconds("itl")) == 12 and found["itl p50 ms"] == pytest.approx(20)
    assert sorted(report.milliseconds("tpot")) == pytest.approx([20, 20, 65])  # an answer of one token has none
    assert found["e2el p99 ms"] == pytest.approx(100 * (1 + 2.6) + 18.4, rel=0.2)
    assert LoadReport(outcomes, {"e2el": 190}).num_good == 2 and LoadReport(outcomes, {"tpot": 30}).num_good == 3
    assert report.errors == {"HTTP 429: full": 1} and "1 failed: HTTP 429: full" in str(report)
    assert list(report.columns["arrival"]) == [0, 1, 2, 3]


def test_several_tokens_in_a_chunk_count_in_the_time_per_token_and_not_as_gaps():
    outcome = answered(0, 0.1, [0.3], tokens=7)
    assert outcome.tpot == pytest.approx(0.05) and len(outcome.gaps) == 1


def test_nothing_answered_gives_figures_without_latencies():
    found = LoadReport([Outcome(0, 0, 1, error="x")]).figures()
    assert found["completed req/s"] == 0 and not [name for name in found if name.startswith(("ttft", "itl", "tpot", "e2el"))]
    assert all(math.isfinite(value) for value in found.values()) and str(LoadReport([]))


@pytest.mark.parametrize(("limits", "message"), [
    (["ttfb:200"], "ttfb:200.*one of ttft, tpot, itl, e2el"), (["ttft"], "above 0"), (["ttft:fast"], "above 0"),
    (["itl:1", "itl:2"], "one limit"), (["itl:-1"], "above 0 milli"), (["itl:inf"], "above 0"), (["itl:nan"], "above 0")])
def test_a_limit_that_cannot_be_meant_is_named(limits, message):
    with pytest.raises(ValueError, match=message):
        parse_goodput(limits)


# ---- what is asked


def bodies(made):
    return [json.loads(request.body) for request in made]


def test_prompts_share_what_their_arrivals_share_and_nothing_else():
    chats = Traffic(rate=1, num_conversations=40, system_prompts=2, system_tokens=30, prompt_tokens=20, output_tokens=8)
    asked = [body["prompt"] for body in bodies(requests(chats, "completions", "m"))]
    assert [len(prompt) for prompt in asked] == [len(arrival.prompt_token_ids) for arrival in chats]
    systems = {tuple(prompt[:30]) for prompt in asked}
    assert len(systems) == 2 and len({tuple(prompt[:33]) for prompt in asked}) == 40
    assert all(300 <= token < 2000 for prompt in asked for token in prompt)
    again, other = (bodies(requests(chats, "completions", "m", seed=seed)) for seed in (0, 1))
    assert [body["prompt"] for body in again] == asked and other[0]["prompt"][:8] != asked[0][:8]


def test_chats_hold_the_shared_part_as_their_system_prompt(tmp_path):
    chats = Traffic(rate=1, num_conversations=9, system_prompts=1, system_tokens=30, prompt_tokens=20, output_tokens=8)
    made = bodies(requests(chats, "chat", "m", ignore_eos=False, extra_body={"temperature": 0.5}))
    assert [m["role"] for m in made[0]["messages"]] == ["system", "user"]
    assert len({body["messages"][0]["content"] for body in made}) == 1 and len(made[0]["messages"][0]["content"].split()) == 30
    assert all("ignore_eos" not in body and body["temperature"] == 0.5 for body in made)
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 512, "output_length": 3, "hash_ids": [7]}\n', encoding="utf-8")
    (body,) = bodies(requests(TraceFile(trace), "chat", "m"))
    assert [m["role"] for m in body["messages"]] == ["user"] and body["max_tokens"] == 3


# ---- a server that is known


def chunk(text, **more):
    return {"choices": [{"index": 0, "text": text}]} | more


USAGE = {"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}}}


class Stub(BaseHTTPRequestHandler):
    """Answers as its server's `script` says: (seconds to wait, what to send then); bytes are sent as they are."""

    protocol_version = "HTTP/1.0"  # the end of the connection is the end of the answer

    def log_message(self, *_): ...

    def do_GET(self):
        self._begin(200, "application/json")
        self.wfile.write(json.dumps({"data": [{"id": "stub"}]}).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((body, self.headers.get("Authorization")))
        status, script = self.server.script
        self._begin(status, "text/event-stream")
        with contextlib.suppress(OSError):
            for seconds, what in script:
                self.server.released.wait(seconds)
                self.wfile.write(what if isinstance(what, bytes) else f"data: {json.dumps(what)}\n\n".encode())

    def _begin(self, status, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()


DONE = (0, b"data: [DONE]\n\n")
GOOD = (200, [(0.05, chunk("a")), (0.03, chunk("b")), (0.03, chunk("c")), (0, USAGE), DONE])


@pytest.fixture
def stub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    server.script, server.asked, server.released = GOOD, [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def send(url, endpoint="completions", timeout=60.0):
    async def run():
        outcome = Outcome(0)
        async with LoadClient(url, endpoint, timeout=timeout) as client:
            await client.send(Request(0, b"{}"), outcome, time.perf_counter())
        return outcome

    return asyncio.run(run())


def test_a_stream_is_timed_no_shorter_than_the_server_took_and_counted_as_it_says(stub):
    outcome = send(stub.url)
    assert outcome.error is None and len(outcome.token_times) == 3
    assert outcome.ttft >= 0.05 and outcome.latency >= 0.11 and outcome.end >= outcome.token_times[-1] >= outcome.sent
    assert (outcome.prompt_tokens, outcome.cached_tokens, outcome.output_tokens) == (12, 8, 3)


def test_chunks_without_text_are_no_tokens_and_events_may_come_in_pieces(stub):
    def delta(**what):
        return {"choices": [{"index": 0, "delta": what}]}

    pieces = [(0, f"data: {json.dumps(delta(content='a'))}"[:20].encode()),
              (0.02, f"data: {json.dumps(delta(content='a'))}\n\n"[20:].encode())]
    stub.script = (200, [(0, delta(role="assistant", content="")), (0, b": a comment\n\n"), *pieces,
                         (0, delta(reasoning_content="hm")), (0, delta(tool_calls=[{"index": 0}])), (0, delta()), DONE])
    outcome = send(stub.url, "chat/completions")
    assert outcome.error is None and len(outcome.token_times) == 3 == outcome.output_tokens  # no usage: chunks are counted


@pytest.mark.parametrize(("script", "error"), [
    ((429, [(0, b'{"error": {"message": "The queue is full."}}')]), "HTTP 429: The queue is full."),
    ((502, [(0, b"<html>" + b"x" * 500)]), "HTTP 502: <html>" + "x" * 114 + "…"),
    ((200, [(0, chunk("a")), (0, {"error": {"message": "The replica ended."}}), DONE]), "error event: The replica ended."),
    ((200, [(0, chunk("a"))]), "the stream ended before [DONE]"),
    ((200, [(0, b"data: {broken\n\n"), DONE]), "an event that is no JSON object"),
    ((200, [(0, b"data: [1]\n\n"), DONE]), "an event that is no JSON object"),
    ((200, [(0, USAGE), DONE]), "an answer without text"),
    ((200, [(0, chunk("a")), (600, chunk("b"))]), "no end after 0.3 s"),
    ((200, [(600, chunk("a"))]), "no end after 0.3 s"),
])
def test_every_way_to_fail_has_its_name(stub, script, error):
    stub.script = script
    outcome = send(stub.url, timeout=0.3 if "0.3" in error else 60)
    assert outcome.error == error and outcome.end >= outcome.sent


def test_a_server_that_is_not_there_or_hangs_up():
    with ThreadingHTTPServer(("127.0.0.1", 0), Stub) as gone:
        url = f"http://127.0.0.1:{gone.server_address[1]}/v1"
    assert send(url).error == "connection refused"

    async def hangs_up(reader, writer):
        await reader.readline()
        writer.transport.abort()

    async def run():
        server = await asyncio.start_server(hangs_up, "127.0.0.1", 0)
        outcome, port = Outcome(0), server.sockets[0].getsockname()[1]
        async with server, LoadClient(f"http://127.0.0.1:{port}", "completions", timeout=60) as client:
            await client.send(Request(0, b"{}"), outcome, time.perf_counter())
        return outcome

    assert asyncio.run(run()).error.startswith("connection lost")


# ---- the command


def test_the_whole_command_writes_what_it_measured_and_no_secret(stub, tmp_path, capsys, monkeypatch):
    file, picture = tmp_path / "load.json", tmp_path / "load.png"
    serve.main(["--url", stub.url, "--rate", "200", "--burst", "3", "--requests", "12", "--goodput", "e2el:60000", "ttft:0.001",
                "--json", str(file), "--plot", str(picture), "--save-detailed", "--api-key", "very-secret",
                "--extra-body", '{"temperature": 0.5}'])
    assert len(stub.asked) == 14 and {key for _, key in stub.asked} == {"Bearer very-secret"}  # two warm up
    assert {body["temperature"] for body, _ in stub.asked} == {0.5} and {body["model"] for body, _ in stub.asked} == {"stub"}
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["figures"]["requests"] == 12 and found["figures"]["output tokens"] == 36 and found["figures"]["good %"] == 0
    assert found["flags"]["rate"] == 200 and found["device"] and found["commit"] and found["date"]
    assert len(found["outcomes"]) == 12 and "very-secret" not in file.read_text(encoding="utf-8")
    assert picture.stat().st_size > 1000 and picture.with_stem("load-dark").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "stub:" in printed and "time to first token (ttft)" in printed and "goodput req/s" in printed


def test_failures_are_shown_and_a_test_without_an_answer_fails(stub, capsys):
    stub.script = (200, [(0, chunk("a"))])
    with pytest.raises(SystemExit, match="No request was answered"):
        serve.main(["--url", stub.url, "--concurrency", "2", "--requests", "3", "--warmup", "0"])
    assert "3 failed: the stream ended before [DONE]" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        serve.main(["--url", stub.url, "--requests", "3"])
    assert stopped.value.code == 2 and "the stream ended before [DONE]" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "message"), [
    (["--rate", "0"], "rate=0.0: must be above 0"), (["--rate", "nan"], "rate=nan"), (["--concurrency", "0"], "concurrency=0"),
    (["--rate", "3", "--concurrency", "2"], "one of --rate, --concurrency and --trace"),
    (["--trace", "absent"], "must be a file"),
    (["--requests", "0"], "requests=0"), (["--timeout", "0"], "timeout=0.0"), (["--url", "localhost:8000"], "an http address"),
    (["--url", "http://x/v1", "--server-args", "--seed 1"], "used without --url"), (["--goodput", "ttft"], "goodput='ttft'"),
    (["--extra-body", "[1]"], "not a JSON object"), (["--extra-body", "{"], "not JSON"), (["--burst", "0"], "burst=0.0"),
    (["--concurrency", "2", "--burst", "4"], "used with --rate"), (["--json", "absent/load.json"], "in a folder that exists"),
    (["--prompt-tokens", "0"], "prompt_tokens=0"), (["--url", "http://127.0.0.1:9/v1"], "the address of a server that runs")])
def test_flags_that_cannot_be_meant_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        serve.main([*flags] if "--url" in flags else [*flags, "--url", "http://127.0.0.1:9/v1"])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_our_own_server_is_started_measured_and_ended(tmp_path, capsys):
    file, trace = tmp_path / "load.json", tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps({"timestamp": 20 * i, "input_length": 40 + i, "output_length": 4}) + "\n"
                             for i in range(8)), encoding="utf-8")
    serve.main(["--trace", str(trace), "--json", str(file), "--server-args", "--device cpu --max-num-seqs 4"])
    found = json.loads(file.read_text(encoding="utf-8"))["figures"]
    assert found["failed"] == 0 and found["output tokens"] == 32 and found["prompt tokens"] == sum(range(40, 48))
    with pytest.raises(SystemExit):
        serve.main(["--model", str(tmp_path / "absent"), "--requests", "2"])
    assert "absent" in capsys.readouterr().err

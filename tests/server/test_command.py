"""The command and its flags: what cannot be meant is refused before a model is loaded, what is changed is said."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import psutil
import pytest

from nanovllm.__main__ import main
from nanovllm.server import command
from nanovllm.server.run import hosts_to_allow

from .conftest import http

SMALL = ("--port", "0", "--device", "cpu", "--num-kvcache-blocks", "200", "--log-level", "warning")


@contextmanager
def serving(*flags, **environment):
    """(process, lines printed before it listened, its address)"""
    ours = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, by us and by what we start
    try:
        process = subprocess.Popen([sys.executable, "-m", "nanovllm", "serve", *SMALL, *flags], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, env=os.environ | environment, encoding="utf-8")
    finally:
        signal.signal(signal.SIGHUP, ours)
    lines = []
    try:
        while not (line := process.stdout.readline()).startswith("Listening on "):
            assert line, process.stderr.read()
            lines.append(line)
        yield process, lines, line.split()[-1].removesuffix("/v1")
    finally:
        process.kill()
        process.communicate()


def end(process, number=signal.SIGINT) -> tuple[int, str]:
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out + err


@pytest.mark.parametrize("flags, says", [
    (("--port", "99999"), "port=99999: must be from 0 to 65535"), (("--port", "-1"), "port=-1"),
    (("--port", "65536"), "port=65536"), (("--port", "x"), "invalid int"), (("--log-level", "loud"), "invalid choice"),
    (("--shutdown-seconds", "inf"), "shutdown_seconds=inf"), (("--shutdown-seconds", "nan"), "shutdown_seconds=nan"),
    (("--shutdown-seconds", "-1"), "shutdown_seconds=-1"), (("--shutdown-seconds", "1e30"), "shutdown_seconds=1e+30"),
    (("--receive-seconds", "0"), "receive_seconds=0"), (("--receive-seconds", "inf"), "receive_seconds=inf"),
    (("--served-model-name", ""), "served_model_name=''"), (("--served-model-name", "  "), "served_model_name='  '"),
    (("--host", ""), "host=''"), (("--host", "no such host"), "cannot listen there"),
    (("--max-stored-responses", "-1"), "max_stored_responses=-1"), (("--reasoning-parser", "x"), "invalid choice"),
    (("--speculative-config", "{'method': 'ngram'}"), "is not JSON"), (("--speculative-config", "[" * 99_999), "is not JSON"),
    (("--speculative-config", '{"num_speculative_tokens": ' + "9" * 5000 + "}"), "is not JSON (Exceeds the limit"),
    (("--max-body-bytes", "0"), "max_body_bytes=0"), (("--generation-config", "none"), "invalid choice"),
    (("--api-key", ""), "api_key=''"), (("--api-key", "secret\n"), "line break"), (("--api-key", "a b"), "without spaces"),
])
def test_flags_that_cannot_be_meant(capsys, flags, says):
    with pytest.raises(SystemExit) as caught:
        main(["serve", "/no/such/model", *flags])
    message = capsys.readouterr().err
    assert caught.value.code == 2 and says in message and "secret" not in message


@pytest.mark.parametrize("flags, says", [
    (("--max-queue", "0"), "max_queued=0"), (("--max-model-len", "0"), "max_model_len=0"),
    (("--max-num-seqs", "-1"), "max_num_seqs=-1"),
])
def test_settings_of_the_engine_that_cannot_be_meant(capsys, flags, says):
    with pytest.raises(SystemExit):
        main(["serve", *SMALL, *flags])
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("line, code, says", [
    ("serve --port 0 --device cpu --num-kvcache-blocks 100000000", 1, "lower num_kvcache_blocks"),
    ("batch {requests} {folder}/none/out.jsonl", 1, "none/out.jsonl: No such file or directory; name another file or folder"),
    ("batch {requests} {folder}", 1, "Is a directory"),
    ("simulate --requests 5 --perfetto {folder}/none/x.json", 2, "none/x.json': must be a file in a folder that exists"),
    ("simulate --requests 5 --results {requests}", 2, "requests.jsonl: not valid JSON"),
    ("simulate --requests 5 --results {empty}", 2, "in the results file"),
])
def test_what_the_machine_does_not_give_is_told_in_a_line(capsys, tmp_path, line, code, says):
    """Of memory and files: the command, the fault and the remedy, and no traceback."""
    requests, empty = tmp_path / "requests.jsonl", tmp_path / "empty.json"
    body = '{"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"model": "offline", "prompt": "A"}}'
    requests.write_text(f"{body}\n{body.replace('1', '2', 1)}\n", encoding="utf-8")
    empty.write_text("{}", encoding="utf-8")
    with pytest.raises(SystemExit) as caught:
        main(line.format(requests=requests, folder=tmp_path, empty=empty).split())
    message = capsys.readouterr().err
    assert caught.value.code == code and "nanovllm: error: " in message and says in message


def test_hosts_that_are_allowed_by_default():
    assert hosts_to_allow("127.0.0.1", "127.0.0.1", ()) == ("localhost", "127.0.0.1")
    assert hosts_to_allow("::1", "localhost", ()) == ("localhost", "localhost")
    assert hosts_to_allow("0.0.0.0", "0.0.0.0", ()) is None and hosts_to_allow("10.0.0.5", "box", ()) is None
    assert hosts_to_allow("0.0.0.0", "0.0.0.0", ("box.lan",)) == ("localhost", "0.0.0.0", "box.lan")


def test_what_is_said_at_the_start_and_what_the_options_do():
    flags = ("--max-model-len", "999999", "--generation-config", "vllm", "--allow-origin", "http://a.example",
             "--allow-host", "b.example", "--public-metrics")
    with serving(*flags, **{command.KEY_VARIABLE: "sesame"}) as (process, lines, url):
        text = "".join(lines)
        assert "max_model_len is 2048 and not 999999" in text and "temperature" not in text
        key = {"Authorization": "Bearer sesame"}
        assert http.get(f"{url}/metrics").status_code == 200 and http.get(f"{url}/v1/models").status_code == 401
        assert http.get(f"{url}/v1/models", headers=key | {"Host": "b.example"}).status_code == 200
        assert http.get(f"{url}/v1/models", headers=key | {"Host": "evil.example"}).status_code == 403
        reply = http.get(f"{url}/v1/models", headers=key | {"Origin": "http://a.example"})
        assert reply.headers["access-control-allow-origin"] == "http://a.example"
        assert end(process, signal.SIGTERM) == (-signal.SIGTERM, "")


def test_a_second_interrupt_and_odd_signals_leave_no_traceback():
    body = {"prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with serving("--shutdown-seconds", "30") as (process, _, url), httpx.stream(
            "POST", f"{url}/v1/completions", json=body, timeout=60) as stream:
        pieces = stream.iter_bytes()
        next(pieces)
        process.send_signal(signal.SIGINT)
        until = time.monotonic() + 30
        with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)):  # it has heard: two signals at once are one
            while time.monotonic() < until:
                httpx.get(f"{url}/ping", timeout=30)
        assert process.poll() is None  # the request that runs may end
        began = time.monotonic()
        code, said = end(process)
        assert code == 0 and "Traceback" not in said and time.monotonic() - began < 20
        assert b"closed" in b"".join(pieces)  # the client is told
    with serving() as (process, _, url):
        code, said = end(process, signal.SIGHUP)  # a terminal that was closed
        assert code == -signal.SIGHUP and "Traceback" not in said


def test_an_interrupt_while_the_model_is_loaded_leaves_no_traceback():
    process = subprocess.Popen([sys.executable, "-c", "import os, signal, threading\nfrom nanovllm.server import run\n"
                                "run.AsyncLLM = lambda *a, **k: signal.raise_signal(signal.SIGINT)\n"
                                "from nanovllm.__main__ import main\nmain(['serve', '--port', '0'])"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.slow
@pytest.mark.unmeasured
def test_memory_after_a_storm_is_what_it_was():
    """Large, long, odd and abandoned requests, by the hundred: afterwards the process is as large as before, within 5 %."""
    long = "1" * 4_100_000
    odd = [{"prompt": long}, {"prompt": ["a" * 20_000] * 100}, {"prompt": [7] * 500_000}, {"prompt": "a", "stop": [long]},
           {"prompt": "a", "stop": [str(i) for i in range(400_000)]}, {"prompt": "a", "model": long}, {"prompt": "a", long: 1},
           {"prompt": "a", "n": 10**9}, {"prompt": "a", "logit_bias": {str(i): 1 for i in range(200_000)}},
           {"prompt": "Once", "n": 9, "max_tokens": 9, "temperature": 1}, {"prompt": "Once", "logprobs": 20, "max_tokens": 9}]

    with serving() as (process, _, url):
        def storm(rounds):
            with httpx.Client(timeout=120) as client:
                for i in range(rounds):
                    for body in odd:
                        client.post(f"{url}/v1/completions", json=body, headers={"X-Request-Id": f"r{i}"})
                    client.post(f"{url}/v1/chat/completions", json={"messages": [{"role": "user", "content": long}]})
                    client.post(f"{url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}] * 50_000})
                    client.post(f"{url}/v1/completions", content=b"[" * 100_000, headers={"Content-Type": "application/json"})
                    client.post(f"{url}/tokenize", json={"prompt": long})
                    client.get(f"{url}/v1/models/{'x' * 10_000}{i}")
                    with client.stream("POST", f"{url}/v1/completions", json={"prompt": "Once", "stream": True}):
                        pass  # and leave

        def memory() -> int:
            return psutil.Process(process.pid).memory_info().rss

        storm(2)
        before = memory()
        storm(4)
        after = memory()
        print(f"{before / 2**20:.0f} MiB before, {after / 2**20:.0f} MiB after")
        assert after < before * 1.05
        assert end(process)[0] == 0

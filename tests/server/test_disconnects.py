"""Clients that leave, engines that fail, and servers that are told to stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import openai
import pytest

from nanovllm.server import command

from .conftest import http, running_server

ENDLESS = {"model": "offline", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 1500, "ignore_eos": True}
MINE = {key: value for key, value in ENDLESS.items() if key != "ignore_eos"} | {"extra_body": {"ignore_eos": True}}


def running(server) -> bool:
    return bool(server.llm.engine.scheduler.running)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_frees_its_blocks(server, stream):
    body = json.dumps(ENDLESS | {"stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                           b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        server.wait_until(lambda: running(server))
    steps = server.llm.engine.num_steps
    server.wait_until_idle()
    assert server.llm.engine.num_steps - steps < 1000  # it did not simply run to its end


def test_leaving_a_stream_of_several_samples_frees_them_all(server, client):
    with client.completions.create(stream=True, n=3, **MINE | {"temperature": 1}) as stream:
        next(stream)
        assert len(server.llm.engine.scheduler.running) == 3
    server.wait_until_idle()


def test_a_client_that_gives_up_waiting_frees_its_blocks(server):
    with server.client(timeout=0.3) as client, pytest.raises(openai.APITimeoutError):
        client.completions.create(**MINE)
    server.wait_until_idle()


def test_disconnects_change_nobody_elses_text(server, client):
    alone = client.completions.create(model="offline", prompt="A hen", temperature=0, max_tokens=60).choices[0].text

    def leave():
        with server.client() as other, other.completions.create(stream=True, **MINE) as stream:
            next(stream)

    leavers = [threading.Thread(target=leave) for _ in range(4)]
    for thread in leavers:
        thread.start()
    beside = client.completions.create(model="offline", prompt="A hen", temperature=0, max_tokens=60).choices[0].text
    for thread in leavers:
        thread.join()
    assert beside == alone


def test_a_failing_step_is_a_500_an_error_event_and_nothing_more(server, client, monkeypatch, caplog):
    launch = server.llm.engine.model_runner.launch

    def failing(*arguments):
        if running(server) and next(iter(server.llm.engine.scheduler.running)).num_output_tokens >= 3:
            raise RuntimeError("the model broke")
        return launch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(server.llm.engine.model_runner, "launch", failing)
        with pytest.raises(openai.InternalServerError, match="the model broke"):
            client.completions.create(**MINE)
        assert caplog.text.count("Traceback") == 1 and "the model broke" in caplog.text
        caplog.clear()
        with pytest.raises(openai.APIError, match="the model broke"):
            list(client.completions.create(stream=True, **MINE))
        assert caplog.text.count("Traceback") == 1 and "the model broke" in caplog.text
    assert http.get(f"{server.url}/health").status_code == 200
    assert client.completions.create(model="offline", prompt="Hello", max_tokens=2).usage.completion_tokens == 2


def test_a_text_that_cannot_be_made_is_logged_once_and_ends_its_request_alone(server, client, monkeypatch, caplog):
    decode = type(server.llm.tokenizer).decode

    def failing(self, token_ids, **how):
        if len(token_ids) > 3:
            raise RuntimeError("no such text")
        return decode(self, token_ids, **how)

    with monkeypatch.context() as patch:
        patch.setattr(type(server.llm.tokenizer), "decode", failing)
        with pytest.raises(openai.InternalServerError, match="no such text"):
            client.completions.create(model="offline", prompt="Hello", max_tokens=9, extra_body={"ignore_eos": True})
    assert caplog.text.count("no such text") >= 1 and caplog.text.count("Traceback") == 1
    assert client.completions.create(model="offline", prompt="Hello", max_tokens=9).choices


def test_a_bug_is_500_and_logged_under_its_requests_id(server, monkeypatch, caplog):
    monkeypatch.setattr("nanovllm.server.prompts.PromptEncoder.decode", lambda *_: 1 / 0)
    reply = http.post(f"{server.url}/detokenize", json={"tokens": [1]}, headers={"X-Request-Id": "the-bug"})
    assert reply.status_code == 500 and reply.headers["x-request-id"] == "the-bug"
    assert reply.json()["error"]["message"] == "ZeroDivisionError: division by zero"
    assert caplog.text.count("Traceback") == 1 and "the-bug" in caplog.text


def test_running_requests_may_end_before_the_server_does(llm):
    with running_server(llm, shutdown_seconds=30) as server, server.client() as client:
        stream = client.completions.create(model="offline", prompt="Hello", max_tokens=40, stream=True)
        next(stream)
        server.server.should_exit = True
        *_, last = stream
        assert last.choices[0].finish_reason


def test_requests_that_outlive_the_grace_are_told(llm):
    with running_server(llm, shutdown_seconds=0.2) as server, server.client() as client:
        stream = client.completions.create(stream=True, **MINE)
        next(stream)
        server.server.should_exit = True
        with pytest.raises(openai.APIError, match="closed"):
            list(stream)


@pytest.mark.parametrize("number, exit_code", [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_the_command_serves_until_a_signal_and_ends_without_a_traceback(number, exit_code):
    environment = os.environ | {command.KEY_VARIABLE: "sesame"}
    process = subprocess.Popen(
        [sys.executable, "-m", "nanovllm", "serve", "--port", "0", "--device", "cpu", "--num-kvcache-blocks", "200",
         "--shutdown-seconds", "0.2", "--served-model-name", "stories", "--log-level", "warning"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, encoding="utf-8")
    try:
        assert process.stdout.readline().startswith("AsyncLLM(")
        assert "temperature 0.7, top_p 0.95; --generation-config vllm turns that off" in process.stdout.readline()
        listening = process.stdout.readline()
        assert listening.startswith("Listening on http://127.0.0.1:")
        with openai.OpenAI(base_url=listening.split()[-1], api_key="sesame", max_retries=0) as client:
            stream = client.completions.create(stream=True, **MINE | {"model": "stories"})
            next(stream)
            process.send_signal(number)
            with pytest.raises(openai.APIError, match="closed"):
                list(stream)
        out, err = process.communicate(timeout=30)
        assert process.returncode == exit_code
        assert err == "" and "Traceback" not in out
    finally:
        process.kill()
        process.communicate()


def test_a_missing_extra_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(SystemExit, match=r"needs fastapi, which is not installed: pip install 'nano-vllm-course\[serve\]'"):
        command.serve()


def test_a_port_that_is_taken_is_named_before_the_model_is_loaded(capsys):
    from nanovllm.__main__ import main
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit):
            main(["serve", "/no/such/model", "--port", port])
    assert f"port={port}: cannot listen there" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["serve", "/no/such/model", "--port", "0"])
    assert "model='/no/such/model': must be a folder" in capsys.readouterr().err

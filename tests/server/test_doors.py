"""What stands before the routes: keys, hosts, origins, slow and silent connections, and large bodies at once."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import httpx
import pytest

from nanovllm.server.guard import is_allowed

from .conftest import http, running_server

BODY = {"prompt": "Hello", "max_tokens": 1}


def test_any_case_of_the_scheme(llm):
    with running_server(llm, api_key="Sesame") as server:
        for header, status in (("Bearer Sesame", 200), ("bearer Sesame", 200), ("BEARER Sesame", 200), ("Bearer  Sesame", 200),
                               ("bearer sesame", 401), ("Sesame", 401), ("Basic Sesame", 401), ("Bearer", 401), ("", 401),
                               ("BearerSesame", 401), ("Bearer Sesame x", 401)):
            assert http.get(f"{server.url}/v1/models", headers={"Authorization": header}).status_code == status, header
        for path, status in (("/health", 200), ("/ping", 200), ("/metrics", 401), ("/load", 401), ("/version", 401),
                             ("/openapi.json", 401), ("/tokenize", 401), ("//health", 401), ("/health/", 401)):
            assert http.get(f"{server.url}{path}").status_code == status, path


def test_metrics_may_be_open(llm):
    with running_server(llm, api_key="sesame", public_metrics=True) as server:
        assert http.get(f"{server.url}/metrics").status_code == 200
        assert http.get(f"{server.url}/v1/models").status_code == 401


def test_a_host_that_is_not_this_machine_is_refused(llm):
    with running_server(llm, allowed_hosts=("localhost", "127.0.0.1", "*.example.com")) as server:
        def ask(host):
            return http.post(f"{server.url}/v1/completions", json=BODY, headers={"Host": host})

        for host in ("localhost", "localhost:8000", "LOCALHOST", "127.0.0.1:1", "[::1]:8000", "app.localhost", "a.example.com"):
            assert ask(host).status_code == 200, host
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "example.com", "10.0.0.1", "0.0.0.0",
                     "127.0.0.1.evil.com", "x" * 3000, "evil.localhost.com"):
            reply = ask(host)
            assert reply.status_code == 403 and "--allow-host" in reply.json()["error"]["message"], host
            assert len(reply.content) < 1000


@pytest.mark.parametrize("host, pattern, allowed", [
    ("a", "*", True), ("", "*", True), ("A.b:80", "a.B", True), ("a.b.", "a.b", True), ("a.b", "*.b", True),
    ("b", "*.b", False), ("xb", "*.b", False), ("::1", "localhost", False),
    ("[::1]", "localhost", True), ("127.9.9.9:1", "localhost", True),
    ("", "localhost", False), ("localhost@evil", "localhost", False)])
def test_patterns_of_hosts(host, pattern, allowed):
    assert is_allowed(host, (pattern,)) is allowed


def test_a_browser_of_an_allowed_origin_may_ask(llm):
    preflight = {"Origin": "http://app.example", "Access-Control-Request-Method": "POST",
                 "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang"}
    with running_server(llm, api_key="sesame", allowed_origins=["http://app.example"]) as server:
        url = f"{server.url}/v1/chat/completions"
        reply = http.options(url, headers=preflight)
        assert reply.status_code == 200 and reply.headers["access-control-allow-origin"] == "http://app.example"
        assert "authorization" in reply.headers["access-control-allow-headers"].lower()
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        for key, status in (("Bearer sesame", 200), ("Bearer guess", 401)):  # a script must be able to read a refusal, too
            reply = http.post(url, json=body, headers={"Origin": "http://app.example", "Authorization": key})
            assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (status, "http://app.example")
            assert "x-request-id" in reply.headers["access-control-expose-headers"].lower()
        assert http.options(url, headers=preflight | {"Origin": "http://evil.example"}).status_code == 400
        reply = http.post(url, json=body, headers={"Origin": "http://evil.example", "Authorization": "Bearer sesame"})
        assert "access-control-allow-origin" not in reply.headers
    with running_server(llm) as server:  # by default no page but its own
        reply = http.options(f"{server.url}/v1/chat/completions", headers=preflight)
        assert reply.status_code == 405 and "access-control-allow-origin" not in reply.headers
    with running_server(llm, allowed_origins=["*"]) as server:
        reply = http.get(f"{server.url}/v1/models", headers={"Origin": "null"})
        assert reply.headers["access-control-allow-origin"] == "*"


def until_closed(connection: socket.socket, limit: float = 10) -> tuple[bytes, float]:
    """What still comes, and how long it takes until the other side closes. TCP calls it a reset where bytes of ours were on
    their way to it."""
    began, received = time.monotonic(), b""
    connection.settimeout(limit)
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received, time.monotonic() - began


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", b"POST", b"POST /v1/completions HTTP/1.1\r\nHost: local"])
def test_a_connection_that_sends_no_whole_head_is_closed(llm, sent):
    with running_server(llm, receive_seconds=0.5) as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(sent)
        received, seconds = until_closed(connection)
        assert received == b"" and 0.2 < seconds < 5


def test_a_head_that_drips_is_closed_however_long_it_drips(llm):
    with running_server(llm, receive_seconds=0.6) as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        began = time.monotonic()
        with pytest.raises(OSError):
            for byte in (b"GET /health HTTP/1.1\r\nX-Slow: " + b"x" * 200):
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("drips", [False, True])
def test_a_body_that_does_not_come_is_408(llm, drips):
    with running_server(llm, receive_seconds=0.5) as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(HEAD + b'{"prompt": ')
        if drips:
            def drip():
                for _ in range(40):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return
                    time.sleep(0.1)
            thread = threading.Thread(target=drip)
            thread.start()
        received, seconds = until_closed(connection)
        if drips:
            thread.join()
        assert received.startswith(b"HTTP/1.1 408 ") and b"--receive-seconds" in received and seconds < 5


def test_a_client_that_reads_nothing_is_dropped(llm):
    with running_server(llm, receive_seconds=0.5) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        body = json.dumps({"prompt": ["Hello"] * 30, "max_tokens": 500, "ignore_eos": True, "stream": True,
                           "logprobs": 20}).encode()
        connection.sendall(HEAD.replace(b"100", str(len(body)).encode()) + body)
        server.wait_until(lambda: server.llm.engine.has_unfinished)
        server.wait_until_idle()
        server.wait_until(lambda: not server.server.server_state.connections)


def test_whoever_keeps_the_time_is_served_whatever_it_takes(llm, gate):
    """The deadline is for the client's side: an answer may take longer, a pause between two requests is uvicorn's affair."""
    with running_server(llm, receive_seconds=0.4) as server:
        timer = threading.Timer(1.2, gate.open)
        timer.start()
        with httpx.Client() as client:
            assert client.post(f"{server.url}/v1/completions", json=BODY, timeout=30).status_code == 200
            time.sleep(0.8)
            assert client.post(f"{server.url}/v1/completions", json=BODY, timeout=30).status_code == 200
        timer.join()


def test_hundreds_of_silent_connections_keep_nobody_waiting(llm):
    with running_server(llm, receive_seconds=2) as server:
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
        assert http.post(f"{server.url}/v1/completions", json=BODY, timeout=10).status_code == 200
        server.wait_until(lambda: not server.server.server_state.connections)
        for connection in silent:
            connection.close()


def test_long_texts_are_refused_before_they_are_encoded(server):
    """Eight times the largest body there is: each is refused in a moment, and a chat beside them does not wait."""
    async def storm():
        async with httpx.AsyncClient(timeout=60) as client:
            async def timed(path, body):
                began = time.monotonic()
                reply = await client.post(f"{server.url}{path}", content=body, headers={"Content-Type": "application/json"})
                return reply.status_code, time.monotonic() - began

            long = "1" * 4_100_000
            bodies = [*[("/v1/completions", json.dumps({"prompt": long}))] * 3,
                      *[("/v1/chat/completions", json.dumps({"messages": [{"role": "user", "content": long}]}))] * 3,
                      *[("/tokenize", json.dumps({"prompt": long}))] * 2]
            chat = ("/v1/chat/completions", json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}))
            return await asyncio.gather(*(timed(*each) for each in [*bodies, chat]))

    *refused, served = asyncio.run(storm())
    assert {status for status, _ in refused} == {400} and max(seconds for _, seconds in refused) < 5
    assert served[0] == 200 and served[1] < 5

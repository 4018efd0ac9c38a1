"""A batch on one machine: every request gets one answer, whatever is wrong with it and however often the run is killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanovllm import LLM, AsyncLLM, SamplingParams
from nanovllm.fleet import asgi, batch_run
from nanovllm.fleet.batch_file import check_rows, resume
from nanovllm.fleet.extra import require

GREEDY = {"temperature": 0, "max_tokens": 6}


def completion(name: str, prompt: object = "A fox", **body: object) -> dict:
    return {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": {"prompt": prompt} | GREEDY | body}


def chat(name: str, text: str) -> dict:
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": text}]} | GREEDY}


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def llm():
    return AsyncLLM(device="cpu", num_kvcache_blocks=64)


def test_answers_are_the_engines_own_and_bad_requests_are_answers_too(tmp_path, llm):
    with LLM(device="cpu") as plain:
        expected = [o.outputs[0].text for o in plain.generate(["A fox", "A hen"], SamplingParams(**GREEDY), use_tqdm=False)]
    rows = [completion("fox"), completion("hen", "A hen"), chat("é", "Hi"), completion("bad", top_p=7),
            {"custom_id": "lost", "url": "/v1/nowhere", "body": {}}]
    out = tmp_path / "out.jsonl"
    batch_run.run_batch(write(tmp_path / "in.jsonl", rows), out, llm, keep_order=True, progress=False)
    answers = lines(out)
    assert [a["custom_id"] for a in answers] == ["fox", "hen", "é", "bad", "lost"]
    assert [a["response"]["body"]["choices"][0]["text"] for a in answers[:2]] == expected
    assert answers[2]["response"]["body"]["choices"][0]["message"]["role"] == "assistant"
    assert answers[2]["response"]["request_id"] == answers[2]["response"]["body"]["id"]
    assert [a["response"]["status_code"] for a in answers] == [200, 200, 200, 400, 404]
    assert "top_p" in answers[3]["response"]["body"]["error"]["message"]
    assert all(a["error"] is None and a["id"].startswith("batch_req_") for a in answers)
    assert len({a["id"] for a in answers}) == 5


def test_order_is_kept_only_when_asked(tmp_path, llm):
    rows = [completion("long", max_tokens=60, min_tokens=60), *(completion(f"s{i}", max_tokens=1) for i in range(6))]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    batch_run.run_batch(source, out, llm, progress=False)
    assert lines(out)[-1]["custom_id"] == "long"


def test_no_more_than_asked_run_at_once():
    running, most = 0, 0

    async def app(scope, receive, send):
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await asyncio.sleep(0.01)
        running -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def run(keep_order):
        rows = [row for row in read_rows_of(20)]
        return [json.loads(line)["custom_id"] async for line in batch_run.answers(app, rows, 3, keep_order)]

    for keep_order in (True, False):
        ids = asyncio.run(run(keep_order))
        assert most == 3 and sorted(ids, key=int) == [str(i) for i in range(20)]
        assert not keep_order or ids == [str(i) for i in range(20)]


def read_rows_of(count: int):
    from nanovllm.fleet.batch_file import BatchRow
    return [BatchRow(str(i), "/v1/completions", {}) for i in range(count)]


@pytest.mark.unmeasured
def test_a_killed_run_goes_on_where_it_ended(tmp_path):
    """SIGKILL in the middle; the second run answers the rest, and no request is answered twice."""
    rows = [completion(f"r{i}", f"Story {i}", max_tokens=40, min_tokens=40) for i in range(40)]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "nanovllm", "batch", str(source), str(out), "--device", "cpu", "--max-num-seqs", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not out.exists() or len(out.read_text(encoding="utf-8").splitlines()) < 5:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = out.read_text(encoding="utf-8")
    assert 5 <= before.count("\n") < 40
    out.write_text(before + '{"id": "batch_req_cut', encoding="utf-8")
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=120)
    assert sorted(a["custom_id"] for a in lines(out)) == sorted(r["custom_id"] for r in rows)
    assert out.read_text(encoding="utf-8").startswith(before)


def test_resume_runs_failures_again_and_refuses_another_batchs_file(tmp_path):
    out = tmp_path / "out.jsonl"
    ok = {"custom_id": "a", "response": {"status_code": 400, "body": {}}, "error": None}
    broken = {"custom_id": "b", "response": {"status_code": 500, "body": {}}, "error": None}
    lost = {"custom_id": "c", "response": None, "error": {"message": "x"}}
    write(out, [ok, broken, lost])
    assert resume(out, {"a", "b", "c"}) == {"a"} and lines(out) == [ok]
    with pytest.raises(ValueError, match="'a', which is not in the input"):
        resume(out, {"b"})
    out.write_text("hello\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"'hello.*' is no answer of a batch"):
        resume(out, {"b"})
    assert out.read_text(encoding="utf-8") == "hello\n" and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("line, text", [
    ("{", "line 2: not valid JSON"), ("[]", "must be an object"), ('{"url": "/v1/x", "body": {}}', "custom_id=None"),
    ('{"custom_id": "a", "url": "http://x", "body": {}}', "url='http://x'"),
    ('{"custom_id": "a", "url": "/v1/x", "body": 3}', "body=3"),
    ('{"custom_id": "a", "url": "/v1/x", "method": "GET", "body": {}}', "method='GET'"),
    ('{"custom_id": "a", "url": "/v1/x", "body": {"stream": true}}', "stream=True"),
    ('{"custom_id": "first", "url": "/v1/x", "body": {}}', "custom_id='first': must be used once, and requests 1 and 2")])
def test_a_bad_line_is_named_before_anything_runs(tmp_path, line, text):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(completion("first")) + "\n" + line, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        check_rows(path)
    assert text in str(error.value)


def test_an_empty_file_and_a_missing_one_are_named(tmp_path):
    (tmp_path / "in.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="requests=0"):
        check_rows(tmp_path / "in.jsonl")
    ran = subprocess.run([sys.executable, "-m", "nanovllm", "batch", "nowhere.jsonl", "out.jsonl"], capture_output=True,
                         text=True, encoding="utf-8")
    assert ran.returncode == 2 and "source='nowhere.jsonl': must be a file" in ran.stderr


def test_closing_a_call_early_disconnects_the_client():
    seen = []

    async def app(scope, receive, send):
        seen.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        seen.append((await receive())["type"])

    async def run():
        stream = asgi.messages(app, "POST", "/", body=b"question")
        async for message in stream:
            if message["type"] == "http.response.body":
                break
        await stream.aclose()

    asyncio.run(run())
    assert seen == [b"question", "http.disconnect"]


def test_an_application_that_fails_before_it_answers_raises():
    async def broken(scope, receive, send):
        raise KeyError("x")

    async def silent(scope, receive, send):
        pass

    with pytest.raises(KeyError):
        asyncio.run(asgi.request(broken, "GET", "/"))
    with pytest.raises(RuntimeError, match="without an answer to GET /"):
        asyncio.run(asgi.request(silent, "GET", "/"))


def test_without_the_extra_one_line_says_how_to_install_it(tmp_path):
    with pytest.raises(ValueError, match=r"pip install 'nano-vllm-course\[fleet\]'"):
        require("fleet", "--ray", "a_package_that_is_not_there")
    source = write(tmp_path / "in.jsonl", [completion("a")])
    code = ("import sys; from importlib.abc import MetaPathFinder\n"
            "class NoRay(MetaPathFinder):\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.split('.')[0] == 'ray': raise ModuleNotFoundError(name)\n"
            "import importlib.util as u; real = u.find_spec\n"
            "u.find_spec = lambda name, *a: None if name == 'ray' else real(name, *a)\n"
            "sys.meta_path.insert(0, NoRay())\n"
            "from nanovllm.__main__ import main; main(sys.argv[1:])")
    for arguments in (["batch", str(source), str(tmp_path / "o"), "--ray"], ["serve", "--ray"]):
        ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, encoding="utf-8")
        assert ran.returncode == 2, ran.stderr
        assert ran.stderr.splitlines()[-1].endswith("pip install 'nano-vllm-course[fleet]'."), ran.stderr

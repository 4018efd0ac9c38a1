"""Files of requests and answers, a JSON object per line, in the format of the OpenAI Batch API. Imports no torch."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from nanovllm.errors import InvalidArgument
from nanovllm.utils.checks import check


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One request: POST `body` to `url`. custom_id: the user's name for it, which comes back with the answer."""

    custom_id: str
    url: str
    body: dict[str, Any]


def read_rows(path: str | Path) -> Iterator[BatchRow]:
    """The requests of a file, in order. Raises InvalidArgument that names the line for one that is not of the format:

        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...]}}
    """
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _row(line, f"{path}, line {number}")


def check_rows(path: str | Path) -> int:
    """Read a whole file before anything runs, so that a bad line costs no work. Returns how many requests it holds.

    Raises InvalidArgument for a bad line or a custom_id that occurs twice.
    """
    lines: dict[str, int] = {}
    for number, row in enumerate(read_rows(path), 1):
        check(row.custom_id not in lines, "custom_id", row.custom_id,
              f"used once, and requests {lines.get(row.custom_id)} and {number} of {path} have it",
              "answers are told apart by it: rename one")
        lines[row.custom_id] = number
    check(bool(lines), "requests", 0, f"1 or more, and {path} has none", "write one JSON object per line")
    return len(lines)


def answer_line(custom_id: str, status: int, body: bytes) -> str:
    """A line of the output file, without its end. A status of 400 and more is an answer, too: its body says what is wrong."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = {"error": {"message": body.decode(errors="replace"), "type": "server_error"}}
    return json.dumps({
        "id": f"batch_req_{blake2b(custom_id.encode(), digest_size=12).hexdigest()}", "custom_id": custom_id,
        "response": {"status_code": status, "body": answer,
                     "request_id": answer.get("id") if isinstance(answer, dict) else None},
        "error": None}, ensure_ascii=False)


def failed_line(custom_id: str, message: str) -> str:
    """A line for a request that got no answer at all. It is served again when the batch is run again."""
    return json.dumps({"id": f"batch_req_{blake2b(custom_id.encode(), digest_size=12).hexdigest()}", "custom_id": custom_id,
                       "response": None, "error": {"code": "failed", "message": message}}, ensure_ascii=False)


def resume(path: str | Path, known: set[str]) -> set[str]:
    """Make an output file of an earlier run ready to be continued; returns the custom_ids that need not run again.

    Drops a line that was cut short, and answers with a status of 500 and more or with none: those requests run again.
    Raises InvalidArgument, and changes nothing, when the file holds an answer to a request that is not in `known`.
    """
    path = Path(path)
    done: set[str] = set()
    if not path.exists():
        return done
    kept = path.with_name(path.name + ".resumed")
    with open(path, encoding="utf-8", errors="replace") as old, open(kept, "w", encoding="utf-8") as new:
        for line in old:
            try:
                answer = json.loads(line)
                custom_id, response = answer["custom_id"], answer["response"]
            except (ValueError, KeyError, TypeError):
                if not line.endswith("\n"):
                    continue  # cut short
                kept.unlink()
                raise InvalidArgument(f"{path}: {line[:80]!r} is no answer of a batch; choose another output file.") from None
            if custom_id not in known:
                kept.unlink()
                raise InvalidArgument(f"{path}: it holds an answer to {custom_id!r}, which is not in the input; choose another "
                                      "output file.")
            if line.endswith("\n") and response and response["status_code"] < 500 and custom_id not in done:
                done.add(custom_id)
                new.write(line)
    os.replace(kept, path)
    return done


def _row(line: str, where: str) -> BatchRow:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise InvalidArgument(f"{where}: not valid JSON: {error}") from error
    check(isinstance(entry, dict), where, entry, "an object", "write one JSON object per line")
    custom_id, url, body = entry.get("custom_id"), entry.get("url"), entry.get("body")
    check(isinstance(custom_id, str) and bool(custom_id), f"{where}: custom_id", custom_id, "a text", "name the request")
    check(entry.get("method", "POST") == "POST", f"{where}: method", entry.get("method"), "POST", "batches only post")
    check(isinstance(url, str) and url.startswith("/v1/"), f"{where}: url", url, "a path below /v1/",
          "use /v1/chat/completions or /v1/completions")
    check(isinstance(body, dict), f"{where}: body", body, "an object", "pass the request's JSON")
    check(not body.get("stream"), f"{where}: stream", body.get("stream"), "false in a batch", "leave it out")
    return BatchRow(custom_id, url, body)

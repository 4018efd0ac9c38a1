"""Traces on disk: a zip of pages, so that a day's run is written as it goes and read a page at a time. Imports no torch.

`head.json` holds the format's version and what the run ran on; `pages/N.json` says which steps page N holds and which
requests appear in it first; `pages/N.jsonl` holds their records, a line each: the first whole, every other one as what
changed since the line before. Any unzip shows all of it.
"""

import json
import zipfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import Any, overload

from nanovllm.errors import InvalidArgument
from nanovllm.tracing.step_record import StepRecord

FORMAT_VERSION = 2
PAGE = 1024          # steps
PAGES_IN_MEMORY = 4  # of a trace that is read
PER_REQUEST = ("prompts", "arrivals")  # the parts of meta that grow with the run, and so stand in the pages
BY_ID = ("left_waiting", "tokens", "hit_tokens", "block_tables", "context_lens", "ref_counts", "preemption_reasons", "drafts",
         "accepted")
DELTA_FIELDS = ("block_tables", "context_lens", "ref_counts")
COLUMNS = ("seq_id", "phase", "start", "num_tokens", "reason")


class TraceWriter:
    """Writes a trace page by page. What is on disk can be read at any time, also after a crash of the writer.

    Owns the records of the page that is not full yet. It never holds more than two pages' worth of anything.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._pending: list[StepRecord] = []
        self._num_pages = 0
        self._requests: dict[str, dict[int, Any]] = {name: {} for name in PER_REQUEST}  # first seen in this page
        self._known: set[int] = set()     # sequences of the last record: any other is new
        self.path.unlink(missing_ok=True)

    def add(self, record: StepRecord, meta: dict[str, Any]) -> None:
        # The newest record stays back: a request that is aborted after its step is still noted in it.
        if len(self._pending) > PAGE:
            self._write_page(meta, PAGE)
        ids = record.seq_ids()
        for name in PER_REQUEST:
            self._requests[name] |= {i: meta[name][i] for i in ids - self._known if i in meta[name]}
        self._known = ids
        self._pending.append(record)

    def close(self, meta: dict[str, Any], operations: list[dict[str, Any]]) -> None:
        while self._pending or not self._num_pages:
            self._write_page(meta, PAGE)
        if operations:
            with self._zip() as file:
                file.writestr("operations.json", _json(_columns(operations, ("track", "name", "time", "duration"))))

    def _zip(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path, "a", zipfile.ZIP_DEFLATED, compresslevel=6)

    def _write_page(self, meta: dict[str, Any], size: int) -> None:
        page, self._pending = self._pending[:size], self._pending[size:]
        lines: list[str] = []
        before: dict[str, Any] | None = None
        for record in page:
            fields = asdict(record)
            lines.append(_json(_encode(fields, before)))
            before = fields
        with self._zip() as file:
            if not self._num_pages:
                shared = {name: value for name, value in meta.items() if name not in PER_REQUEST}
                file.writestr("head.json", _json({"version": FORMAT_VERSION, "meta": shared}))
            file.writestr(f"pages/{self._num_pages}.jsonl", "\n".join(lines))
            file.writestr(f"pages/{self._num_pages}.json", _json({"num_records": len(page)} | self._requests))
        self._requests = {name: {} for name in PER_REQUEST}
        self._num_pages += 1


class PagedRecords(Sequence[StepRecord]):
    """The records of a trace on disk as a read-only list. Owns a few decoded pages, never the whole."""

    def __init__(self, path: str | Path):
        self._file = zipfile.ZipFile(path)
        self._ends: list[int] = list(accumulate(head["num_records"] for head in _page_heads(self._file)))
        self._page = lru_cache(PAGES_IN_MEMORY)(self._read_page)

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, i: int) -> StepRecord: ...

    @overload
    def __getitem__(self, i: slice) -> list[StepRecord]: ...

    def __getitem__(self, i: int | slice) -> StepRecord | list[StepRecord]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]  # counts from the end below 0, and raises IndexError beyond
        page = bisect_right(self._ends, i)
        return self._page(page)[i - (self._ends[page - 1] if page else 0)]

    def __eq__(self, other: object) -> bool:
        return all(a == b for a, b in zip_longest(self, other)) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # how Python says that it has none

    def _read_page(self, page: int) -> list[StepRecord]:
        records: list[StepRecord] = []
        before: dict[str, Any] | None = None
        for line in self._file.read(f"pages/{page}.jsonl").splitlines():
            before = _decode(json.loads(line), before)
            records.append(StepRecord(**before))
        return records


def read_head(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The meta and the profiled operations of a trace. Raises InvalidArgument for another format."""
    if not zipfile.is_zipfile(path):
        raise InvalidArgument(f"{path}: trace format version {_old_version(path)!r}: must be {FORMAT_VERSION}; "
                         "record the trace again with this version.")
    with zipfile.ZipFile(path) as file:
        head = json.loads(file.read("head.json")) if "head.json" in file.namelist() else {}
        if head.get("version") != FORMAT_VERSION:
            raise InvalidArgument(f"{path}: trace format version {head.get('version')!r}: must be {FORMAT_VERSION}; "
                             "record the trace again with this version.")
        meta = head["meta"] | {name: {} for name in PER_REQUEST}
        for page in _page_heads(file):
            for name in PER_REQUEST:
                meta[name] |= _int_keys(page[name])
        operations = json.loads(file.read("operations.json")) if "operations.json" in file.namelist() else []
    return meta, _rows(operations)


def _page_heads(file: zipfile.ZipFile) -> Iterator[dict[str, Any]]:
    names = set(file.namelist())
    page = 0
    while f"pages/{page}.json" in names:
        yield json.loads(file.read(f"pages/{page}.json"))
        page += 1


def _encode(fields: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """The fields of a record that changed; tables and blocks as what changed in them."""
    line: dict[str, Any] = {}
    for name, value in fields.items():
        old: Any = before[name] if before else None
        if before and value == old:
            continue
        if name == "scheduled":
            value = _columns(value, COLUMNS)
        elif before and name == "blocks" and len(value) == len(old):
            value = [[i, new] for i, (new, was) in enumerate(zip(value, old)) if new != was]
        elif before and name in DELTA_FIELDS:
            gone = [i for i in old if i not in value]
            value = [gone, {i: _table_delta(new, old.get(i)) for i, new in value.items() if new != old.get(i)}]
        line[name] = value
    return line


def _decode(line: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    fields = dict(before or {})
    for name, value in line.items():
        if name == "scheduled":
            value = _rows(value)
        elif name == "blocks" and before and not isinstance(value, str):
            letters = list(before["blocks"])
            for i, letter in value:
                letters[i] = letter
            value = "".join(letters)
        elif name in DELTA_FIELDS and before:
            gone, changed = value
            old = {i: v for i, v in before[name].items() if i not in gone}
            changed = _int_keys(changed)
            value = old | {i: _apply_delta(new, old.get(i)) for i, new in changed.items()}
        elif name in BY_ID:
            value = _int_keys(value)
        fields[name] = value
    return fields


def _table_delta(new: Any, old: Any) -> Any:
    """A block table as [number of blocks kept, blocks after those]; numbers as they are."""
    if not isinstance(new, list):
        return new
    kept = next((i for i, (a, b) in enumerate(zip(new, old or [])) if a != b), min(len(new), len(old or [])))
    return [kept, new[kept:]]


def _apply_delta(new: Any, old: Any) -> Any:
    """The inverse of `_table_delta`."""
    return (old or [])[:new[0]] + new[1] if isinstance(new, list) else new


def _columns(rows: list[dict[str, Any]], names: tuple[str, ...]) -> list[Any]:
    """A list of alike dicts as one list a field: equal neighbours compress to almost nothing."""
    return [names, *([row[name] for row in rows] for name in names)]


def _rows(columns: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(columns[0], row)) for row in zip(*columns[1:])] if columns else []


def _int_keys(mapping: dict[str, Any]) -> dict[int, Any]:
    return {int(key): value for key, value in mapping.items()}  # JSON turned them into strings


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _old_version(path: str | Path) -> object:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8")).get("version")
    except (ValueError, AttributeError, UnicodeDecodeError):
        return None

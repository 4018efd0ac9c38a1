"""AllocationFilm: the books after every event, copy-on-write, and what the film says about it."""

from collections import Counter

import pytest
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from tests.visualizations.test_figures import artists, caption
from visualizations import AllocationFilm
from visualizations.explorers.base import unpack


def film() -> AllocationFilm:
    """Two answers to one prompt, of which the second writes first, and a stranger who gets the first one's blocks."""
    film = AllocationFilm(num_blocks=12, block_size=4)
    first = film.arrive("tell me a story about a fox")
    film.write(first, "once upon a")
    second = film.fork(first)
    film.write(second, "hill lived a fox")
    film.write(first, "time a fox lived")
    stranger = film.arrive("what is three plus four")
    film.end(first)
    film.write(stranger, "seven it is not eight")
    return film


def test_the_books_balance_after_every_event():
    for record in film().books.trace:
        references = Counter(block for table in record.block_tables.values() for block in table)
        assert record.ref_counts == {block: n for block, n in references.items() if n > 1}
        assert record.blocks == "".join("fus"[min(references[block], 2)] for block in range(12))
        for seq_id, table in record.block_tables.items():
            assert len(table) == -(-record.context_lens[seq_id] // 4), "a block is taken when a token needs it, never before"


def test_nothing_is_written_where_somebody_else_reads():
    played = film()
    trace = played.books.trace
    writes = [(step, *played.books.focus[step]) for step, says in enumerate(played.books.says) if " writes “" in says]
    assert len(writes) == 3 + 4 + 4 + 5
    for step, seq_id, position in writes:
        block = trace[step].block_tables[seq_id][position // 4]
        assert block not in trace[step].ref_counts
        others = [i for i in trace[step].block_tables if i != seq_id]
        assert all(trace[step].block_tables[i] == trace[step - 1].block_tables[i] for i in others)


def test_a_shared_block_is_copied_before_the_first_write_and_only_then():
    played = film()
    [step] = played.copied_at
    before, after = played.books.trace[step - 1], played.books.trace[step]
    source, target = played.books.copied[step]
    assert before.block_tables[1] == before.block_tables[0] and before.blocks.count("s") == 3
    assert after.block_tables[0] == before.block_tables[0] and after.block_tables[1] == [*before.block_tables[0][:2], target]
    assert after.block_tables[0][2] == source and before.blocks[target] == "f" and after.blocks.count("s") == 2
    assert f"its 2 tokens are copied to block {target}" in played.books.says[step]
    exact = AllocationFilm(num_blocks=6, block_size=4)
    child = exact.fork(exact.arrive("four words fill it"))
    exact.write(child, "next")
    assert not exact.copied_at, "full blocks are never written again: nothing is copied"


def test_who_ends_gives_back_what_nobody_else_reads():
    played = film()
    step = next(i for i, says in enumerate(played.books.says) if "ends" in says)
    before, after = played.books.trace[step - 1], played.books.trace[step]
    kept, free = before.block_tables[0][:2], before.block_tables[0][2:]
    assert all(after.blocks[block] == "u" for block in kept) and all(after.blocks[block] == "f" for block in free)
    assert f"blocks {free[0]} and {free[1]} can be taken again; blocks {kept[0]} and {kept[1]} stay" in played.books.says[step]


def test_what_cannot_be_done_is_refused_and_changes_nothing():
    small = AllocationFilm(num_blocks=2, block_size=4)
    first = small.arrive("one two three four five six seven")
    with pytest.raises(RuntimeError, match="needs 1 more blocks and 0 are free"):
        small.write(first, "eight nine")
    assert small.books.says[-1].startswith("Sequence 0 writes “eight”") and len(first) == 8
    with pytest.raises(ValueError, match="text='': must be one word or more"):
        small.arrive("")
    small.end(first)
    with pytest.raises(ValueError, match="a running one of \\[\\]"):
        small.write(first, "more")


def test_the_still_is_the_event_with_its_sentence_its_block_and_its_copy():
    played = film()
    [step] = played.copied_at
    fig = played.explorer(step=step).figure()
    assert caption(fig) == played.books.says[step]
    assert len(artists(fig, FancyBboxPatch, "lit")) == 2  # in the table and in the cache
    assert len(artists(fig, FancyArrowPatch, "copied")) == 1
    assert not artists(played.explorer(step=step - 1).figure(), FancyArrowPatch, "copied")


def test_the_browser_gets_what_each_event_is_about():
    played = film()
    [step] = played.copied_at
    data = unpack(played.explorer().payload)
    assert data["says"] == played.books.says and data["focus"][str(step)] == [1, 10]
    assert data["copied"] == {str(step): list(played.books.copied[step])}
    words = [data["texts"]["words"][str(token)] for token in data["texts"]["prompts"]["1"]]
    assert " ".join(words) == "tell me a story about a fox once upon a hill lived a fox"

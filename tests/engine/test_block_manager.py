import time

import pytest

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.sequence import Sequence


def held(manager, tokens, seq_id=0):
    """A sequence whose tokens are all computed and cached, holding its blocks."""
    seq = Sequence(seq_id, tokens)
    manager.allocate(seq, manager.find_cached_prefix(seq))
    start = seq.num_computed_tokens
    manager.append(seq, len(tokens))
    seq.num_computed_tokens = len(tokens)
    manager.commit(seq, start)
    return seq


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_longest_cached_prefix(block_size):
    manager = BlockManager(64, block_size)
    a = held(manager, list(range(3 * block_size + (block_size > 1))))
    b = Sequence(1, list(range(2 * block_size)) + [999] * block_size)
    assert manager.find_cached_prefix(b) == a.block_table[:2]
    assert manager.find_cached_prefix(Sequence(2, [999] + list(range(5 * block_size)))) == []


def test_equal_blocks_after_different_prefixes_are_not_shared():
    manager = BlockManager(8, 2)
    held(manager, [1, 2, 7, 7])
    assert manager.find_cached_prefix(Sequence(1, [3, 4, 7, 7])) == []


def test_shared_blocks_are_counted_and_survive_one_owner():
    manager = BlockManager(8, 2)
    a = held(manager, [1, 2, 3, 4, 5], 0)
    b = held(manager, [1, 2, 3, 4, 6], 1)
    assert a.block_table[:2] == b.block_table[:2] and a.block_table[2] != b.block_table[2]
    assert [manager.block_state(x) for x in b.block_table] == ["s", "s", "u"]
    manager.free(a)
    manager.check_integrity([b])
    assert [manager.block_state(x) for x in b.block_table] == ["u", "u", "u"]


def test_fully_cached_prompt_recomputes_one_token_defect_12():
    manager = BlockManager(8, 4)
    a = held(manager, list(range(8)), 0)
    b = Sequence(1, list(range(8)))
    manager.allocate(b, manager.find_cached_prefix(b))
    assert b.block_table == a.block_table and b.num_computed_tokens == 7 and b.num_cached_tokens == 8


def test_freed_blocks_keep_their_content_and_the_oldest_goes_first():
    manager = BlockManager(4, 2)
    a = held(manager, [1, 2, 3, 4], 0)
    b = held(manager, [5, 6], 1)
    first, second = a.block_table
    manager.free(a)
    manager.free(b)
    order = manager.eviction_order()
    assert manager.block_state(order[0]) == "f"  # the empty block goes before any that holds something
    assert order[1:3] == [second, first]         # then the tail of the prefix before its head
    held(manager, [9, 9, 9, 9], 2)               # takes the empty block and evicts `second`
    assert manager.find_cached_prefix(Sequence(3, [1, 2, 3, 4])) == [first]
    assert manager.num_evictions == 1


def test_reviving_a_cached_block_counts_as_taking_a_free_one():
    manager = BlockManager(3, 2)
    manager.free(held(manager, [1, 2, 3, 4]))
    again = Sequence(1, [1, 2, 3, 4, 5, 6])
    prefix = manager.find_cached_prefix(again)
    assert manager.num_new_blocks(again, 6, prefix) == 3 == manager.num_free_blocks


def test_append_refuses_and_changes_nothing_when_blocks_are_missing():
    manager = BlockManager(2, 2)
    seq = Sequence(0, list(range(6)))
    manager.allocate(seq, [])
    with pytest.raises(RuntimeError, match="needs 3 more blocks and 2 are free"):
        manager.append(seq, 6)
    assert seq.block_table == [] and manager.num_free_blocks == 2


def test_same_content_computed_twice_is_findable_once():
    manager = BlockManager(8, 2)
    a, b = Sequence(0, [1, 2]), Sequence(1, [1, 2])
    for seq in (a, b):
        manager.allocate(seq, [])
        manager.append(seq, 2)
        seq.num_computed_tokens = 2
        manager.commit(seq, 0)
    assert manager.find_cached_prefix(Sequence(2, [1, 2])) == a.block_table
    manager.free(a), manager.free(b)
    manager.check_integrity([])


def test_prefix_caching_can_be_switched_off():
    manager = BlockManager(8, 2, enable_prefix_caching=False)
    held(manager, [1, 2, 3, 4])
    assert manager.find_cached_prefix(Sequence(1, [1, 2, 3, 4])) == []


def test_two_managers_with_different_block_sizes_defect_23():
    small, large = BlockManager(8, 1), BlockManager(8, 4)
    a, b = held(small, [1, 2, 3, 4]), held(large, [1, 2, 3, 4])
    assert len(a.block_table) == 4 and len(b.block_table) == 1


def test_integrity_check_sees_a_stolen_block():
    manager = BlockManager(4, 2)
    seq = held(manager, [1, 2, 3, 4])
    with pytest.raises(RuntimeError, match="owners"):
        manager.check_integrity([])
    seq.block_table[0] = seq.block_table[1]
    with pytest.raises(RuntimeError, match="reference count"):
        manager.check_integrity([seq])


def lose_a_block(manager, a, b):
    manager._unreferenced.popitem()


def free_an_owned_block(manager, a, b):
    manager._unreferenced[a.block_table[-1]] = None


def leak_a_reference(manager, a, b):
    manager.ref_counts[next(iter(manager._unreferenced))] = 1


def forget_half(manager, a, b):
    manager.hashes[a.block_table[0]] = None


def swap_hashes(manager, a, b):
    first, second = a.block_table[:2]
    manager.hashes[first], manager.hashes[second] = manager.hashes[second], manager.hashes[first]


def write_what_another_writes(manager, a, b):
    for seq in (a, b):
        seq.num_computed_tokens = seq.num_cached_tokens = 3


@pytest.mark.parametrize("damage, message", [
    (lose_a_block, "stand in the free queue"), (free_an_owned_block, "yet in the free queue"),
    (leak_a_reference, "no references"), (forget_half, "disagree"), (swap_hashes, "disagree"),
    (write_what_another_writes, "2 sequences are to write it")])  # fmt: skip
def test_integrity_check_sees(damage, message):
    manager = BlockManager(8, 2)
    a, b = held(manager, [1, 2, 3, 4, 5], 0), held(manager, [1, 2, 3, 4, 6], 1)
    manager.check_integrity([a, b])
    damage(manager, a, b)
    with pytest.raises(RuntimeError, match=message):
        manager.check_integrity([a, b])


@pytest.mark.unmeasured
def test_integrity_check_of_a_large_cache_costs_little():
    manager = BlockManager(100_000, 16)
    sequences = [held(manager, [i] * 100, i) for i in range(100)]
    took = []
    for _ in range(5):
        start = time.process_time()
        manager.check_integrity(sequences)
        took.append(time.process_time() - start)
    assert min(took) < 0.005, "a loop over the whole cache takes longer"


def test_repr_counts_block_states():
    manager = BlockManager(4, 2)
    held(manager, [1, 2, 3])
    assert repr(manager) == "BlockManager(4 blocks x 2 tokens: 2 in use, 0 shared, 0 cached, 2 free)"


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="num_blocks=0: must be 1 or more"):
        BlockManager(0, 4)
    with pytest.raises(ValueError, match="block_size=0: must be 1 or more"):
        BlockManager(4, 0)

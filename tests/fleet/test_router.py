"""Each policy sends requests where it says it does, and no prefix can pull everything to one replica."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanovllm.engine.sequence import Sequence
from nanovllm.fleet.router import Router

BLOCK = 4


def hashes(*token_ids: int) -> list[bytes]:
    return Sequence(0, list(token_ids)).block_hashes(BLOCK)


SYSTEM = range(100, 112)  # three blocks


def test_round_robin_takes_turns_whatever_the_load():
    router = Router("round_robin")
    assert [router.choose([], {"a": 9, "b": 0, "c": 5}).replica for _ in range(5)] == ["a", "b", "c", "a", "b"]


def test_least_loaded_takes_the_shortest_queue():
    choice = Router("least_loaded").choose([], {0: 3, 1: 1, 2: 2})
    assert choice.replica == 1 and choice.reason == "least loaded, 1 unfinished requests"


def test_idle_replicas_take_turns_at_new_beginnings():
    router = Router("prefix_aware")
    for i in range(6):
        choice = router.choose(hashes(i, i, i, i), {0: 0, 1: 0, 2: 0})
        assert choice.replica == i % 3
        router.sent(choice.replica, hashes(i, i, i, i))


def test_a_known_beginning_goes_where_it_was_computed():
    router = Router("prefix_aware")
    router.sent(1, hashes(*SYSTEM, 1, 2, 3, 4))
    choice = router.choose(hashes(*SYSTEM, 9, 9, 9, 9, 9), {0: 0, 1: 4})
    assert (choice.replica, choice.num_matched_blocks, choice.reason) == (1, 3, "holds 3 of its 4 blocks")
    assert router.choose(hashes(*range(8)), {0: 2, 1: 4}).replica == 0


def test_the_longest_match_wins_and_a_match_later_in_the_prompt_is_none():
    router = Router()
    router.sent(0, hashes(*SYSTEM))
    router.sent(1, hashes(*SYSTEM, 1, 2, 3, 4))
    assert router.choose(hashes(*SYSTEM, 1, 2, 3, 4), {0: 0, 1: 0}).replica == 1
    assert router.num_matched_blocks(1, hashes(7, *SYSTEM)) == 0



def test_an_overloaded_replica_is_passed_over_and_the_reason_says_so():
    router = Router(max_imbalance=2)
    router.sent(0, hashes(*SYSTEM))
    assert router.choose(hashes(*SYSTEM), {0: 3, 1: 1}).replica == 0
    choice = router.choose(hashes(*SYSTEM), {0: 4, 1: 1})
    assert choice.replica == 1
    assert "replica 0 holds 3 of its blocks but has 4 unfinished requests, over 2 more" in choice.reason


def test_the_note_is_bounded_and_forgets_tails_before_beginnings():
    router = Router(max_blocks=3)
    router.sent(0, hashes(*SYSTEM, 1, 2, 3, 4, 5, 6, 7, 8))
    assert router.num_matched_blocks(0, hashes(*SYSTEM, 1, 2, 3, 4)) == 3
    router.sent(0, hashes(*range(12)))
    assert router.num_matched_blocks(0, hashes(*SYSTEM)) == 0


def test_a_replica_that_ended_is_forgotten():
    router = Router()
    router.sent("gone", hashes(*SYSTEM))
    router.forget("gone")
    router.forget("never there")
    assert router.choose(hashes(*SYSTEM), {"new": 0}).num_matched_blocks == 0


@pytest.mark.parametrize("settings, text", [
    (dict(policy="random"), "policy='random': must be one of round_robin, least_loaded, prefix_aware"),
    (dict(max_imbalance=-1), "max_imbalance=-1: must be a whole number, 0 or more"),
    (dict(max_blocks=0), "max_blocks=0: must be a whole number, 1 or more")])
def test_bad_settings_are_named(settings, text):
    with pytest.raises(ValueError) as error:
        Router(**settings)
    assert text in str(error.value)


def test_no_replica_is_an_error():
    with pytest.raises(ValueError, match=r"loads=\{\}"):
        Router().choose([], {})


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(0, 6))
def test_imbalance_stays_within_its_bound(seed, num_replicas, max_imbalance):
    """Requests of few beginnings come and go at random: no choice ever falls on an overloaded replica."""
    draw, router = Random(seed), Router(max_imbalance=max_imbalance)
    loads = Counter({i: 0 for i in range(num_replicas)})
    for _ in range(200):
        prompt = hashes(*([draw.randrange(3)] * BLOCK * 2), *(draw.randrange(9) for _ in range(BLOCK)))
        choice = router.choose(prompt, loads)
        assert loads[choice.replica] <= min(loads.values()) + max_imbalance
        allowed = [i for i in loads if loads[i] <= min(loads.values()) + max_imbalance]
        assert choice.num_matched_blocks == max(router.num_matched_blocks(i, prompt) for i in allowed)
        router.sent(choice.replica, prompt)
        loads[choice.replica] += 1
        for replica in [i for i in loads if loads[i] and draw.random() < 0.3]:
            loads[replica] -= 1

"""Drafting by itself: what is kept, how many are made, what is looked up, and what becomes of a drafter that misbehaves."""

import random

import numpy as np
import pytest

from nanovllm.engine.drafts import Drafter, num_accepted
from nanovllm.engine.drafts_control import Speculation, best_length
from nanovllm.engine.drafts_ngram import NgramDrafter, NgramIndex
from nanovllm.engine.sequence import Sequence
from nanovllm.errors import InvalidArgument
from nanovllm.sampling_params import SamplingParams
from nanovllm.speculative_config import SpeculativeConfig

from .fake_model import FakeDrafter, make_engine, next_token


def alone(prompt, num_tokens):
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt):]


@pytest.mark.parametrize("drafts, drawn, kept", [
    ([], [5], 0), ([5], [5, 6], 1), ([5], [4, 6], 0), ([5, 6, 7], [5, 6, 7, 8], 3), ([5, 6, 7], [5, 9, 7, 8], 1)])
def test_what_follows_the_first_wrong_draft_is_not_kept(drafts, drawn, kept):
    assert num_accepted(drafts, drawn) == kept


def test_as_many_drafts_as_pay():
    assert best_length(0.0, 0.05, 8) == 0 and best_length(0.04, 0.05, 8) == 0
    assert best_length(1.0, 0.05, 8) == 8 and best_length(0.9, 0.0, 8) == 8
    for cost in (0.02, 0.1, 0.3):
        lengths = [best_length(a / 20, cost, 16) for a in range(21)]
        assert lengths == sorted(lengths) and lengths[0] == 0 and lengths[-1] == 16

        def speed(k, a=0.7, c=cost):
            return sum(a**i for i in range(k + 1)) / (1 + k * c)
        assert best_length(0.7, cost, 16) == max(range(17), key=speed)


def longest_match(tokens, shortest, longest):
    """Slowly: where the longest run that ends the text stood last."""
    for n in range(longest, shortest - 1, -1):
        for end in range(len(tokens) - 1, n - 1, -1):
            if len(tokens) >= n and tokens[end - n:end] == tokens[-n:]:
                return end
    return None


@pytest.mark.parametrize("shortest, longest", [(1, 1), (1, 3), (2, 4), (3, 5)])
def test_look_up_finds_what_a_search_of_the_whole_text_finds(shortest, longest):
    rng, found = random.Random(0), 0
    for _ in range(60):
        index, tokens = NgramIndex(shortest, longest), []
        for _ in range(rng.randint(1, 12)):
            tokens += [rng.randrange(4) for _ in range(rng.randint(1, 8))]
            end, limit = longest_match(tokens, shortest, longest), rng.randint(1, 6)
            expected = []
            if end is not None:
                period = len(tokens) - end
                expected = [(tokens[end:] * (limit // period + 1))[i] for i in range(limit)]
                found += 1
            if rng.random() < 0.5:  # either may come first
                assert index.finds(tokens) == bool(expected)
            assert index.propose(tokens, limit) == expected
            assert index.finds(tokens) == bool(expected)
    assert found >= 60


def test_a_look_up_costs_the_same_in_a_long_text():
    """Counted, not timed: entries are made once."""
    index, tokens = NgramIndex(2, 4), [i % 977 for i in range(5000)]
    index.propose(tokens, 4)
    entered = []

    class Counting(dict):
        def __setitem__(self, key, value):
            entered.append(key)
            super().__setitem__(key, value)

    index._ends = {n: Counting(ends) for n, ends in index._ends.items()}
    tokens += [1, 2]
    index.propose(tokens, 4)
    assert len(entered) == 2 * 3


def test_right_drafts_save_steps_and_every_token_has_a_time():
    engine = make_engine(drafter=FakeDrafter(1.0), speculative_config=SpeculativeConfig(num_speculative_tokens=4))
    engine.speculation.drafter.random.random = lambda: 0.0  # always right, always as many as it may
    seq = engine.add_request([1, 2, 3], SamplingParams(max_tokens=21))
    while engine.has_unfinished:
        engine.step()
        engine.check_integrity()
    assert seq.output_token_ids == alone([1, 2, 3], 21) and len(seq.token_times) == 21
    assert engine.num_steps == 1 + 4 and seq.num_drafted_tokens == seq.num_accepted_tokens == 16
    assert engine.speculation.counts.by_position == [[4, 4]] * 4


def test_wrong_drafts_stop_and_are_tried_again():
    engine = make_engine(drafter=FakeDrafter(0.0), speculative_config=SpeculativeConfig(), num_blocks=200)
    seq = engine.add_request([1, 2, 3], SamplingParams(max_tokens=300))
    while engine.has_unfinished:
        engine.step()
    assert seq.output_token_ids == alone([1, 2, 3], 300)
    assert 10 <= seq.num_drafted_tokens <= 100, "four drafts in each of 300 steps would be 1200"


def test_no_drafts_where_many_run_and_few_where_some_do():
    settings = SpeculativeConfig(disable_by_batch_size=8)
    engine = make_engine(drafter=FakeDrafter(1.0), num_blocks=400, speculative_config=settings)
    most, drafted = {}, engine.scheduler.schedule
    for n in (1, 2, 4, 7, 8, 20):
        sequences = [engine.add_request([i, n], SamplingParams(max_tokens=30)) for i in range(n)]
        seen = []
        engine.scheduler.schedule = lambda s=seen: (b := drafted(), s.append([item.num_drafts for item in b.items]))[0]
        while all(not seq.is_finished for seq in sequences):
            engine.step()
        engine.scheduler.schedule = drafted
        most[n] = max(map(sum, seen))
        while engine.has_unfinished:
            engine.step()
    assert most[8] == most[20] == 0 and 3 <= most[1] <= 4 and most[4] <= 8 and most[7] <= 8 and most[2] >= 4


class Raises(Drafter):
    def propose(self, sequences, limits):
        raise OSError("the phone book is lost")


class Says(Drafter):
    def __init__(self, proposals):
        self.proposals = proposals

    def propose(self, sequences, limits):
        return self.proposals


@pytest.mark.parametrize("drafter, message", [
    (Raises(), "OSError: the phone book is lost"), (Says(None), "it must be 1 lists"), (Says([]), "it must be 1 lists"),
    (Says([[1] * 99]), "at most 4 tokens"), (Says([[5000]]), r"token 5000: it must be a whole number in \[0, 1000\)"),
    (Says([[-1]]), "token -1"), (Says([[True]]), "token True"), (Says([["a"]]), "token 'a'"), (Says([7]), "at most 4 tokens")])
def test_a_drafter_that_raises_costs_the_request_nothing_but_its_drafts(drafter, message):
    engine = make_engine(drafter=drafter)
    seq = engine.add_request([1, 2, 3], SamplingParams(max_tokens=12))
    with pytest.warns(RuntimeWarning, match=f"{message}.*go on without drafts"):
        while engine.has_unfinished:
            engine.step()
            engine.check_integrity()
    assert seq.output_token_ids == alone([1, 2, 3], 12) and seq.num_drafted_tokens == 0
    assert engine.speculation.num_failures == 1
    assert engine.block_manager.num_free_blocks == engine.block_manager.num_blocks


@pytest.mark.parametrize("method", ["likely", "follow", "overwrite", "catch_up", "forget"])
@pytest.mark.parametrize("can_be_shown", [True, False])
def test_where_the_device_drafts_a_drafter_that_raises_costs_no_step(method, can_be_shown):
    def lost(*args):
        raise OSError("lost")

    drafter = FakeDrafter(0.9)
    setattr(drafter, method, lost)
    if not can_be_shown:
        drafter.__class__ = type("Shy", (FakeDrafter,), {"__repr__": lost})
    engine = make_engine(drafter=drafter, ahead=0.9)
    seq = engine.add_request([1, 2, 3], SamplingParams(max_tokens=40))
    drafter.known.add(seq.seq_id)  # as `likely` would have noted
    with pytest.warns(RuntimeWarning, match="raised OSError: lost"):
        while engine.has_unfinished:
            engine.step()
            engine.check_integrity()
    assert seq.output_token_ids == alone([1, 2, 3], 40)
    assert engine.speculation.num_failures == 1 and engine.num_failed_steps == 0
    assert engine.block_manager.num_free_blocks == engine.block_manager.num_blocks


@pytest.mark.parametrize("lengths", [(5, 2), (0, 2), (1.5, 2), (True, 2)], ids=str)
def test_lengths_of_runs_that_are_none_are_refused(lengths):
    with pytest.raises(InvalidArgument, match="shortest, longest"):
        NgramDrafter(*lengths)


def test_an_interrupted_drafter_leaves_no_drafts_behind():
    engine = make_engine(drafter=FakeDrafter(1.0), num_blocks=8, block_size=1)
    seq = engine.add_request([1, 2, 3], SamplingParams(max_tokens=5))
    engine.step()
    propose, engine.speculation.drafter.propose = engine.speculation.drafter.propose, Says(None).proposals

    def interrupted(sequences, limits):
        raise KeyboardInterrupt

    engine.speculation.drafter.propose = interrupted
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.check_integrity()
    assert seq.draft_token_ids == [] and len(seq.block_table) == len(seq)
    engine.speculation.drafter.propose = propose
    while engine.has_unfinished:
        engine.step()
    assert seq.output_token_ids == alone([1, 2, 3], 5)


def test_notes_are_dropped_with_the_sequence():
    drafter = NgramDrafter(1, 2)
    engine = make_engine(drafter=drafter)
    sequences = [engine.add_request([i, i, i, i], SamplingParams(max_tokens=9)) for i in range(3)]
    for _ in range(3):
        engine.step()
    assert len(drafter._indexes) == 3
    engine.abort(sequences[0].seq_id)
    assert len(drafter._indexes) == 2
    while engine.has_unfinished:
        engine.step()
    assert not drafter._indexes and not engine.speculation._records


def test_ends_inside_a_draft_count():
    """A stop token, and max_tokens, in the middle of drafts that are all right."""
    tokens = alone([1, 2, 3], 12)
    for stop_at in range(1, 9):
        if tokens[stop_at] in tokens[:stop_at]:
            continue
        engine = make_engine(drafter=FakeDrafter(1.0))
        seq = engine.add_request([1, 2, 3], SamplingParams(max_tokens=12, stop_token_ids=[tokens[stop_at]]))
        other = engine.add_request([1, 2, 3], SamplingParams(max_tokens=stop_at))
        while engine.has_unfinished:
            engine.step()
        assert seq.output_token_ids == tokens[:stop_at + 1] and seq.finish_reason == "stop"
        assert other.output_token_ids == tokens[:stop_at] and other.finish_reason == "length"
        assert seq.num_accepted_tokens <= seq.num_drafted_tokens and len(seq.token_times) == stop_at + 1


@pytest.mark.parametrize("settings, message", [
    ({"method": "ngram", "num_speculative_tokens": 0}, r"\['num_speculative_tokens'\]=0: must be a whole number from 1 to 16"),
    ({"method": "ngram", "num_speculative_tokens": 99}, "=99"), ({"method": "ngram", "num_speculative_tokens": True}, "=True"),
    ({"method": "eagle", "model": "x"}, "'eagle': must be one of"), ({"method": "draft_model"}, r"\['model'\]=None"),
    ({"method": "ngram", "model": "x"}, r"\['model'\]='x'"), ({"method": "ngram", "prompt_lookup_max": 0}, "prompt_lookup_max"),
    ({"method": "ngram", "prompt_lookup_min": 5, "prompt_lookup_max": 3}, "prompt_lookup_min"),
    ({"method": "ngram", "prompt_lookup_min": 0}, r"\['prompt_lookup_min'\]=0: "),
    ({"method": "ngram", "prompt_lookup_min": 99}, r"\['prompt_lookup_min'\]=99: "),
    ({"method": "ngram", "num_spec_tokens": 3}, "did you mean 'num_speculative_tokens'"), (["ngram"], "must be a dict"),
    ({"method": "ngram", 4: "tokens"}, "keyword=4: must be one of"), ({"method": np.array(["ngram"] * 2)}, r"\['method'\]="),
    ({"model": 5}, r"\['model'\]=5: must be a folder"), ({"model": ""}, r"\['model'\]='': must be a folder"),
    ({"method": "ngram", "disable_by_batch_size": 0}, "disable_by_batch_size")])  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        SpeculativeConfig.of(settings)


def test_one_length_of_runs_stands_for_both():
    assert SpeculativeConfig.of({"method": "ngram"}).lookup_lengths == (2, 4)
    assert SpeculativeConfig.of({"method": "ngram", "prompt_lookup_max": 3}).lookup_lengths == (3, 3)
    assert SpeculativeConfig.of({"method": "ngram", "prompt_lookup_min": 3}).lookup_lengths == (3, 3)
    assert SpeculativeConfig.of({"model": "somewhere"}).method == "draft_model"


def test_numbers_may_be_numpys():
    settings = SpeculativeConfig.of({"method": "ngram", "num_speculative_tokens": np.int64(3), "prompt_lookup_max": np.int8(5)})
    assert settings == SpeculativeConfig(method="ngram", num_speculative_tokens=3, prompt_lookup_max=5)
    assert type(settings.num_speculative_tokens) is int


def test_two_hundred_and_fifty_six_sequences_are_not_even_looked_at():
    """The cost with speculation off by batch size: no sequence is touched."""
    engine = make_engine(drafter=Raises(), num_blocks=4000)
    for i in range(256):
        engine.add_request([i], SamplingParams(max_tokens=3))
    engine.step()

    class Untouchable(Sequence):
        __slots__ = ()

        @property
        def num_uncomputed_tokens(self):
            raise AssertionError("looked at")

    running = engine.scheduler.running
    engine.scheduler.running = [Untouchable(i, [1]) for i in range(256)]
    assert not engine.speculation.is_wanted and engine.speculation.propose() is None
    engine.scheduler.running = running


def test_drafting_says_what_it_is():
    engine = make_engine(drafter=NgramDrafter())
    assert repr(engine.speculation) == ("Speculation(NgramDrafter(runs of 2 to 4 tokens, 0 sequences), at most 4 drafts, "
                                        "0 of 0 accepted)")
    assert isinstance(engine.speculation, Speculation)

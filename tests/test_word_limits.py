"""Tokens and words that a request may or must not write, and salts that keep its cached blocks apart."""

import warnings

import pytest

from nanovllm import LLM, SamplingParams
from nanovllm.engine.salted_sequence import SaltedSequence
from nanovllm.engine.sequence import Sequence
from nanovllm.errors import InvalidRequest

from .checkpoints import random_checkpoint

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79]
MODES = {"step by step": dict(async_scheduling=False), "looking ahead": dict(async_scheduling=True),
         "under pressure": dict(kvcache_block_size=2, num_kvcache_blocks=28, max_num_batched_tokens=9),
         "with drafts": dict(speculative_config={"method": "ngram", "num_speculative_tokens": 3}),
         "on two ranks": dict(tensor_parallel_size=2)}
DRAWS = {"greedy": dict(temperature=0), "drawn": dict(temperature=1.5, seed=4),
         "filtered": dict(temperature=1.5, top_k=20, top_p=0.9, seed=4), "penalized": dict(temperature=0, presence_penalty=0.7)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("model"), eos_token_id=7)


@pytest.fixture(scope="module", params=MODES)
def llm(request, folder):
    with LLM(folder, device="cpu", **MODES[request.param]) as llm:
        yield llm
        llm.engine.check_integrity()


def tokens(llm, prompts=(PROMPT,), params=(), **fields):
    common = {"max_tokens": 14, "ignore_eos": True} | fields
    params = [SamplingParams(**common | each) for each in params or [{}] * len(prompts)]
    return [output.token_ids for output in llm.generate(list(prompts), params, use_tqdm=False)]


def test_nothing_but_what_is_allowed_is_drawn_and_neighbours_do_not_notice(llm):
    allowed, prompts = [2, 31, 32, 63, 64, 95], [PROMPT, PROMPT[::-1], PROMPT[2:]]
    for draw in DRAWS.values():
        plain = tokens(llm, prompts, **draw)
        limited, one, free = tokens(llm, prompts, [{"allowed_token_ids": allowed}, {"allowed_token_ids": [5]}, {}], **draw)
        assert set(limited) <= set(allowed) and len(set(limited)) > 1 and one == [5] * 14
        assert free == plain[2] and not set(plain[0]) <= set(allowed)
    every = tokens(llm, allowed_token_ids=list(range(96)), temperature=1.5, seed=4)
    assert every == tokens(llm, temperature=1.5, seed=4)


def test_the_end_of_a_bad_word_is_not_drawn_behind_its_beginning(llm):
    """Of what is written without them: its fifth token, its third pair, and the three tokens from the fourth on."""
    for draw in DRAWS.values():
        plain, = tokens(llm, **draw)
        for length, at in ((1, 4), (2, 2), (3, 3)):
            word = plain[at:at + length]
            found, other = tokens(llm, [PROMPT, PROMPT], [{"bad_words_ids": [word, [95, 94, 93, 92, 91]]}, {}], **draw)
            assert not any(found[i:i + length] == word for i in range(len(found))), (word, found)
            first = next(i for i in range(len(plain)) if plain[i:i + length] == word)
            assert found[:first + length - 1] == plain[:first + length - 1] and other == plain
    plain, = tokens(llm, temperature=0)
    begun_in_the_prompt = [[PROMPT[-1], plain[0]], [*PROMPT[-2:], plain[0]]]
    assert tokens(llm, temperature=0, bad_words_ids=begun_in_the_prompt)[0] == plain, "the prompt is no part of the answer"


def test_limits_meet(llm):
    word = tokens(llm, temperature=0, allowed_token_ids=[2, 31, 63])[0][:2]
    found, = tokens(llm, temperature=0, allowed_token_ids=[2, 31, 63], bad_words_ids=[word], logit_bias={40: 100})
    assert set(found) <= {2, 31, 63} and found[:2] != word
    ended, = tokens(llm, temperature=0, allowed_token_ids=[7, 9], min_tokens=5, ignore_eos=False)
    assert ended[:5] == [9] * 5


@pytest.mark.parametrize("fields, message", [
    (dict(allowed_token_ids=[]), "allowed_token_ids=.*one token id or more"),
    (dict(allowed_token_ids=5), "allowed_token_ids=5"),
    (dict(allowed_token_ids=[True]), "allowed_token_ids"), (dict(allowed_token_ids=[96]), "token id=96"),
    (dict(allowed_token_ids=[-1]), "allowed_token_ids"), (dict(allowed_token_ids=[2**63]), "token id="),
    (dict(bad_words=["a"]), "bad_words.*model without a tokenizer"), (dict(bad_words="a"), "bad_words='a': must be a list"),
    (dict(bad_words=[" "]), "bad_words="), (dict(bad_words=[5]), "bad_words="), (dict(bad_words_ids=[5]), "bad_words_ids="),
    (dict(bad_words_ids=[[]]), "bad_words_ids="), (dict(bad_words_ids=[[96]]), "token id=96"),
    (dict(bad_words_ids=[[1, -1]]), "bad_words_ids="), (dict(cache_salt=""), "cache_salt=''"),
    (dict(cache_salt=5), "cache_salt=5"),
    (dict(allowed_token_ids=[7], min_tokens=1, ignore_eos=False), "allowed_token_ids.*more than the tokens that end"),
    (dict(allowed_token_ids=[5, 6], bad_words_ids=[[5], [6]]), "allowed_token_ids.*more than")])
def test_limits_that_cannot_be_kept_are_refused_before_anything_is_queued(llm, fields, message):
    with pytest.raises(InvalidRequest, match=message):
        tokens(llm, [PROMPT, PROMPT], [{}, fields])
    assert not llm.engine.has_unfinished


@pytest.fixture(scope="module")
def offline():
    with LLM(device="cpu", num_kvcache_blocks=200, kvcache_block_size=4) as llm:
        yield llm


def test_bad_words_are_texts(offline):
    greedy = dict(temperature=0, max_tokens=40, ignore_eos=True)
    plain = offline.generate("Once upon a time a fox", SamplingParams(**greedy), use_tqdm=False)[0].text
    words = [word for word in plain.replace(".", " ").replace(",", " ").split() if len(word) > 2][2:5]
    found = offline.generate("Once upon a time a fox", SamplingParams(bad_words=words, **greedy), use_tqdm=False)[0].text
    assert found != plain and not any(f" {word} " in f" {found} " for word in words), (words, found)
    with pytest.raises(InvalidRequest, match="half of a surrogate pair"):
        offline.generate("A fox", SamplingParams(bad_words=["\ud800"]), use_tqdm=False)
    with pytest.raises(InvalidRequest, match=r"bad_words=.*pass bad_words_ids"):
        offline.engine.add_request([5, 6], SamplingParams(bad_words=["fox"]))


def test_blocks_are_shared_by_those_of_one_salt_only(offline):
    prompt, greedy = "Tell me a story about a fox and a lantern, once upon a time.", dict(temperature=0, max_tokens=6)

    def ask(salt):
        output, = offline.generate(prompt, SamplingParams(cache_salt=salt, **greedy), use_tqdm=False)
        return output.num_cached_tokens, output.token_ids

    (none, plain), (found, again) = ask(None), ask(None)
    assert none == 0 < found and again == plain
    for salt in ("a", "b", "a" * 5000, "\ud800", "é"):
        (first, one), (second, other) = ask(salt), ask(salt)
        assert (first, second) == (0, found) and one == other == plain
    assert ask(None)[0] == found
    offline.engine.check_integrity()


def test_a_salted_hash_is_chained_and_computed_once():
    def hashes(salt, ids):
        return SaltedSequence(0, ids, SamplingParams(cache_salt=salt)).block_hashes(4)

    one, other = hashes("a", list(range(12))), hashes("b", list(range(12)))
    assert len({*one, *other, *Sequence(0, list(range(12))).block_hashes(4)}) == 9
    assert hashes("a", list(range(8))) == one[:2] and hashes("a", [9, *range(1, 12)])[1] != one[1]
    seq = SaltedSequence(0, list(range(7)), SamplingParams(cache_salt="a"))
    assert seq.block_hashes(4) == one[:1]
    seq.append_token(7)
    assert seq.block_hashes(4) == one[:2] and seq.block_hashes(4) is seq.block_hashes(4)


def test_a_request_that_forbids_every_token_is_told_so_and_others_keep_their_drafts(folder):
    """Whose next token cannot be drawn has no drafts from there on, and nobody else has fewer."""
    speculation = {"method": "draft_model", "model": folder, "num_speculative_tokens": 3}
    dead = SamplingParams(temperature=0, max_tokens=14, ignore_eos=True, allowed_token_ids=[5], bad_words_ids=[[5, 5, 5]])
    free = SamplingParams(temperature=0, max_tokens=14, ignore_eos=True)
    with LLM(folder, device="cpu", speculative_config=speculation) as llm, warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        llm.engine.speculation.drafter.cost = 0.01  # a model that drafts for itself would not pay
        alone, = llm.generate([PROMPT], free, use_tqdm=False)
        ended, beside = llm.generate([PROMPT[::-1], PROMPT], [dead, free], use_tqdm=False)
        llm.engine.check_integrity()
    assert (ended.finish_reason, ended.token_ids) == ("error", [5, 5])
    assert "output token 2 " in ended.error and "allowed_token_ids and bad_words leave no token" in ended.error
    assert beside.token_ids == alone.token_ids and alone.num_drafted_tokens > 0
    assert beside.num_drafted_tokens >= alone.num_drafted_tokens - 3

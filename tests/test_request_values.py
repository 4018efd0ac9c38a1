"""Every value that a request can carry is served, or refused before anything is queued: none fails inside a step."""

from dataclasses import fields, replace
from functools import partial
from types import MappingProxyType

import numpy as np
import pytest
import torch

from nanovllm import LLM, SamplingParams
from nanovllm.config import Config
from nanovllm.errors import InvalidRequest
from nanovllm.utils.numbers import as_token_ids, plain, shown

from .checkpoints import random_checkpoint

HUGE = 10**5000  # Python refuses to spell it
PROMPT = [3, 14, 15, 92]
each = partial(pytest.mark.parametrize, ids=lambda value: f"{value:.20}" if isinstance(value, str) else type(value).__name__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("model"), eos_token_id=7)


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(folder, device="cpu", num_kvcache_blocks=64) as llm:
        yield llm


def tokens(llm, prompts=(PROMPT,), **params):
    outputs = llm.generate(list(prompts), SamplingParams(**{"max_tokens": 8, "ignore_eos": True} | params), use_tqdm=False)
    assert not llm.engine.has_unfinished
    llm.engine.check_integrity()
    return [output.token_ids for output in outputs]


NUMBERS = ("temperature", "max_tokens", "top_k", "top_p", "min_p", "seed", "min_tokens", "n", "repetition_penalty",
           "presence_penalty", "frequency_penalty", "logprobs", "prompt_logprobs")
ODD = [HUGE, -HUGE, 2**63, 2**64, -2**63, 2**31, float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 1e39, 5e-324, True,
       "1", b"1", [1], None, {}, 1j, np.float64("nan"), np.float32(1e-45), np.int64(2**62), np.uint64(2**64 - 1),
       torch.tensor(float("inf")), object()]


@each("name", NUMBERS)
def test_an_odd_number_is_served_or_refused_before_it_is_queued(llm, name):
    """Beside a neighbour, who must never notice."""
    expected = tokens(llm, temperature=0)[0]
    neighbour, served = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True), 0
    for value in ODD:
        try:
            odd = SamplingParams(**{"max_tokens": 4, "ignore_eos": True, "seed": 1} | {name: value})
            outputs = llm.generate([PROMPT, PROMPT], [odd, neighbour], use_tqdm=False)
        except ValueError as error:
            assert name in str(error) and len(str(error)) < 2000, error
            assert not llm.engine.has_unfinished
            continue
        served += 1
        assert outputs[1].token_ids == expected
        assert all(0 <= token < 96 for sample in outputs[0].outputs for token in sample.token_ids)
    assert served < len(ODD)
    llm.engine.check_integrity()


@each("value", [2**63, 2**31, HUGE])
def test_top_k_beyond_any_vocabulary(llm, value):
    with pytest.raises(ValueError, match=r"top_k=.*must be a whole number in \[-1, 2\*\*31\)"):
        SamplingParams(top_k=value)
    assert tokens(llm, top_k=2**31 - 1, seed=4) == tokens(llm, top_k=96, seed=4)


@each("field, value", [("stop_token_ids", [96]), ("stop_token_ids", [2**63]), ("stop_token_ids", [HUGE]),
                                          ("logit_bias", {96: 1}), ("logit_bias", {2**63: 1}), ("logit_bias", {HUGE: 1})])
def test_tokens_outside_the_vocabulary(llm, field, value):
    with pytest.raises(ValueError, match="token id="):
        tokens(llm, min_tokens=2, **{field: value})


@each("value", [{-HUGE: 1}, {3: HUGE}, {True: 1}, {3: float("nan")}, {3: True}, {1.5: 1}, {None: 1},
                                   {(1,): 1}, "text", 5, [[3, 1]]])
def test_a_bias_that_is_none(value):
    with pytest.raises(ValueError, match="logit_bias"):
        SamplingParams(logit_bias=value)


def test_a_request_that_forbids_every_token(llm):
    with pytest.raises(ValueError, match=r"stop_token_ids.*fewer than all tokens"):
        tokens(llm, stop_token_ids=list(range(96)), min_tokens=1)
    with pytest.raises(ValueError, match=r"stop_token_ids.*fewer than all tokens"):
        tokens(llm, stop_token_ids=[token for token in range(96) if token != 7], min_tokens=1, ignore_eos=False)
    left, = tokens(llm, stop_token_ids=[token for token in range(96) if token not in (7, 8)], min_tokens=3, ignore_eos=False)
    assert left[:3] == [8, 8, 8]
    assert len(tokens(llm, logit_bias=dict.fromkeys(range(96), -100))[0]) == 8


# Numbers that leave float32.

@each("temperature", [1e-40, 5e-324, 1e-30, 1e-8, 9e-6, np.float64(1e-40), torch.tensor(1e-40)])
def test_a_temperature_that_float32_cannot_divide_by_is_greedy(llm, temperature):
    assert tokens(llm, temperature=temperature, seed=1) == tokens(llm, temperature=0)
    assert SamplingParams(temperature=temperature).greedy


@each("temperature", [1e-5, 1e-4, 1e-3])
def test_the_smallest_temperatures_draw_the_likeliest(llm, temperature):
    assert tokens(llm, temperature=temperature, seed=1) == tokens(llm, temperature=0)
    filters = dict(top_k=5, top_p=0.9, min_p=0.01)
    assert tokens(llm, temperature=temperature, seed=1, **filters) == tokens(llm, temperature=0)


@each("field, value", [("top_p", 5e-324), ("top_p", 1e-300), ("top_p", 1e-40), ("top_p", 1e-9),
                                          ("top_k", 1), ("min_p", 1.0)])
def test_a_filter_always_leaves_the_likeliest(llm, field, value):
    assert tokens(llm, seed=3, **{field: value}) == tokens(llm, temperature=0)


def test_filters_that_float32_rounds_to_nothing(llm):
    plainly = tokens(llm, seed=3)
    for field, value in (("top_p", 1 - 2**-53), ("top_p", 0.99999999), ("min_p", 5e-324), ("min_p", 1e-40)):
        assert tokens(llm, seed=3, **{field: value}) == plainly


def test_the_highest_temperature_is_still_a_draw(llm):
    drawn = tokens(llm, temperature=1e6, seed=1, max_tokens=60)[0]
    assert len(set(drawn)) > 25
    assert tokens(llm, temperature=1e6, seed=1, max_tokens=60, logit_bias={3: 100})[0] == drawn
    with pytest.raises(ValueError, match=r"temperature=1e\+39: must be a number in \[0, 1e\+06\]"):
        SamplingParams(temperature=1e39)


@each("penalty", [1e-6, 1e6])
@each("temperature", [0, 1e-5, 1e6])
def test_the_strongest_penalties_stay_finite(llm, penalty, temperature):
    with pytest.raises(ValueError, match="repetition_penalty"):
        SamplingParams(repetition_penalty=1e-40)
    for filters in ({}, dict(top_k=5, top_p=0.9)):
        drawn = tokens(llm, repetition_penalty=penalty, presence_penalty=2, frequency_penalty=-2, temperature=temperature,
                       seed=1, **filters)[0]
        assert len(drawn) == 8 and all(0 <= token < 96 for token in drawn)


# numpy and torch.

def test_numpys_and_torchs_numbers_are_kept_as_pythons():
    plainly = SamplingParams(temperature=0.5, max_tokens=9, top_k=5, top_p=0.5, min_p=0.25, seed=3, min_tokens=2, n=2,
                             repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.5, logprobs=2,
                             prompt_logprobs=1, stop_token_ids=[5, 6], logit_bias={3: 1.0}, ignore_eos=True,
                             skip_special_tokens=False, include_stop_str_in_output=True, stop=["a", "b"],
                             allowed_token_ids=[7, 8], bad_words=["c"], bad_words_ids=[[9, 10], [11, 12]], cache_salt="d")
    for make in (np.asarray, torch.tensor):
        brought = {}
        for field in fields(SamplingParams):
            value = getattr(plainly, field.name)
            if field.name in ("stop", "bad_words", "cache_salt"):
                brought[field.name] = np.array(value)
            elif field.name == "logit_bias":
                brought[field.name] = MappingProxyType({np.int64(3): make(1.0)})
            elif field.name == "structured_outputs":
                continue  # which is no number
            else:
                brought[field.name] = make(value)
        params = SamplingParams(**brought)
        assert params == plainly and hash(params) == hash(plainly)
        for field in fields(SamplingParams):
            assert type(getattr(params, field.name)) is type(getattr(plainly, field.name))
    assert SamplingParams(top_k=np.int64(5), stop_token_ids=[np.int32(5), np.uint8(6)]).stop_token_ids == (5, 6)
    assert replace(params, n=np.int64(1)).n == 1


@each("value", [np.array([1, 2]), np.array(2.5), np.float64(2), torch.tensor([3])])
def test_an_array_is_no_number(value):
    with pytest.raises(ValueError, match="top_k="):
        SamplingParams(top_k=value)


@each("prompt", [np.array(PROMPT), np.array(PROMPT, np.int32), torch.tensor(PROMPT), tuple(PROMPT),
                                    [np.int64(token) for token in PROMPT], [torch.tensor(token) for token in PROMPT],
                                    np.array(PROMPT, object), np.array(PROMPT, np.uint8)])
def test_a_prompt_of_any_kind_of_whole_numbers(llm, prompt):
    output, = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=8, ignore_eos=True), use_tqdm=False)
    assert output.token_ids == tokens(llm, temperature=0)[0]
    assert output.prompt_token_ids == PROMPT and all(type(token) is int for token in output.prompt_token_ids)
    seq = llm.engine.add_request(prompt, SamplingParams(max_tokens=1), priority=np.int64(1))
    assert seq.token_ids == PROMPT and type(seq.token_ids[0]) is int
    llm.engine.abort(seq.seq_id)


def test_arrays_of_prompts_and_priorities(llm):
    expected = tokens(llm, [PROMPT, PROMPT[::-1]], temperature=0)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    for prompts in (np.array([PROMPT, PROMPT[::-1]]), torch.tensor([PROMPT, PROMPT[::-1]]), (PROMPT, PROMPT[::-1])):
        for priority in (np.int64(1), np.array([1, -1]), [np.int32(1), -1], (1, 2), torch.tensor([0, 1])):
            outputs = llm.generate(prompts, params, use_tqdm=False, priority=priority)
            assert [output.token_ids for output in outputs] == expected


@each("priority", [1.5, float("nan"), True, "1", None, 101, HUGE, [0.5], [True], np.array(1.5), [[1]]])
def test_a_priority_that_is_none(llm, priority):
    with pytest.raises(ValueError, match="priority"):
        llm.generate([PROMPT], use_tqdm=False, priority=priority)
    assert not llm.engine.has_unfinished


@each("prompt", [None, b"text", bytearray(b"a"), {"prompt": "a"}, {1, 2}, 1.5, object(), [None], ["a"], [1.0],
                                    [True, 2], [[1, 2]], np.array([1.5]), np.array([True]), [2**63], [HUGE], [-1], [96], [],
                                    np.array([]), (token for token in PROMPT)])
def test_a_prompt_that_is_none_is_named_and_harms_no_other(llm, prompt):
    with pytest.raises(ValueError, match=r"prompt|token id"):
        llm.generate([PROMPT, prompt], use_tqdm=False)
    assert not llm.engine.has_unfinished


@each("prompts", [None, 5, b"text", {"prompt": "a"}, {"a"}, np.array(5), np.array(PROMPT), PROMPT,
                                     [np.int64(1)], torch.tensor(PROMPT), object()])
def test_prompts_that_are_none(llm, prompts):
    with pytest.raises(ValueError, match="prompts="):
        llm.generate(prompts, use_tqdm=False)


@each("params", ["greedy", {"temperature": 0}, 5, [None, None, None], [{"n": 1}]])
def test_sampling_params_that_are_none(llm, params):
    with pytest.raises(ValueError, match="sampling_params"):
        llm.generate([PROMPT], params, use_tqdm=False)


def test_settings_may_be_numpys_and_only_what_they_say(folder):
    config = Config(folder, device="cpu", max_num_seqs=np.int64(4), gpu_memory_utilization=np.float64(0.5), seed=np.int64(3),
                    enforce_eager=np.bool_(True), max_model_len=torch.tensor(64))
    assert (config.max_num_seqs, config.gpu_memory_utilization, config.seed, config.max_model_len) == (4, 0.5, 3, 64)
    assert config.enforce_eager is True and type(config.max_num_seqs) is int
    for setting in (dict(max_num_seqs=True), dict(max_num_seqs=4.0), dict(max_model_len=-HUGE), dict(seed=1.5), dict(seed="a"),
                    dict(gpu_memory_utilization=float("nan")), dict(gpu_memory_utilization=True),
                    dict(gpu_memory_utilization=HUGE),
                    dict(worker_timeout=float("inf")), dict(enforce_eager="no"), dict(enable_prefix_caching=None),
                    dict(async_scheduling=1), dict(dtype=[1]), dict(kvcache_block_size=np.array([16]))):
        with pytest.raises(ValueError, match=next(iter(setting))):
            Config(folder, device="cpu", **setting)


# Texts.

@pytest.fixture(scope="module")
def offline():
    with LLM(device="cpu", num_kvcache_blocks=64) as llm:
        yield llm


@each("text, at", [("a \ud83d b", 2), ("\udc00", 0), ("ab\ud83d\ud83d", 2), ("x" * 1000 + "\udfff", 1000)])
def test_half_of_a_surrogate_pair_is_no_character(offline, text, at):
    for call in (offline.generate, lambda prompts: list(offline.stream(prompts))):
        with pytest.raises(InvalidRequest, match=rf"prompt='.*the one at {at} is half of a surrogate pair.*errors='replace'"):
            call(["A fox", text])
    with pytest.raises(InvalidRequest, match="half of a surrogate pair"):
        offline.chat([{"role": "user", "content": text}], use_tqdm=False)
    assert not offline.engine.has_unfinished


@each("text", ["\x00", "\ufeff", "\ufffd", "\U0010ffff", "a\u0301" * 5, "\u202e", " ", "\r\n"])
def test_odd_characters_are_characters(offline, text):
    assert len(offline.generate(text, SamplingParams(max_tokens=3, ignore_eos=True), use_tqdm=False)[0].token_ids) == 3


def test_texts_may_be_numpys(offline):
    params = SamplingParams(temperature=0, max_tokens=5)
    expected = [output.text for output in offline.generate(["A fox", "A hen"], params, use_tqdm=False)]
    assert [output.text for output in offline.generate(np.array(["A fox", "A hen"]), params, use_tqdm=False)] == expected


def test_every_stream_of_several_prompts_says_whose_piece_it_is(offline):
    params = SamplingParams(temperature=0, max_tokens=6)
    expected = [output.text for output in offline.generate(["A fox", "A hen"], params, use_tqdm=False)]
    for prompts in (["A fox", "A hen"], ("A fox", "A hen"), np.array(["A fox", "A hen"])):
        texts = ["", ""]
        for index, piece in offline.stream(prompts, params):
            texts[index] += piece
        assert texts == expected
    assert "".join(piece for _, piece in offline.stream(("A fox",), params)) == expected[0]
    assert "".join(offline.stream("A fox", params)) == "".join(offline.stream(np.str_("A fox"), params)) == expected[0]


# The helpers.

@each("value", [HUGE, -HUGE, "x" * 10**6, b"x" * 10**6, list(range(10**5)), {"a": "x" * 10**6},
                                   dict.fromkeys(range(10**4)), [HUGE], {HUGE}, ["x" * 10**5] * 100, np.zeros(10**6)])
def test_whatever_is_shown_in_a_message_is_short(value):
    assert 0 < len(shown(value)) < 1000


def test_plain_and_token_ids():
    assert plain(np.array([[1, 2]])) == [[1, 2]] and type(plain(np.float32(0.5))) is float and plain("text") == "text"
    assert as_token_ids(np.array([1, 2])) == [1, 2] and as_token_ids(range(3)) == [0, 1, 2]
    prompt = [1, 2]
    assert as_token_ids(prompt) is not prompt
    with pytest.raises(InvalidRequest, match=r"token id=1\.5"):
        as_token_ids([1, 1.5])

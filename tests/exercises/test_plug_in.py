"""The reader's own classes serve in the real engine: here the solutions stand in for the reader."""

import pytest

from chapters.exercises import ch02, ch03, ch04, ch05, ch09, ch10, ch12
from chapters.exercises.solutions import ch02 as solved02
from chapters.exercises.solutions import ch03 as solved03
from chapters.exercises.solutions import ch04 as solved04
from chapters.exercises.solutions import ch05 as solved05
from chapters.exercises.solutions import ch09 as solved09
from chapters.exercises.solutions import ch10 as solved10
from chapters.exercises.solutions import ch12 as solved12
from nanovllm import LLM

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [20, 21, 22], [5, 6, 7, 8, 9, 10]]
LONG = [list(range(start, start + 50)) for start in (5, 70, 140)]


def test_the_manager_of_chapter_02_serves_under_pressure():
    assert "the same texts" in ch02.serve_with(ch02.as_block_manager(solved02.MyBlocks), PROMPTS, num_blocks=6)


def test_the_eviction_policy_of_chapter_03_changes_no_text():
    told = ch03.serve_with(solved03.choose_victim, [*LONG, LONG[0]])
    assert "the texts of an engine without a cache" in told and " 0 evictions" not in told


def test_the_schedulers_of_chapter_04_change_no_text():
    for scheduler_cls in (solved04.MyScheduler, solved04.ShortFirst):
        assert "each text is what it is alone" in ch04.serve_with(scheduler_cls, PROMPTS)


def test_the_admission_of_chapter_05_serves_in_a_small_cache():
    assert "each text is what it is alone" in ch05.serve_with(solved05.MyAdmission, LONG)


def test_the_tensors_of_chapter_09_feed_the_engine():
    assert "the same texts" in ch09.serve_with(solved09.prepare, LONG)


def test_the_samplers_of_chapter_10_draw_the_same_alone_and_in_company():
    told = ch10.serve_with(ch10.TopPSampler(solved10.keep_top_p), PROMPTS, same_as_ours=True)
    assert "what the finished sampler draws" in told and " 0 preemptions" not in told
    assert "each text what it is alone" in ch10.serve_with(solved10.MySampler(), PROMPTS)


def test_a_sampler_with_one_generator_for_all_is_found_out():
    def hands_out_numbers_in_order(logits, batch):
        return logits.softmax(-1).multinomial(1)[:, 0]

    with pytest.raises(RuntimeError, match="in company"):
        ch10.serve_with(hands_out_numbers_in_order, PROMPTS)


def test_the_stop_strings_of_chapter_12_end_the_engines_chats():
    with LLM(device="cpu") as llm:
        prompts = [llm.tokenizer.encode(f"Tell me a story about a {who}.") for who in ("fox", "hen", "bear")]
        assert "the same texts" in ch12.serve_with(solved12.MyStop, llm, prompts)

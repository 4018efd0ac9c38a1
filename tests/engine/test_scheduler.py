import subprocess
import sys

import pytest

from nanovllm.engine.sequence import Sequence, SequenceStatus
from nanovllm.sampling_params import SamplingParams

from .fake_model import make, next_token, step


def seq(seq_id, prompt, max_tokens=4, **params):
    return Sequence(seq_id, prompt, SamplingParams(max_tokens=max_tokens, **params))


def alone(prompt, num_tokens):
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt):]


def run_all(scheduler, runner, sequences, limit=2000):
    for s in sequences:
        scheduler.add(s)
    batches = []
    while scheduler.has_unfinished:
        batches.append(step(scheduler, runner)[0])
        assert len(batches) < limit, "the scheduler goes round in circles"
    return batches


def test_one_request_prefills_then_decodes():
    scheduler, runner = make()
    s = seq(0, [1, 2, 3, 4, 5], max_tokens=3)
    batches = run_all(scheduler, runner, [s])
    assert [b.num_tokens for b in batches] == [5, 1, 1]
    assert s.output_token_ids == alone([1, 2, 3, 4, 5], 3) and s.finish_reason == "length"
    assert scheduler.block_manager.num_free_blocks == 64


def test_running_requests_advance_every_step_defect_14():
    scheduler, runner = make(max_num_batched_tokens=8)
    early = seq(0, [1, 2], max_tokens=30)
    scheduler.add(early)
    step(scheduler, runner)
    for i in range(1, 6):
        scheduler.add(seq(i, list(range(20 * i, 20 * i + 20))))
    for expected in range(2, 30):
        step(scheduler, runner)
        assert early.num_output_tokens == expected


def test_any_prompt_may_be_chunked_and_unfinished_chunks_are_not_sampled_defect_15():
    scheduler, runner = make(max_num_batched_tokens=6, caching=False)
    a, b = seq(0, list(range(10))), seq(1, list(range(50, 59)))
    scheduler.add(a), scheduler.add(b)
    first, _ = step(scheduler, runner)
    second, _ = step(scheduler, runner)
    assert [(i.seq.seq_id, i.start, i.num_tokens, i.samples) for i in first.items] == [(0, 0, 6, False)]
    assert [(i.seq.seq_id, i.start, i.num_tokens, i.samples) for i in second.items] == [(0, 6, 4, True), (1, 0, 2, False)]
    third, _ = step(scheduler, runner)
    assert [(i.seq.seq_id, i.is_decode) for i in third.items] == [(0, True), (1, False)]


def test_cap_on_running_sequences_defect_11():
    scheduler, runner = make(max_num_seqs=2)
    for i in range(4):
        scheduler.add(seq(i, [i + 1] * 5))
    while scheduler.has_unfinished:
        step(scheduler, runner)
        assert len(scheduler.running) <= 2


def test_a_budget_below_max_num_seqs_still_gives_everyone_a_token():
    scheduler, runner = make(max_num_seqs=100, max_num_batched_tokens=3)
    sequences = [seq(i, [i, i + 1], max_tokens=6) for i in range(8)]
    for batch in run_all(scheduler, runner, sequences):
        assert batch.num_tokens <= 3
    assert all(s.output_token_ids == alone(s.prompt_token_ids, 6) for s in sequences)


def test_same_prompt_twice_in_one_step_is_stored_once_defect_13():
    scheduler, runner = make()
    a, b = seq(0, list(range(12))), seq(1, list(range(12)))
    scheduler.add(a), scheduler.add(b)
    batch, _ = step(scheduler, runner)
    assert [i.seq.seq_id for i in batch.items] == [0] and "being computed" in batch.left_waiting[1]
    batch, _ = step(scheduler, runner)
    assert [(i.seq.seq_id, i.num_tokens) for i in batch.items] == [(0, 1), (1, 1)]
    assert b.num_cached_tokens == 12 and b.block_table[:3] == a.block_table[:3]


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_prefix_hits_over_many_blocks_give_the_same_tokens_defect_27(block_size):
    scheduler, runner = make(num_blocks=400 // block_size, block_size=block_size)
    shared = list(range(70))
    sequences = [seq(i, shared + [100 + i] * i, max_tokens=10) for i in range(4)]
    sequences += [seq(9, shared, max_tokens=10)]
    run_all(scheduler, runner, sequences)
    assert sum(s.num_cached_tokens for s in sequences) > 200 // block_size
    for s in sequences:
        assert s.output_token_ids == alone(s.prompt_token_ids, 10)


def test_preemption_newest_first_and_the_same_tokens_after_it():
    scheduler, runner = make(num_blocks=9, block_size=2, caching=False)
    sequences = [seq(i, [10 * i + 1, 10 * i + 2], max_tokens=12) for i in range(3)]
    batches = run_all(scheduler, runner, sequences)
    order = [s.seq_id for b in batches for s in b.preempted]
    assert order and order[0] == 2 and sequences[0].num_preemptions == 0
    assert scheduler.num_preemptions == len(order)
    for s in sequences:
        assert s.output_token_ids == alone(s.prompt_token_ids, 12)


def test_reserve_keeps_admission_from_causing_preemption_defect_16():
    scheduler, runner = make(num_blocks=32, block_size=4, caching=False, max_num_batched_tokens=64)
    sequences = [seq(i, [i] * 16, max_tokens=8) for i in range(16)]
    batches = run_all(scheduler, runner, sequences)
    computed = sum(b.num_tokens for b in batches)
    assert computed <= 1.25 * 16 * (16 + 7) and scheduler.num_preemptions <= 4


def test_a_lone_request_may_fill_the_whole_cache():
    scheduler, runner = make(num_blocks=4, block_size=4)
    s = seq(0, list(range(9)), max_tokens=8)  # 17 tokens, of which the last is never cached
    run_all(scheduler, runner, [s])
    assert s.output_token_ids == alone(list(range(9)), 8) and s.num_preemptions == 0


def test_what_can_never_fit_is_refused_and_others_are_unharmed_defects_4_and_5():
    scheduler, runner = make(num_blocks=4, block_size=4)
    good = seq(0, [1, 2, 3])
    scheduler.add(good)
    with pytest.raises(ValueError, match=r"prompt \+ max_tokens=18: must be at most 17 tokens.*raise num_kvcache_blocks"):
        scheduler.add(seq(1, list(range(9)), max_tokens=9))
    run_all(scheduler, runner, [])
    assert good.output_token_ids == alone([1, 2, 3], 4)


def test_length_stops_at_max_model_len_defect_6():
    scheduler, runner = make(max_model_len=8)
    s = seq(0, [1, 2, 3, 4, 5], max_tokens=50)
    run_all(scheduler, runner, [s])
    assert len(s) == 8 and s.finish_reason == "length"
    with pytest.raises(ValueError, match="prompt length=8: must be below max_model_len=8"):
        scheduler.add(seq(1, list(range(8))))
    with pytest.raises(ValueError, match="prompt length=0"):
        scheduler.add(seq(1, []))


def test_stop_tokens_and_ignore_eos_defect_26():
    prompt = [1, 2, 3]
    tokens = alone(prompt, 6)
    for params, eos, reason, length in [({}, (tokens[2],), "stop", 3), ({"ignore_eos": True}, (tokens[2],), "length", 6),
                                        ({"stop_token_ids": [tokens[1]]}, (), "stop", 2),
                                        ({}, (tokens[4], tokens[2]), "stop", 3)]:
        scheduler, runner = make(eos_token_ids=eos)
        s = seq(0, prompt, max_tokens=6, **params)
        run_all(scheduler, runner, [s])
        assert (s.finish_reason, s.output_token_ids) == (reason, tokens[:length])


def test_abort_of_running_and_waiting_frees_everything():
    scheduler, runner = make(max_num_seqs=1)
    a, b = seq(0, [1, 2, 3]), seq(1, [4, 5, 6])
    scheduler.add(a), scheduler.add(b)
    step(scheduler, runner)
    assert scheduler.abort(1) is b and scheduler.abort(0) is a and scheduler.abort(7) is None
    assert a.finish_reason == b.finish_reason == "abort" and not scheduler.has_unfinished
    assert scheduler.block_manager.num_free_blocks == 64


def test_abort_while_the_step_runs_drops_its_token():
    scheduler, runner = make()
    s = seq(0, [1, 2, 3])
    scheduler.add(s)
    batch = scheduler.schedule()
    tokens = runner.run(batch)
    scheduler.abort(0)
    assert scheduler.update(batch, tokens) == [] and s.num_output_tokens == 0
    scheduler.check_integrity()


def test_a_step_rolled_back_can_run_again():
    scheduler, runner = make()
    s = seq(0, list(range(6)), max_tokens=3)
    scheduler.add(s)
    scheduler.schedule()  # the model failed here: no update
    run_all(scheduler, runner, [])
    assert s.output_token_ids == alone(list(range(6)), 3)


def test_reasons_say_why_someone_waits():
    scheduler, runner = make(num_blocks=4, block_size=4, max_num_seqs=2)
    for i in range(3):
        scheduler.add(seq(i, [i] * 6, max_tokens=2))
    batch, _ = step(scheduler, runner)
    assert batch.items[0].reason == "admitted"
    assert "needs 2 blocks" in batch.left_waiting[1] and scheduler.running[0].status is SequenceStatus.RUNNING


def test_scheduling_imports_no_torch():
    code = ("import sys, nanovllm.engine.sequence, nanovllm.engine.block_manager, nanovllm.engine.scheduler, "
            "nanovllm.tracing.trace, nanovllm.parallel.step_message; sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

"""SchedulerExplorer: what it packs, and what it does when the browser asks."""

import pytest

from nanovllm import LLM, SamplingParams
from tests.visualizations.samples import serve
from visualizations import SchedulerExplorer, Simulation
from visualizations.explorers.base import unpack


def asked(explorer, **message):
    """What the explorer answers, and its data after."""
    answers = []
    explorer.send = answers.append
    explorer._receive(explorer, {"id": "1", **message}, [])
    return answers[0], unpack(explorer.payload)


def test_a_trace_is_packed_whole(preempted_trace):
    data = unpack(SchedulerExplorer(preempted_trace).payload)
    assert "live" not in data and len(data["records"]) == len(preempted_trace)
    for packed, record in zip(data["records"], preempted_trace):
        assert packed["blocks"] == record.blocks and packed["preempted"] == record.preempted
        assert packed["block_tables"] == {str(i): table for i, table in record.block_tables.items()}


def test_a_long_run_costs_kilobytes():
    prompts = [[i * 100 + j for j in range(60)] for i in range(24)]
    trace, *_ = serve(prompts, max_tokens=40, num_blocks=256, block_size=8, budget=64)
    assert len(SchedulerExplorer(trace).payload) < 60_000


def test_a_simulation_is_driven():
    explorer = SchedulerExplorer(Simulation(num_blocks=8, block_size=4))
    answer, data = asked(explorer, do="add", prompt="three short words", max_tokens=4)
    assert answer["ok"] and data["records"][-1]["now"] and data["records"][-1]["waiting"] == [0]
    _, data = asked(explorer, do="step")
    assert [r.get("now") for r in data["records"]] == [None] and data["live"]["alive"] == [0] and data["live"]["unfinished"]
    _, data = asked(explorer, do="run")
    assert len(data["records"]) == 4 and not data["live"]["unfinished"]
    _, data = asked(explorer, do="set", name="num_blocks", value=5)
    assert len(data["records"][0]["blocks"]) == 5 and data["live"]["settings"]["num_blocks"]["value"] == 5
    _, data = asked(explorer, do="rewind", step=2)
    assert [r.get("now") for r in data["records"]] == [None, None]
    _, data = asked(explorer, do="abort", seq_id=0)
    assert data["records"][-1]["now"] and data["records"][-1]["running"] == []


def test_what_cannot_be_done_is_answered_with_the_reason():
    explorer = SchedulerExplorer(Simulation(num_blocks=4, block_size=4))
    answer, _ = asked(explorer, do="add", prompt=100, max_tokens=4)
    assert "at most 17 tokens" in answer["error"]
    answer, _ = asked(explorer, do="dance")
    assert "request='dance'" in answer["error"]
    with pytest.raises(ValueError, match="must be a Trace, Simulation, Scheduler, LLM or LLMEngine"):
        SchedulerExplorer(5)


def test_what_other_cells_did_is_shown_on_refresh():
    simulation = Simulation()
    explorer = SchedulerExplorer(simulation)
    simulation.add(5, 3)
    simulation.run()
    explorer.refresh()
    assert len(unpack(explorer.payload)["records"]) == 3


def test_the_still_picture_has_a_row_a_sequence_and_strikes_preemptions(preempted_trace):
    explorer = SchedulerExplorer(preempted_trace)
    chart, budget = explorer.figure().axes
    assert [t.get_text() for t in chart.get_yticklabels()] == ["0", "1", "2"]
    strikes = {line.get_color(): len(line.get_xdata()) for line in chart.lines if len(line.get_xdata())}
    assert list(strikes.values()) == [sum(len(r.preempted) for r in preempted_trace)] * 2  # a rim, and ink on it
    assert budget.get_xlabel() == "step" and "1 preemption" in explorer.summary()
    assert SchedulerExplorer(Simulation()).figure().axes  # nothing has run


def test_a_live_engine_is_driven_and_let_go():
    with LLM(kvcache_block_size=8, num_kvcache_blocks=24) as llm:
        explorer = SchedulerExplorer(llm)
        answer, data = asked(explorer, do="add", prompt="Once upon a time there was a fox", max_tokens=5)
        assert answer["ok"] and data["live"]["kind"] == "engine" and data["records"][-1]["now"]
        seq = llm.engine.scheduler.waiting[0]
        _, data = asked(explorer, do="step")
        assert data["records"][-1]["scheduled"][0]["reason"] == "admitted" and seq.num_output_tokens == 1
        _, data = asked(explorer, do="set", name="max_num_batched_tokens", value=512)
        assert llm.engine.scheduler.max_num_batched_tokens == 512
        answer, _ = asked(explorer, do="set", name="num_blocks", value=12)  # its memory was allocated when it started
        assert "start an engine with another cache" in answer["error"]
        asked(explorer, do="add", prompt=20, max_tokens=50)
        asked(explorer, do="step")
        _, data = asked(explorer, do="abort", seq_id=llm.engine.scheduler.running[-1].seq_id)
        assert data["records"][-1]["now"] and data["records"][-2]["finished"][-1]["reason"] == "abort"
        _, data = asked(explorer, do="run")
        assert not data["live"]["unfinished"] and seq.num_output_tokens == 5
        greedy = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
        assert llm.generate("Once upon a time there was a fox", greedy, use_tqdm=False)[0].token_ids == seq.token_ids[-5:]
        explorer.close()
        assert llm.engine._listeners == []

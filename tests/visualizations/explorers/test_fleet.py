"""FleetExplorer: what it packs of reports, how the browser reads it, and what the figure says."""

import numpy as np
import pytest

from nanovllm.fleet.arrivals import Traffic
from nanovllm.fleet.fleet_config import FleetConfig
from nanovllm.fleet.simulated_fleet import SimulatedFleet
from tests.visualizations.explorers.node import node_test
from tests.visualizations.samples import fleets
from visualizations import FleetExplorer, plot_fleet
from visualizations.explorers.base import unpack

CHATS = Traffic(rate=30, num_conversations=20, turns=2, think_seconds=0.2)


def test_every_request_stands_at_one_place_in_both_runs():
    a, b = fleets()
    data = unpack(FleetExplorer({"a": a, "b": b}).payload)
    first, second = (run["requests"] for run in data["runs"])
    assert len(first) == len(second) == 80 and None not in second
    assert [r[0] for r in first] == [r[0] for r in second]  # the conversation
    logged = {(r.conversation, r.turn): r for r in b.log}
    for packed, own in zip(second, (logged[r.conversation, r.turn] for r in a.log)):
        assert packed[3] == own.replica and packed[9] == own.reason and packed[6] == own.hit_tokens
    for run, report in zip(data["runs"], (a, b)):
        assert np.array(run["rows"]["busy"]).shape == (3, report.timeline.num_intervals)
        assert dict(run["figures"])["hit rate %"] == pytest.approx(100 * report.hit_rate, abs=0.1)


def test_one_report_needs_no_name_and_says_so_in_words():
    report = SimulatedFleet(FleetConfig(num_replicas=3, prefill_replicas=1)).run(CHATS)
    explorer = FleetExplorer(report)
    assert "3 replicas, 40 requests" in explorer.summary()
    (run,) = unpack(explorer.payload)["runs"]
    assert run["prefill"] == 1 and all(r[3] == 0 and r[4] in (None, 1, 2) for r in run["requests"])
    assert explorer.figure().axes


def test_a_report_that_logged_nothing_is_refused():
    report = SimulatedFleet(FleetConfig(), max_logged=0).run(CHATS)
    with pytest.raises(ValueError, match="logged requests of the run=0"):
        FleetExplorer(report)
    with pytest.raises(ValueError, match="runs="):
        FleetExplorer({})


def test_the_figure_shows_the_timeline_of_every_run():
    a, b = fleets()
    (ax,) = plot_fleet({"a": a, "b": b}, what="waiting").axes
    for name, report in (("a", a), ("b", b)):
        (image,) = [i for i in ax.images if i.get_gid() == f"load-{name}"]
        assert np.allclose(image.get_array(), report.timeline.of("waiting"))
    texts = [t.get_text() for t in ax.texts]
    most = b.timeline.of("waiting").max()
    assert any(t.startswith(f"at most {most:.0f} at a time; {b.hit_rate:.0%} found cached") for t in texts)
    with pytest.raises(ValueError, match="what='busy'"):
        plot_fleet({"a": a}, what="busy")


def test_the_browser_reads_requests_as_they_are():
    node_test("fleet.js", """
test("requests", () => {
  const packed = [[0, 1.0, 100, 0, null, 2, 32, 1.01, 2, "r", [0, 1]], null,
                  [1, 2.0, 50, 1, 2, 0, 0, null, null, "s", [1, 1]]];
  assert.deepEqual([0, 1, 2, 3].map((replica) => js.nearestRequest(packed, 1.9, replica)), [0, 2, 2, -1]);
  const [first, last] = [packed[0], packed[2]].map((one) => Object.fromEntries(js.storyOf({}, js.requestOf(one))));
  assert.equal(first["first token"], "after 10.0 ms");
  assert.equal(first["last token"], "after 1.00 s");
  assert.equal(first["found cached"], "32 of its 100 tokens");
  assert.equal(last["sent to"], "replica 1 for the prompt, replica 2 for the answer");
  assert.equal(last["first token"], "not yet");
  assert.equal(js.highestOf([{ rows: { waiting: [[0, 3], [1, 7]] } }], "waiting"), 7);
});
""")

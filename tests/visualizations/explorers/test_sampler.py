"""SamplerExplorer: the browser filters and draws as nanovllm's sampler does, to the same tokens."""

import json

import numpy as np
import pytest
import torch

from nanovllm import LLM, SamplingParams
from nanovllm.layers.logits_processors import LogitsProcessors
from nanovllm.layers.noise import gumbel_noise
from nanovllm.layers.sampler import Sampler, SamplingBatch, filter_logits
from tests.visualizations.explorers.node import node_test
from visualizations.explorers.base import unpack
from visualizations.explorers.sampler import SLIDERS, SamplerExplorer, record_logits

VOCAB = 500
GRID = [SamplingParams(temperature=t, top_k=k, top_p=p, min_p=m) for t in (0.4, 1.0, 1.7) for k in (0, 1, 7, VOCAB, 900)
        for p in (0.05, 0.6, 0.95, 1.0) for m in (0.0, 0.02, 0.4)]
PARAMS = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=12, seed=41, ignore_eos=True)


@pytest.fixture(scope="module")
def llm():
    with LLM(kvcache_block_size=8, num_kvcache_blocks=24) as llm:
        yield llm


@pytest.fixture(scope="module")
def recorded(llm):
    return record_logits(llm, "Once upon a time there was a fox", PARAMS)


def some_logits(seed: int, ties: bool) -> torch.Tensor:
    logits = 3 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))
    return logits.mul(2).round().div(2) if ties else logits.mul(10_000).round().div(10_000)


def settings(params: SamplingParams) -> dict:
    return {name: getattr(params, name) for name in SLIDERS}


def asked_of_python(logits: torch.Tensor, params: SamplingParams, seed: int, offsets: list[int]) -> dict:
    """How many tokens the engine's filters leave, their probabilities, and what its sampler draws."""
    n = len(offsets)
    batch = SamplingBatch.from_params([params] * n, [seed] * n, offsets)
    scores = logits[None] / params.temperature
    if batch.filters:
        filters = SamplingBatch.from_params([params], [seed], [0]).filters
        scores = filter_logits(scores, filters)
    drawn = Sampler()(logits.repeat(n, 1), batch).tolist()
    probs = scores.softmax(-1)[0]
    return {"logits": logits.tolist(), "settings": settings(params), "kept": int((probs > 0).sum()), "seed": str(seed),
            "offsets": offsets, "drawn": drawn, "probs": probs.topk(5).values.tolist(),
            "smallest": float(probs[probs > 0].min())}


def test_filters_and_draws_are_the_engine_s():
    cases = [asked_of_python(some_logits(i, ties=False), params, seed=2**40 + i, offsets=list(range(6)))
             for i, params in enumerate(GRID)]
    assert len({case["kept"] for case in cases}) > 20
    node_test("draws.js", f"const CASES = {json.dumps(cases)};" + """
test("as in Python", () => {
  for (const { logits, settings, kept, seed, offsets, drawn, probs, smallest } of CASES) {
    const left = js.stagesOf(Float64Array.from(logits), [], settings).at(-1);
    assert.equal(left.kept, kept, JSON.stringify(settings));
    probs.slice(0, kept).forEach((p, rank) => assert.ok(Math.abs(js.probability(left, rank) - p) < 1e-5));
    assert.ok(Math.abs(js.probability(left, kept - 1) / smallest - 1) < 1e-3);
    assert.deepEqual(offsets.map((o) => left.order[js.winner(left, js.keyOf(seed, o))]), drawn, JSON.stringify(settings));
  }
});
""")


def test_ties_with_the_kth_token_stay():
    logits = some_logits(3, ties=True)
    cases = [asked_of_python(logits, SamplingParams(top_k=k), 0, [0]) for k in (1, 2, 5, 20, 100)]
    assert any(case["kept"] > case["settings"]["top_k"] for case in cases)
    node_test("draws.js", f"const CASES = {json.dumps(cases)};" + """
test("ties", () => {
  for (const { logits, settings, kept } of CASES)
    assert.equal(js.stagesOf(Float64Array.from(logits), [], settings).at(-1).kept, kept);
});
""")


def test_the_repetition_penalty_is_the_engine_s():
    logits, prompt, last = some_logits(5, ties=False), [3, 7, 7, 400], 11
    params = SamplingParams(repetition_penalty=1.4)
    processors = LogitsProcessors.from_rows([params], [prompt], [len(prompt)], torch.tensor([last]), (), VOCAB)
    expected = processors(logits[None])[0].tolist()
    node_test("draws.js", f"const [BEFORE, EXPECTED] = {json.dumps([logits.tolist(), expected])};" + """
test("penalty", () => {
  const after = js.penalised(Float64Array.from(BEFORE), [3, 7, 7, 400, 11], 1.4);
  EXPECTED.forEach((score, id) => assert.ok(Math.abs(after[id] - score) < 1e-5, `token ${id}`));
});
""")


def test_the_noise_is_the_engine_s():
    seeds, offsets = [0, 1, 2**31, 2**63 - 1], [0, 5, 1000, 2**20]
    noise = gumbel_noise(torch.tensor(seeds), torch.tensor(offsets), 64).tolist()
    rows = [[str(seed), offset, row] for seed, offset, row in zip(seeds, offsets, noise)]
    node_test("draws.js", f"const ROWS = {json.dumps(rows)};" + """
test("noise", () => {
  for (const [seed, offset, row] of ROWS)
    row.forEach((g, id) => assert.ok(Math.abs(js.gumbel(js.keyOf(seed, offset), id) - g) < 2e-5, `${seed} ${offset} ${id}`));
});
""")


def test_drawing_is_fair_and_the_distance_falls_as_expected():
    node_test("draws.js", """
test("many draws", () => {
  const [left] = js.stagesOf(Float64Array.from([2, 1, 0.5, -1, -3]), [], js.OFF).slice(-1);
  const counts = new Map(), at = new Map();
  for (let n = 1; n <= 20000; n++) {
    const rank = js.winner(left, js.keyOf(7, n));
    counts.set(rank, (counts.get(rank) ?? 0) + 1);
    if ([100, 20000].includes(n)) at.set(n, js.distance(left, counts, n));
  }
  for (const [n, d] of at) assert.ok(d < 2.5 * js.expectedDistance(left, n), `${n}: ${d}`);
  assert.ok(at.get(20000) < at.get(100) / 3);
  const unfair = new Map([[4, 20000]]);
  assert.ok(js.distance(left, unfair, 20000) > 0.9);
});
test("the first to arrive has the largest score plus noise", () => {
  const left = js.stagesOf(Float64Array.from({ length: 300 }, (_, i) => Math.sin(i) * 2), [], js.OFF).at(-1);
  for (let n = 0; n < 200; n++) {
    const key = js.keyOf(9, n);
    const sums = [...left.order].map((id, rank) => Math.log(js.probability(left, rank)) + js.gumbel(key, id));
    assert.equal(js.winner(left, key), sums.indexOf(Math.max(...sums)));
  }
});
test("greedy leaves one token, and says so", () => {
  const stages = js.stagesOf(Float64Array.from([0, 3, 1]), [], { ...js.OFF, temperature: 0, top_k: 2, top_p: 0.1 });
  assert.deepEqual(stages.map((s) => s.kept), [3, 3, 1, 1, 1, 1]);
  assert.equal(stages.at(-1).order[0], 1);
  assert.deepEqual(stages.map((s) => s.on), [true, false, true, false, false, false]);
});
""")


def test_a_recorded_answer_is_that_of_generate_and_the_engine_rests(llm, recorded):
    again = llm.generate("Once upon a time there was a fox", PARAMS, use_tqdm=False)[0]
    assert recorded.output_token_ids == again.token_ids and len(recorded.logits) == 12
    assert not llm.engine.has_unfinished and llm.engine.model_runner.sampler.__class__.__name__ == "Sampler"
    greedy = record_logits(llm, "Once", SamplingParams(temperature=0, max_tokens=5))
    assert greedy.logits.argmax(1).tolist() == greedy.output_token_ids
    llm.engine.add_request([5, 6])
    with pytest.raises(ValueError, match="idle"):
        record_logits(llm, "Once")
    llm.engine.abort(llm.engine.scheduler.waiting[0].seq_id)


def test_the_browser_draws_what_the_engine_drew(recorded):
    data = unpack(SamplerExplorer(recorded).payload)
    node_test("draws.js", f"const DATA = {json.dumps(data)};" + """
test("first draws", () => {
  const drawn = DATA.logits.map((row, i) => {
    const left = js.stagesOf(Float64Array.from(row, (x) => x / DATA.units), [], DATA.settings).at(-1);
    return left.order[js.winner(left, js.keyOf(DATA.seed, i))];
  });
  assert.deepEqual(drawn, DATA.output);
});
""")


def test_what_travels(llm, recorded):
    explorer = SamplerExplorer(recorded, llm.tokenizer.decode, step=2)
    data = unpack(explorer.payload)
    assert len(explorer.payload) < 6_500 * len(recorded.logits) + 20_000
    assert np.abs(np.array(data["logits"]) / data["units"] - recorded.logits).max() < 6e-4
    assert data["settings"] == settings(PARAMS) and data["seed"] == "41"
    assert "".join(data["words"][str(i)] for i in data["output"]) == llm.tokenizer.decode(recorded.output_token_ids)
    assert repr(llm.tokenizer.decode(int(recorded.logits[2].argmax()))) in explorer.summary()
    assert len(explorer.figure().axes[0].get_yticks()) == 3  # the model's own, temperature, top-p


def test_plain_scores_and_bad_ones():
    one = SamplerExplorer([0.5, 2.0, -1.0], params=SamplingParams(temperature=0))
    assert unpack(one.payload)["words"] == {"0": "0", "1": "1", "2": "2"} and "likeliest is '1'" in one.summary()
    assert one.figure().axes
    large = SamplerExplorer(torch.randn(2, 40_000, dtype=torch.bfloat16), prompt_token_ids=[39_999])
    words = unpack(large.payload)["words"]
    assert 400 <= len(words) <= 801 and "39999" in words
    for bad, message in (([[[1.0, 2.0]]], "logits shape"), ([1.0, float("-inf")], "finite"), ([1.0], "logits shape")):
        with pytest.raises(ValueError, match=message):
            SamplerExplorer(bad)
    with pytest.raises(ValueError, match=r"len\(output_token_ids\)=1"):
        SamplerExplorer([[1.0, 2.0], [2.0, 1.0]], output_token_ids=[1])


def test_words_of_a_token():
    node_test("sampler.js", """
test("spoken", () => {
  assert.deepEqual([" fox", "\\n", "", '"'].map(js.spoken), ["·fox", "⏎", "∅", '"']);
});
""")

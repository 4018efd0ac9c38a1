"""TokenMaskExplorer: what it packs of an answer's masks, the sentences that the browser makes, and what it refuses."""

import numpy as np
import pytest

from nanovllm import LLM, SamplingParams, StructuredOutputsParams
from tests.visualizations.explorers.node import node_test
from visualizations import RecordedMasks, TokenMaskExplorer, record_masks
from visualizations.explorers.base import unpack


def recorded() -> RecordedMasks:
    """Two tokens of an answer: the model's first choice is forbidden, then allowed."""
    p = np.array([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]], np.float32)
    return RecordedMasks(p, np.array([[0, 1, 0, 1], [0, 0, 0, 1]], np.bool_), [1, 3])


def test_packs_both_distributions_and_what_may_follow():
    data = unpack(TokenMaskExplorer(recorded(), "abcd".__getitem__).payload)
    first, second = data["steps"]
    assert data["words"] == ["b", "d"] and data["vocab_size"] == 4
    assert first["allowed"] == 2 and first["kept"] == 0.35 and first["chips"] == ["b", "d"]
    assert first["rows"] == [["a", 0.5, None, False], ["b", 0.3, 0.857, True], ["c", 0.15, None, False],
                             ["d", 0.05, 0.143, False]]
    assert second["rows"][0] == ["d", 0.4, 1.0, True] and second["chips"] == ["d"]


def test_refuses_what_does_not_fit_together():
    one = recorded()
    with pytest.raises(ValueError, match="a token or more"):
        TokenMaskExplorer(RecordedMasks(one.probabilities[:0], one.allowed[:0], []))
    with pytest.raises(ValueError, match=r"allowed=\(1, 4\): must be of the shape"):
        TokenMaskExplorer(RecordedMasks(one.probabilities, one.allowed[:1], one.output_token_ids))


def test_the_still_picture_and_the_words_say_the_same():
    explorer = TokenMaskExplorer(recorded(), "abcd".__getitem__)
    assert "1 to 2 of 4 tokens were allowed, which held 35 % to 40 % of the probability" in explorer.summary()
    (ax,) = explorer.figure().axes
    assert [round(bar.get_width(), 3) for bar in ax.patches] == [0.35, 0.4]
    assert [text.get_text() for text in ax.texts if "allowed" in text.get_text()] == [
        "2 allowed: 35 %; the model's first: a", "1 allowed: 40 %"]


def test_an_answer_is_recorded_as_it_is_generated():
    shape = StructuredOutputsParams(regex="(fox|hen)!{2}")
    params = SamplingParams(temperature=0, max_tokens=20, structured_outputs=shape)
    with LLM(device="cpu", num_kvcache_blocks=64, enforce_eager=True) as llm:
        masks = record_masks(llm, "The fox", params)
        out = llm.generate(["The fox"], params, use_tqdm=False)[0]
        assert masks.output_token_ids == out.token_ids
        np.testing.assert_allclose(masks.probabilities.sum(-1), 1, rtol=1e-5)
        assert all(row[token] for row, token in zip(masks.allowed, masks.output_token_ids))
        assert masks.allowed[0].sum() < 10 and 0 < masks.kept.min() <= masks.kept.max() <= 1 + 1e-6
        with pytest.raises(ValueError, match="structured_outputs=None"):
            record_masks(llm, "The fox", SamplingParams(max_tokens=2))


def test_the_browsers_sentences():
    node_test("token_mask.js", """
test("shares keep what is small apart from nothing", () => {
  assert.deepEqual([1, 0.7241, 0.0071, 0.00054, 1e-9].map(js.percentWords), ["100%", "72.4%", "0.7%", "0.05%", "under 0.001%"]);
});
test("a forbidden first choice is named, and so is what is written", () => {
  const step = { allowed: 2, kept: 0.35, rows: [[" a", 0.5, null, false], ["b", 0.3, 0.857, true]] };
  assert.match(js.tellMask(step, 2560), /^2 tokens of 2,560 .*35%.*“·a”, is forbidden: it writes “b”/);
  assert.match(js.tellMask({ allowed: 1, kept: 1, rows: [["\\n", 1, 1, true]] }, 2560), /it holds 100%.*“⏎”, is among them/);
  assert.match(js.tellMask({ allowed: 2, kept: 1, rows: [["a", 0.6, 0.6, false], ["b", 0.4, 0.4, true]] }, 9), /“b” is drawn/);
});
""")

"""TensorXRay in a real Chromium: what it says is what the arithmetic of the paged cache says."""

import pytest

from nanovllm.engine.step_inputs import Layout
from tests.browser.test_explorers import MISPLACED, STEP
from tests.visualizations.explorers.test_tensor_xray import mixed_batch
from visualizations.explorers.tensor_record import x_ray
from visualizations.explorers.tensor_xray import TensorXRay

SAYS = ".nvx-tx-says"
CARDS = "() => [...document.querySelectorAll('.nvx-card')].map(card => card.innerText.split('\\n').map(line => line.trim()))"


@pytest.fixture
def step() -> dict:
    batch = mixed_batch()
    return x_ray(batch, Layout.of(batch.items, 4), 4)


def test_arrows_visit_every_token_and_the_cards_do_the_sum(show, step):
    page = show(TensorXRay(step, decode=lambda token: f"w{token}"))
    page.get_by_role("img", name="Tensors with an entry per token").click(position={"x": 100 + 20, "y": 14 + 19 + 8})
    tensors = step["tensors"]
    for row in range(12):
        owner = next(i for i in range(3) if row < tensors["cu_seqlens_q"][i + 1])
        position, slot = tensors["positions"][row], tensors["slot_mapping"][row]
        block = tensors["block_tables"][owner][position // 4]
        entry, sequence, token, held, where = page.evaluate(CARDS)
        assert entry[:2] == [f"input_ids[{row}]", str(tensors["input_ids"][row])] and sequence[1] == str(owner)
        assert token[1] == f"“w{tensors['input_ids'][row]}”" and token[2].startswith(f"position {position}")
        assert held[1] == str(block)
        assert where[1:] == ([str(slot), f"{block} × 4 + {position % 4}"] if slot >= 0
                             else ["not written", f"it is in slot {block * 4 + position % 4} already"])
        page.keyboard.press("ArrowRight")
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    assert page.inner_text(SAYS).startswith("slot_mapping[11] = ")
    page.keyboard.press("ArrowDown")
    assert page.inner_text(SAYS).startswith("cu_seqlens_q[2] = 2")
    page.keyboard.press("ArrowRight")  # the focus went along to the other tensors
    assert page.inner_text(SAYS).startswith("context_lens[2] = 10")


def test_pointing_shows_without_choosing(show, step):
    page = show(TensorXRay(step), width=700, mode="dark")
    before = page.inner_text(SAYS)
    page.get_by_role("img", name="Tensors with an entry per sequence").hover(position={"x": 268 + 26 + 8, "y": 18 + 26 + 8})
    assert page.inner_text(SAYS).startswith("block_tables[1, 1] = ")
    page.mouse.move(5, 5)
    assert page.inner_text(SAYS) == before


def test_tensors_that_contradict_each_other_are_marked(show, step):
    step["tensors"]["slot_mapping"][11] += 1
    page = show(TensorXRay(step))
    assert "Something is wrong here: slot_mapping says" in page.inner_text(SAYS)
    assert "1 row in which the tensors contradict each other" in page.inner_text(".nvx-caption")
    right = show(TensorXRay(mixed_step()))
    assert "contradict" not in right.inner_text(".nvx-root")


def mixed_step() -> dict:
    batch = mixed_batch()
    return x_ray(batch, Layout.of(batch.items, 4), 4)


def test_steps_of_different_sizes_are_scrubbed(show, step):
    first, last = mixed_step(), step
    last["tensors"] |= {"input_ids": [7], "positions": [8], "slot_mapping": [8], "cu_seqlens_q": [0, 1], "context_lens": [9],
                        "block_tables": [[0, 1, 2]], "last_rows": [0]}
    last["sequences"] = last["sequences"][:1]
    page = show(TensorXRay([first, last]), width=1400)
    page.focus(".nvx-scrub")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(STEP) == 1 and page.inner_text(SAYS).startswith("slot_mapping[0] = 8")
    assert page.evaluate(MISPLACED) == []
    page.keyboard.press("Home")
    assert page.inner_text(SAYS).startswith("slot_mapping[11]")

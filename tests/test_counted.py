"""Numbers with their nouns, alone and where people read them."""

import pytest

from nanovllm.fleet.simulation import Simulation
from nanovllm.tracing.trace import Trace
from nanovllm.utils.counted import counted


@pytest.mark.parametrize(("number", "noun", "plural", "words"), [
    (0, "block", None, "0 blocks"), (1, "block", None, "1 block"), (2, "more block", None, "2 more blocks"),
    (1, "entry", "entries", "1 entry"), (3, "entry", "entries", "3 entries"), (1, "tensor is", "tensors are", "1 tensor is")])
def test_one_is_singular_and_everything_else_plural(number, noun, plural, words):
    assert counted(number, noun, plural) == words


def test_a_run_says_one_preemption_of_one_more_block():
    simulation = Simulation(num_blocks=8, block_size=4, enable_prefix_caching=False)
    for _ in range(2):
        simulation.add(10, 8)
    trace = simulation.run()
    reasons = [why for record in trace for why in record.preemption_reasons.values()]
    assert [why.split(";")[0] for why in reasons] == ["sequence 0 needs 1 more block and 0 are free"]
    assert repr(trace).endswith(" tokens computed, 1 preemption)") and repr(Trace()).startswith("Trace(0 steps, 0 tokens")

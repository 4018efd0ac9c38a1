"""What the picture of a mixture of experts says, against the model itself."""

import matplotlib
import pytest

matplotlib.use("Agg")

import torch

import visualizations as v
from nanovllm import LLM, SamplingParams
from nanovllm.config import MOE_MODEL
from nanovllm.layers.moe import route
from tests.visualizations.test_more_figures import caption


def test_a_recording_is_what_the_router_chose():
    with LLM(MOE_MODEL, device="cpu") as llm:
        block = llm.engine.model_runner.model.model.layers[1].mlp
        prompt, seen = llm.tokenizer.encode("Once upon a time there was a fox."), []
        handle = block.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].clone()))
        routing = v.record_routing(block, lambda: llm.generate([prompt], SamplingParams(temperature=0, max_tokens=3),
                                                               use_tqdm=False))
        handle.remove()
        x = torch.cat(seen)
        experts, _ = route(block.gate(x), 2, True)
        assert [sorted(choice) for choice in routing] == [sorted(row) for row in experts.tolist()]
        assert len(routing) == len(prompt) + 2 and all(sum(choice.values()) == pytest.approx(1) for choice in routing)
        words = [llm.tokenizer.decode([token]) for token in prompt]
        assert not block.gate._forward_hooks
        with pytest.raises(ValueError, match="tokens routed=0"):
            v.record_routing(block, lambda: None)
    fig = v.plot_routing(routing[:len(prompt)], 8, tokens=words)
    squares = {patch.get_gid() for patch in fig.axes[0].patches}
    assert squares == {f"token-{i}-expert-{e}" for i, choice in enumerate(routing[:len(prompt)]) for e in choice}


def test_the_caption_counts():
    fig = v.plot_routing([{0: 0.9, 1: 0.1}, {0: 0.5, 2: 0.5}, {0: 1.0}], 4)
    assert caption(fig) == "2 of 4 experts per token; expert 0 is asked most, by 3 of 3 tokens, and 1 by none."
    strong, weak = (next(p for p in fig.axes[0].patches if p.get_gid() == f"token-0-expert-{e}") for e in (0, 1))
    assert sum(strong.get_facecolor()[:3]) < sum(weak.get_facecolor()[:3]), "darker the more it counts"


@pytest.mark.parametrize(("arguments", "message"), [
    (([], 4), "routing"), (([{5: 1.0}], 4), "expert=5"), (([{1: 1.0}], 4, ["a", "b"]), "tokens=2"),
])
def test_what_cannot_be_drawn_is_refused(arguments, message):
    routing, experts, *tokens = arguments
    with pytest.raises(ValueError, match=message):
        v.plot_routing(routing, experts, tokens=tokens[0] if tokens else ())

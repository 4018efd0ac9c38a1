"""Answers with a shape under CUDA graphs are those without graphs, whoever else is in the step."""

import pytest

from nanovllm import LLM, SamplingParams, StructuredOutputsParams

SHAPES = [None, StructuredOutputsParams(regex="[a-z ]{5,40}[.!]"), StructuredOutputsParams(choice=["fox", "hen", "a bear"]),
          StructuredOutputsParams(json={"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}})]
KINDS = [dict(temperature=0), dict(temperature=0.9), dict(temperature=0.8, top_k=5), dict(temperature=1, top_p=0.7, min_p=0.05),
         dict(temperature=0, logprobs=2), dict(temperature=0.7, repetition_penalty=1.3), dict(temperature=1, min_tokens=9)]


def serve(forced=True, **settings):
    prompts = [f"Write down what you know of the {who}: " for who in ("fox", "hen", "bear", "kite")] * 14
    params = [SamplingParams(seed=i, max_tokens=9 + i * 7 % 40, structured_outputs=SHAPES[i % 4], **KINDS[i % len(KINDS)])
              for i in range(len(prompts))]
    settings = dict(device="cuda", dtype="float32", max_num_seqs=32, num_kvcache_blocks=400, kvcache_block_size=16) | settings
    with LLM(**settings) as llm:
        late, draw = [], llm.engine.model_runner.draw
        llm.engine.model_runner.draw = lambda launched: (late.append(1), draw(launched))[1]
        if not forced:
            llm.engine._forced = None
        outputs = llm.generate(prompts, params, use_tqdm=False)
        assert bool(late) == llm.config.async_scheduling and llm.engine.num_failed_steps == 0
        taken = sum(out.num_accepted_tokens for output in outputs for out in output.outputs)
        assert bool(taken) == (forced and not llm.config.async_scheduling)
        return [(out.text, out.token_ids, out.finish_reason) for output in outputs for out in output.outputs]


@pytest.fixture(scope="module")
def expected():
    return serve(attention_backend="torch", async_scheduling=False, forced=False)


@pytest.mark.parametrize("settings", [
    dict(), dict(async_scheduling=False), dict(enforce_eager=True), dict(enforce_eager=True, async_scheduling=False),
    dict(max_num_batched_tokens=64, max_num_seqs=20), dict(num_kvcache_blocks=60, max_model_len=256),
    dict(num_kvcache_blocks=60, max_model_len=256, async_scheduling=False),
], ids=str)  # fmt: skip
def test_every_kind_of_draw_keeps_its_shape_and_its_text(expected, settings):
    assert serve(**settings) == expected

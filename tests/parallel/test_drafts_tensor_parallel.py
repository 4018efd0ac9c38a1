"""Drafts for a model that is split over two processes: the drafter is whole, in the engine's own process; same text."""

import pytest

from nanovllm import LLM, SamplingParams
from nanovllm.config import DRAFT_MODEL

pytestmark = pytest.mark.slow
TEXTS = ["Tell me a story about a fox.", "Please repeat: fox, lantern, Mia, bell, bear, red.", "Write a poem about the rain."]
CONFIGS = [{"method": "draft_model", "model": str(DRAFT_MODEL), "num_speculative_tokens": 4},
           {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 1, "num_speculative_tokens": 6}]


def serve(**settings):
    """Texts, steps, and accepted drafts: greedy, seeded, and one that is drawn by more than its logits."""
    kinds = [dict(temperature=0), dict(temperature=1.0, seed=3), dict(temperature=0.8, seed=4, repetition_penalty=1.2)]
    params = [SamplingParams(max_tokens=40, ignore_eos=True, **kind) for kind in kinds]
    with LLM(device="cpu", dtype="float32", kvcache_block_size=8, num_kvcache_blocks=120, max_num_batched_tokens=64,
             **settings) as llm:
        prompts = [llm.render_chat([{"role": "user", "content": text}]) for text in TEXTS]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        llm.engine.check_integrity()
        assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks
        speculation = llm.engine.speculation
        return [out.token_ids for out in outputs], llm.engine.num_steps, speculation.counts.accepted if speculation else 0


def test_two_ranks_check_drafts_and_draw_the_tokens_that_one_draws_without():
    expected, without, _ = serve()
    for config in CONFIGS:
        texts, num_steps, accepted = serve(tensor_parallel_size=2, speculative_config=config)
        assert texts == expected, config["method"]
        assert accepted >= 10, config["method"]
        # With look-ups the longest of the texts, which repeats nothing, takes as many steps as before.
        assert num_steps < without or config["method"] == "ngram"

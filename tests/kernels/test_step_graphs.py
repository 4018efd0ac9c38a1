"""Padded steps, as graphs hold them, give the hidden states of the steps they stand for. (In a graph: tests/gpu.)"""

import numpy as np
import pytest

from nanovllm import LLM, SamplingParams
from nanovllm.engine.step_graphs import query_tiles
from tests.checkpoints import random_checkpoint


def serve(folder, padded, **settings):
    """Tokens of requests that come while others run; padded: whether steps with prompts in them take the graphs' shapes."""
    prompts = [[5, 6, 7, 8] * 2 + [1], [1, 2, 3], [5, 6, 7, 8] * 2 + [20, 21], [11] * 20, [3], [4, 4] * 9]
    params = [SamplingParams(temperature=0.5 * (i % 2), seed=i, max_tokens=3 + i % 3, ignore_eos=True,
                             logprobs=1 if i == 3 else None) for i in range(6)]
    options = dict(num_kvcache_blocks=64, kvcache_block_size=4, dtype="float32", max_num_batched_tokens=24) | settings
    with LLM(folder, attention_backend="triton", **options) as llm:
        runner, placed = llm.engine.model_runner, []
        runner.step_graphs = None
        if padded:
            runner.graphs = runner.decode_graphs(llm.config, capture=False)
            runner.step_graphs = graphs = runner.mixed_step_graphs(llm.config, capture=False)
            replay = graphs.replay
            graphs.replay = lambda size: (placed.append(size), replay(size))[1]
        out = llm.generate(prompts, params, use_tqdm=False)
        assert bool(placed) == padded
        return [o.token_ids for o in out]


@pytest.mark.parametrize("settings", [dict(), dict(async_scheduling=True, max_num_seqs=3)], ids=str)
def test_padded_steps_draw_the_same_tokens(tmp_path, device, settings):
    folder = str(random_checkpoint(tmp_path))
    assert serve(folder, True, device=device, **settings) == serve(folder, False, device=device, **settings)


@pytest.mark.unmeasured
def test_a_prompt_that_comes_while_others_draft_shares_a_padded_step_with_their_drafts(tmp_path, device):
    """Drafts are a chunk to the graph, as a prompt is: such a step is one replay, and the draws behind it."""
    folder = str(random_checkpoint(tmp_path))
    options = dict(num_kvcache_blocks=64, kvcache_block_size=4, dtype="float32", max_num_batched_tokens=24, device=device)

    def texts(padded, **settings):
        with LLM(folder, attention_backend="triton", **options, **settings) as llm:
            engine, runner, placed = llm.engine, llm.engine.model_runner, []
            if padded:
                runner.graphs = runner.decode_graphs(llm.config, capture=False)
                runner.step_graphs = graphs = runner.mixed_step_graphs(llm.config, capture=False)
                write = graphs.write_inputs

                def writing(layout, num_decodes, size, last_rows):
                    placed.append(any(seq.draft_token_ids for seq in engine.scheduler.running))
                    return write(layout, num_decodes, size, last_rows)

                graphs.write_inputs = writing
            params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
            first = engine.add_request([5, 6, 7, 8] * 4, params)
            second = None
            while engine.has_unfinished:
                engine.step()
                if second is None and (first.draft_token_ids or first.num_output_tokens == 3):
                    second = engine.add_request([4, 9, 1, 3] * 9, params)
            assert any(placed) == padded
            return first.output_token_ids, second.output_token_ids

    drafts = {"method": "ngram", "prompt_lookup_max": 2, "prompt_lookup_min": 1, "num_speculative_tokens": 3}
    assert texts(True, speculative_config=drafts) == texts(False)


def test_tiles_hold_every_query_once_and_those_with_most_keys_come_first():
    tiles = query_tiles(np.array([5, 64, 130]), 64)
    assert sorted(map(tuple, tiles.tolist())) == [(0, 0), (1, 0), (2, 0), (2, 64), (2, 128)]
    assert tiles[0].tolist() == [2, 128] and query_tiles(np.array([], np.int64), 64).shape == (0, 2)

"""Decode steps replayed from CUDA graphs draw what the eager `torch` backend draws, in the whole engine."""

import pytest
import torch

from nanovllm import LLM, SamplingParams
from tests.checkpoints import random_checkpoint
from tests.engine.test_decode_graphs import requests

SHAPE = dict(vocab_size=4000, hidden_size=512, intermediate_size=1024, num_attention_heads=8, num_key_value_heads=4,
             head_dim=64, max_position_embeddings=2048, initializer_range=0.08)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("checkpoint"), **SHAPE)


def serve(folder, prompts, params, **settings):
    settings = dict(device="cuda", dtype="float32", kvcache_block_size=16, num_kvcache_blocks=1000, max_num_seqs=100,
                    seed=7) | settings
    with LLM(folder, **settings) as llm:
        captured = llm.engine.model_runner.graphs is not None
        assert captured == (not settings.get("enforce_eager") and settings.get("attention_backend") != "torch")
        return [(out.token_ids, out.finish_reason) for out in llm.generate(prompts, params, use_tqdm=False)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 17, 40, 97])
def test_greedy_tokens_are_the_torch_backends(folder, count):
    seed = int(torch.randint(1 << 30, ()))
    draw = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(4000, (int(torch.randint(1, 90, (), generator=draw)),), generator=draw).tolist()
               for _ in range(count)]
    params = [SamplingParams(temperature=0, ignore_eos=True, max_tokens=5 + i * 5 % 23) for i in range(count)]
    assert serve(folder, prompts, params) == serve(folder, prompts, params, attention_backend="torch"), f"seed {seed}"


@pytest.mark.parametrize("settings", [
    dict(), dict(max_num_seqs=20), dict(max_num_batched_tokens=64), dict(async_scheduling=False),
    dict(num_kvcache_blocks=40, max_model_len=128),
], ids=str)  # fmt: skip
def test_every_kind_of_draw_is_the_same_with_and_without_graphs(folder, settings):
    prompts, params = requests(40)
    assert serve(folder, prompts, params, **settings) == serve(folder, prompts, params, enforce_eager=True, **settings)


def test_close_gives_the_graphs_memory_back(folder):
    def life() -> tuple[int, int]:
        """The memory that torch holds while an engine lives, and after it."""
        llm = LLM(folder, dtype="float32", num_kvcache_blocks=100, max_num_seqs=64)
        llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4), use_tqdm=False)
        alive = torch.cuda.memory_reserved()
        llm.close()
        torch.cuda.empty_cache()
        return alive, torch.cuda.memory_reserved()

    (_, first), (alive, second) = life(), life()  # what stays of the first is cuBLAS's workspace, one for each stream
    assert second <= first < alive

"""Decodes in padded groups are what the reference computes one by one."""

import pytest
import torch

from nanovllm import LLM, SamplingParams
from nanovllm.layers import batched_attention
from nanovllm.layers.attention_backends import TorchBackend
from nanovllm.layers.batched_attention import BatchedTorchBackend
from tests.layers.paged_cases import paged_case

DECODES = [(1, 1), (1, 300), (1, 0), (1, 299), (1, 63), (1, 16), (1, 64), (1, 17)]
BATCHES = {"decodes": DECODES, "mixed": [*DECODES, (5, 5), (3, 40), (2, 0)], "chunks": [(7, 20)]}


@pytest.mark.parametrize("sequences", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "block_size"), [(4, 2, 16), (6, 1, 3), (2, 2, 64)])
@pytest.mark.parametrize("group_keys", [1 << 18, 100])
def test_groups_equal_the_reference(sequences, num_heads, num_kv_heads, block_size, group_keys, monkeypatch):
    monkeypatch.setattr(batched_attention, "GROUP_KEYS", group_keys)
    case = paged_case(sequences, num_decodes=sum(n == 1 for n, _ in sequences), num_heads=num_heads,
                      num_kv_heads=num_kv_heads, block_size=block_size, head_dim=16)  # fmt: skip
    TorchBackend().store(case.k, case.v, *case.kv_cache, case.context.slot_mapping)
    backend = BatchedTorchBackend()
    for _ in range(2):  # as two layers of a step
        out = backend.attend(case.q, *case.kv_cache, case.context, case.scale)
        assert case.error(out) < 1e-5
        torch.testing.assert_close(out, TorchBackend().attend(case.q, *case.kv_cache, case.context, case.scale))


def test_the_engine_gives_the_same_tokens():
    prompts = [[5, 6, 7, 8] * (1 + i) for i in range(9)]
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    tokens = []
    for backend in (TorchBackend, BatchedTorchBackend):
        with LLM(max_num_batched_tokens=24, device="cpu") as llm:
            for layer in llm.engine.model_runner.model.model.layers:
                layer.self_attn.attn.backend = backend()
            tokens.append([out.token_ids for out in llm.generate(prompts, params, use_tqdm=False)])
    assert tokens[0] == tokens[1]

"""A cache sized to the brim leaves what a full step needs, whatever its requests ask for."""

import json

import pytest
import torch

from nanovllm import LLM, SamplingParams

# One layer with as many bytes a token as an 8B model has, so that the cache fills any card; Qwen3's vocabulary.
CONFIG = dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", vocab_size=151936, hidden_size=1024,
              intermediate_size=2048, num_hidden_layers=2, num_attention_heads=32, num_key_value_heads=32, head_dim=128,
              max_position_embeddings=16384, rms_norm_eps=1e-6, tie_word_embeddings=True, rope_theta=1e6, hidden_act="silu",
              attention_bias=False, dtype="bfloat16", eos_token_id=None)
ROWS, SHARE = 512, 0.9


@pytest.mark.parametrize("settings", [dict(), dict(enforce_eager=True)], ids=["graphs", "eager"])
def test_512_filtered_rows_on_a_cache_sized_to_the_brim(tmp_path, settings):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    prompts = [[1 + i, 2, 3] for i in range(ROWS)]
    filtered = dict(temperature=0.8, top_k=50, top_p=0.9, min_p=0.01, ignore_eos=True, max_tokens=4)
    torch.cuda.empty_cache()
    try:
        with LLM(tmp_path, load_format="dummy", device="cuda", max_num_seqs=ROWS, max_model_len=16384,
                 gpu_memory_utilization=SHARE, **settings) as llm:
            cache = llm.engine.model_runner.kv_cache
            share = SHARE * torch.cuda.get_device_properties(0).total_memory
            assert cache.numel() * cache.element_size() > 0.7 * share, "the cache is not what fills the card"
            torch.cuda.set_per_process_memory_fraction(SHARE)  # from here on, one byte more than was planned is refused
            for more in ({}, dict(repetition_penalty=1.2, frequency_penalty=0.1, logit_bias={5: 1.0}, logprobs=20),
                         dict(prompt_logprobs=20)):
                outputs = llm.generate(prompts, SamplingParams(**filtered, **more), use_tqdm=False)
                assert {output.finish_reason for output in outputs} == {"length"}
            assert llm.engine.num_failed_steps == 0, "a step ran out of memory, and was taken in parts"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

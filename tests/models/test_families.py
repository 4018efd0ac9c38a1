"""Every family against transformers in float32: logits, and greedy tokens of an engine under pressure."""

import json
import re
from pathlib import Path

import pytest
import torch

from nanovllm import LLM, SamplingParams
from nanovllm.config import Config, load_hf_config
from nanovllm.models.registry import ARCHITECTURES

from ..checkpoints import greedy, random_checkpoint, reference
from ..test_llm import PRESSURE, make_prompts
from .paged import Cache, error, our_model

LIMIT = 1e-4  # relative, float32
NUM_TOKENS = 16
THETA = {"rope_theta": 1e4}
LLAMA3 = THETA | {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 64}
YARN = THETA | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = THETA | {"rope_type": "linear", "factor": 2.0}
DYNAMIC = THETA | {"rope_type": "dynamic", "factor": 2.0}
FAMILIES = {
    "llama2": ("Llama", dict(num_key_value_heads=4, head_dim=16, tie_word_embeddings=False)),
    "llama3_hd64": ("Llama", dict(head_dim=64, rope_parameters=LLAMA3, tie_word_embeddings=False)),
    "llama_hd128_all_biases": ("Llama", dict(head_dim=128, num_key_value_heads=1, attention_bias=True, mlp_bias=True)),
    "llama_linear": ("Llama", dict(rope_parameters=LINEAR)),
    "llama_dynamic": ("Llama", dict(rope_parameters=DYNAMIC)),
    "smollm2": ("Llama", dict(hidden_size=144, num_attention_heads=9, num_key_value_heads=3, head_dim=16)),
    "mistral_hd128_yarn": ("Mistral", dict(sliding_window=None, head_dim=128, rope_parameters=YARN)),
    "mistral_linear": ("Mistral", dict(sliding_window=None, num_key_value_heads=1, rope_parameters=LINEAR)),
    "mistral": ("Mistral", dict(sliding_window=None, head_dim=64, tie_word_embeddings=False)),
    "mistral_window_never_reached": ("Mistral", dict(sliding_window=512)),
    "qwen2": ("Qwen2", dict(num_key_value_heads=1, head_dim=16)),
    "qwen2_hd32_linear": ("Qwen2", dict(rope_parameters=LINEAR)),
    "qwen2_hd64_llama3": ("Qwen2", dict(num_attention_heads=8, head_dim=64, rope_parameters=LLAMA3)),
    "qwen2_hd128_untied_dynamic": ("Qwen2", dict(head_dim=128, rope_parameters=DYNAMIC, tie_word_embeddings=False)),
    "qwen2.5_yarn_untied": ("Qwen2", dict(head_dim=16, rope_parameters=YARN, tie_word_embeddings=False)),
    "qwen2_windows_in_no_layer": ("Qwen2", dict(head_dim=16, use_sliding_window=True, sliding_window=4, max_window_layers=2)),
    "qwen3_yarn": ("Qwen3", dict(head_dim=64, rope_parameters=YARN | {"beta_fast": 16.0, "attention_factor": 1.3})),
    "qwen3_hd128_llama3": ("Qwen3", dict(head_dim=128, num_key_value_heads=1, rope_parameters=LLAMA3)),
    "qwen3_linear_untied": ("Qwen3", dict(rope_parameters=LINEAR, tie_word_embeddings=False)),
    "qwen3_dynamic_bias": ("Qwen3", dict(head_dim=64, attention_bias=True, rope_parameters=DYNAMIC)),
    "moe_hd128_64_of_which_4": ("Qwen3Moe", dict(head_dim=128, num_experts=64, num_experts_per_tok=4, moe_intermediate_size=16,
                                                 rope_parameters=LLAMA3)),
    "moe_64_of_which_1_linear": ("Qwen3Moe", dict(num_experts=64, num_experts_per_tok=1, moe_intermediate_size=16,
                                                  rope_parameters=LINEAR)),
    "moe_4_of_which_4_dynamic": ("Qwen3Moe", dict(num_experts_per_tok=4, num_key_value_heads=4, rope_parameters=DYNAMIC)),
    "moe_4_of_which_1": ("Qwen3Moe", dict(num_experts_per_tok=1, norm_topk_prob=False)),
    "moe_4_of_which_2": ("Qwen3Moe", dict(head_dim=64, attention_bias=True)),
    "moe_64_of_which_8": ("Qwen3Moe", dict(num_experts=64, num_experts_per_tok=8, moe_intermediate_size=16,
                                           tie_word_embeddings=False)),
    "moe_64_of_which_8_not_normalized": ("Qwen3Moe", dict(num_experts=64, num_experts_per_tok=8, moe_intermediate_size=32,
                                                          norm_topk_prob=False)),
    "moe_every_second_layer": ("Qwen3Moe", dict(num_hidden_layers=4, decoder_sparse_step=2, mlp_only_layers=[3])),
    "moe_yarn": ("Qwen3Moe", dict(rope_parameters=YARN)),
}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    family, overrides = FAMILIES[request.param]
    return random_checkpoint(tmp_path_factory.mktemp(request.param), family=family, **overrides)


def test_logits_equal_transformers(checkpoint):
    """A prompt whole, and another in chunks that ride with the first one's decode steps."""
    ours, theirs = our_model(checkpoint), reference(checkpoint)
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randint(96, (n,), generator=generator).tolist() for n in (12, 60))
    config = load_hf_config(checkpoint)
    cache = Cache(config, 2)
    pieces = cache.run(ours, [(0, first[:11], 0), (1, second[:7], 0)])
    steps = [cache.run(ours, [(0, first[11:], 11), (1, second[7:40], 7)]), cache.run(ours, [(1, second[40:], 40)])]
    with torch.inference_mode():
        for ids, joined in ((first, [pieces[0], steps[0][0]]), (second, [pieces[1], steps[0][1], steps[1][0]])):
            assert error(torch.cat(joined), theirs(torch.tensor([ids])).logits[0]) < LIMIT


def test_greedy_tokens_equal_transformers_under_pressure(checkpoint):
    prompts, model = make_prompts(96), reference(checkpoint)
    expected = [greedy(model, prompt, NUM_TOKENS) for prompt in prompts]
    assert len({tuple(tokens) for tokens in expected}) > 12, "a model that says always the same proves little"
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    settings = PRESSURE["a tiny cache"][0] | PRESSURE["chunks of 16 tokens"][0]
    with LLM(checkpoint, device="cpu", **settings) as llm, llm.trace() as trace:
        for _ in range(2):  # the second time from a warm prefix cache
            assert [o.token_ids for o in llm.generate(prompts, params, use_tqdm=False)] == expected
        llm.engine.check_integrity()
    assert PRESSURE["a tiny cache"][1](trace) and sum(len(r.hit_tokens) for r in trace) > 0


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3Moe"])
def test_two_ranks_say_what_one_says(family, tmp_path):
    folder = random_checkpoint(tmp_path, family=family, head_dim=16, **({} if family == "Qwen2" else {"attention_bias": True}))
    prompts, params = make_prompts(96)[:6], SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    expected = [greedy(reference(folder), prompt, NUM_TOKENS) for prompt in prompts]
    with LLM(folder, device="cpu", tensor_parallel_size=2) as llm:
        assert [o.token_ids for o in llm.generate(prompts, params, use_tqdm=False)] == expected


def changed(folder, without=(), **values):
    """The folder, with other values in its config.json."""
    file = folder / "config.json"
    config = {key: value for key, value in json.loads(file.read_text(encoding="utf-8")).items() if key not in without}
    file.write_text(json.dumps(config | values), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("family", "overrides", "change", "message"), [
    ("Qwen3", {}, dict(architectures=["Qwen3NextForCausalLM"]), "Qwen3NextForCausalLM.*must be one of Qwen3ForCausalLM"),
    ("Qwen2", {}, dict(architectures=["Qwen2VLForConditionalGeneration"]), "Qwen2VLForConditionalGeneration"),
    ("Qwen3", {}, dict(vision_config={"depth": 2}), "vision_config"),
    ("Mistral", {}, dict(sliding_window=100), "sliding_window=100: must be at least max_model_len=512.*max_model_len=100"),
    ("Qwen2", {}, dict(use_sliding_window=True, sliding_window=64, max_window_layers=1, layer_types=None), "sliding_window=64"),
    ("Qwen3", {}, dict(use_sliding_window=True, sliding_window=64, layer_types=["full_attention", "sliding_attention"]),
     "sliding_window=64"),
    ("Qwen3Moe", {}, dict(use_sliding_window=True, sliding_window=64), "sliding_window=64"),
    ("Qwen3Moe", {}, dict(num_experts_per_tok=5),
     "num_experts_per_tok=5: must be 1 to num_experts=4"),
    ("Llama", {}, dict(hidden_act="gelu"), "hidden_act='gelu'"),
    ("Llama", {}, dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
    ("Llama", {}, dict(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0}), "rope_type='longrope'"),
    ("Llama", {}, dict(rope_parameters={"rope_type": "linear", "rope_theta": 1e4}), "factor"),
    ("Qwen3", {}, dict(architectures=[["Qwen3ForCausalLM"]]), r"architectures=\[\[.*must be one of"),
    ("Qwen3", {}, dict(architectures={"a": 1}), r"architectures=\[\{.*must be one of"),
    # Values of the wrong kind, and such as contradict each other: by their names, and not as somebody's TypeError.
    ("Qwen3Moe", {}, dict(num_experts_per_tok="2"), "num_experts_per_tok='2'"),
    ("Qwen3Moe", {}, dict(num_experts=4.0), "num_experts=4.0"),
    ("Qwen3Moe", {}, dict(decoder_sparse_step=0), "decoder_sparse_step=0"),
    ("Qwen3Moe", {}, dict(moe_intermediate_size=-1), "moe_intermediate_size=-1"),
    ("Qwen3Moe", {}, dict(mlp_only_layers=1), "mlp_only_layers=1"),
    ("Qwen3Moe", {}, dict(norm_topk_prob="no"), "norm_topk_prob='no'"),
    ("Mistral", {}, dict(sliding_window="512"), "sliding_window='512'"),
    ("Mistral", {}, dict(sliding_window=0), "sliding_window=0"),
    ("Qwen2", {}, dict(use_sliding_window="false"), "use_sliding_window='false'"),
    ("Qwen2", {}, dict(use_sliding_window=True, max_window_layers="x", layer_types=None), "max_window_layers='x'"),
    ("Qwen3", {}, dict(layer_types=["full_attention", "linear_attention"]), "layer_types=.*linear_attention"),
    ("Qwen3", {}, dict(layer_types="full_attention"), "layer_types='full_attention'"),
    ("Qwen3", {}, dict(tie_word_embeddings="false"), "tie_word_embeddings='false'"),
    ("Llama", {}, dict(attention_bias="x"), "attention_bias='x'"), ("Llama", {}, dict(mlp_bias=[]), r"mlp_bias=\[\]"),
    ("Qwen3", {}, dict(num_key_value_heads=3), "num_attention_heads=4: must be a multiple of num_key_value_heads=3"),
    ("Qwen3", {}, dict(head_dim=31), "head_dim=31: must be even"), ("Qwen3", {}, dict(vocab_size=2**63), "vocab_size="),
    ("Llama", {}, dict(rope_parameters="yarn"), "rope_scaling='yarn': must be an object"),
    ("Llama", {}, dict(rope_parameters=THETA | {"rope_type": ["yarn"]}), r"rope_type=\['yarn'\]"),
    ("Llama", {}, dict(rope_parameters=YARN | {"factor": "4"}), r"rope_scaling\['factor'\]='4'"),
    ("Llama", {}, dict(rope_parameters=YARN | {"beta_fast": "x"}), "beta_fast.*='x'"),
    ("Llama", {}, dict(rope_parameters=DYNAMIC | {"factor": 0}), r"rope_scaling\['factor'\]=0"),
    ("Llama", {}, dict(rope_parameters=THETA | {"rope_type": "llama3", "factor": 8.0}), "low_freq_factor.*llama3"),
    ("Llama", {}, dict(rope_parameters=LLAMA3 | {"low_freq_factor": 4.0}), "low_freq_factor.*=4.0: must be below"),
    *(("Llama", {}, dict(rope_parameters={"rope_type": "default", "rope_theta": theta}), "rope_theta=")
      for theta in ("1e4", -1.0, float("nan"), [1e4])),
])
def test_what_is_not_implemented_is_refused_by_name_before_memory_is_taken(family, overrides, change, message, tmp_path):
    folder = changed(random_checkpoint(tmp_path, family=family, **overrides), **change)
    with pytest.raises(ValueError, match=message):
        Config(folder, device="cpu")


def test_one_architecture_need_not_be_a_list(tmp_path):
    folder = changed(random_checkpoint(tmp_path), architectures="Qwen3ForCausalLM")
    with LLM(folder, device="cpu") as llm:
        assert llm.generate([[1, 2]], SamplingParams(max_tokens=2, ignore_eos=True), use_tqdm=False)[0].token_ids


def test_within_its_window_a_model_needs_not_slide(tmp_path):
    folder = random_checkpoint(tmp_path, family="Mistral", sliding_window=64)
    prompts = [prompt for prompt in make_prompts(96) if len(prompt) < 48]
    expected = [greedy(reference(folder), prompt, NUM_TOKENS) for prompt in prompts]
    with LLM(folder, device="cpu", max_model_len=64) as llm:
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True), use_tqdm=False)
    assert [o.token_ids for o in outputs] == expected


def test_what_a_config_leaves_out_means_what_transformers_means(tmp_path):
    """As Llama 2 was published: no head_dim, no theta, no biases, as many key/value heads as heads."""
    folder = random_checkpoint(tmp_path, family="Llama", head_dim=16, num_key_value_heads=4, rope_parameters=THETA)
    changed(folder, ("head_dim", "num_key_value_heads", "rope_parameters", "rope_theta", "attention_bias", "mlp_bias",
                     "hidden_act", "tie_word_embeddings", "rms_norm_eps"), tie_word_embeddings=True)  # fmt: skip
    ids = list(range(50))
    found, = Cache(load_hf_config(folder), 1).run(our_model(folder), [(0, ids, 0)])
    with torch.inference_mode():
        assert error(found, reference(folder)(torch.tensor([ids])).logits[0]) < LIMIT


@pytest.mark.parametrize(("scaling", "longest"), [
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
    ({"type": "yarn", "factor": 3.0}, 1536), ({"rope_type": "linear", "factor": 2.0}, 1024),
    ({"rope_type": "dynamic", "factor": 2.0}, 512), (LLAMA3, 512), (None, 512),
], ids=str)
def test_the_longest_context_is_what_vllm_reckons(scaling, longest, tmp_path):
    folder = changed(random_checkpoint(tmp_path, family="Llama"), rope_parameters=None, rope_theta=1e4, rope_scaling=scaling)
    assert Config(folder, device="cpu", max_model_len=1 << 20).max_model_len == longest
    assert Config(folder, device="cpu", max_model_len=300).max_model_len == 300


def test_the_readme_lists_every_architecture_and_its_file():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for architecture, file in ARCHITECTURES.items():
        assert re.search(rf"\| `{architecture}` \|.*\| `models/{file}.py` \|", readme), architecture


def test_the_readme_has_the_figures_of_the_gpu():
    root = Path(__file__).parents[2]
    readme = (root / "README.md").read_text(encoding="utf-8")
    measured = json.loads((root / "benchmarks/results/nvidia-h200-families.json").read_text(encoding="utf-8"))["figures"]
    for name, row in measured.items():
        times = [row[key] for key in ("1", "16", "64", "256", "prompts")]
        cells = [f"{time['ms']:.2f} ({time['floor'] / time['ms']:.0%})" for time in times]
        assert f"| {' | '.join([name, *cells])} |" in readme

"""A trained model as a Hugging Face folder that transformers and nanovllm both load."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from training.model import Qwen3
from training.render import CHAT_TEMPLATE


def export(model: Qwen3, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config.json, generation_config.json, model.safetensors (bf16) and the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    s = model.s
    end_of_text, im_end = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>")
    weights = {n: p.detach().to("cpu", torch.bfloat16).contiguous() for n, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    kind = dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3")
    if s.experts:
        kind = dict(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", num_experts=s.experts,
                    num_experts_per_tok=s.active, moe_intermediate_size=s.intermediate, norm_topk_prob=True,
                    decoder_sparse_step=1, mlp_only_layers=[], output_router_logits=False, router_aux_loss_coef=0.01)
    _write(folder / "config.json", kind | dict(
        vocab_size=s.vocab, hidden_size=s.hidden,
        intermediate_size=s.intermediate, num_hidden_layers=s.layers, num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads, head_dim=s.head_dim, hidden_act="silu", max_position_embeddings=s.positions,
        rms_norm_eps=s.eps, attention_bias=False, attention_dropout=0.0, tie_word_embeddings=True, use_cache=True,
        initializer_range=0.02, use_sliding_window=False, sliding_window=None, max_window_layers=s.layers,
        # Both spellings: transformers 4 reads only the first, transformers 5 writes only the second.
        rope_theta=s.theta, rope_parameters={"rope_type": "default", "rope_theta": s.theta}, rope_scaling=None,
        bos_token_id=None, eos_token_id=im_end, pad_token_id=end_of_text, dtype="bfloat16"))
    _write(folder / "generation_config.json", dict(
        bos_token_id=None, eos_token_id=[im_end, end_of_text], pad_token_id=end_of_text, do_sample=True, temperature=0.7,
        top_p=0.95))
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    _write(folder / "tokenizer_config.json", dict(
        tokenizer_class="PreTrainedTokenizerFast", bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        unk_token=None, additional_special_tokens=["<|im_start|>", "<|im_end|>"], add_prefix_space=False,
        clean_up_tokenization_spaces=False, model_max_length=s.positions, chat_template=CHAT_TEMPLATE))


def _write(file: Path, data: dict) -> None:
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

"""Small random Qwen3 checkpoints in Hugging Face format, and what transformers says of them."""

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

TINY = dict(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=32, max_position_embeddings=512, tie_word_embeddings=True,
            attention_bias=False, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            bos_token_id=None, eos_token_id=None, pad_token_id=None)


def random_checkpoint(folder, seed: int = 0, **overrides):
    """Save a random float32 model with large enough weights that its logits have clear winners; returns the folder."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(**TINY | {"initializer_range": 0.3} | overrides))
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms start at one and biases at zero, which would hide mistakes with them
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def reference(folder) -> Qwen3ForCausalLM:
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # as ignore_eos: end tokens are drawn like any other
    return model


@torch.inference_mode()
def greedy(model, prompt: list[int], num_tokens: int) -> list[int]:
    out = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=num_tokens,
                         attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), pad_token_id=0)
    return out[0, len(prompt):].tolist()

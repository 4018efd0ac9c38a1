"""Small random checkpoints in Hugging Face format, of every family, and what transformers says of them."""

from copy import deepcopy

import torch
import transformers

TINY = dict(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=32, max_position_embeddings=512, tie_word_embeddings=True,
            attention_bias=False, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            bos_token_id=None, eos_token_id=None, pad_token_id=None)
TINY_EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, norm_topk_prob=True)


def random_checkpoint(folder, seed: int = 0, family: str = "Qwen3", **overrides):
    """Save a random float32 model with large enough weights that its logits have clear winners; returns the folder.

    family: as transformers begins the names of its classes: Qwen3, Qwen3Moe, Qwen2, Llama, Mistral.
    """
    torch.manual_seed(seed)
    experts = TINY_EXPERTS if family == "Qwen3Moe" else {}
    values = deepcopy(TINY | experts | {"initializer_range": 0.3} | overrides)  # the config edits what it is given
    config = getattr(transformers, f"{family}Config")(**values)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms start at one and biases at zero, which would hide mistakes with them
            parameter.data += 0.2 * torch.randn_like(parameter)
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):  # routers start at zero, where all experts are equal
            parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


def reference(folder) -> transformers.PreTrainedModel:
    """transformers' model, in float32, which draws end tokens like any other."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


@torch.inference_mode()
def greedy(model, prompt: list[int], num_tokens: int) -> list[int]:
    out = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=num_tokens,
                         attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), pad_token_id=0)
    return out[0, len(prompt):].tolist()

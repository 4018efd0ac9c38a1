"""The parts of a model in plain PyTorch, each as short as it can be said; `kernels/` says the slow ones again, fast.

A model's forward pass: `embed_head`, `layernorm`, `linear`, `rotary_embedding`, `attention` (what a backend must do, and which
one is picked), `activation`, `moe`; `tensor_parallel` says which slice of them a process holds. From scores to a token:
`logits_processors`, `sampler`, `filters`, `noise`, `logprobs`.
"""

"""Families of models. A family is a small file that says only what differs; `registry` finds it by its name.

`qwen3` is the plain network, of which the others are made. `fused`, `fused_mlp` and `fused_cpu` run any family with fewer
launches, and compute the same.
"""

"""What any room may use: complaints with value, limit and remedy (`checks`), checkpoints, interrupts, numbers.

`context`, `row_state` and `draft_state` are the tensors that engine, layers and kernels hand to each other.
"""

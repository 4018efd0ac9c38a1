"""The Triton twins of what `layers/` says in PyTorch, one kernel family a file.

Nothing is imported here: Triton may be absent, and a kernel's module is loaded by whoever runs it.
"""

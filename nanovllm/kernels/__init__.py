"""What `layers/` says in PyTorch, as Triton kernels: one family of kernels per file.

Nothing is imported here, because Triton may be absent: the code that runs a kernel imports its module.
"""

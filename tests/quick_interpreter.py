"""Triton's interpreter, which the kernels' tests run in, without the work that costs it most.

At every launch and at every call of a device function (such as `tl.sum` or `tl.zeros`) it looks through the whole of
`triton.language` for built-ins, puts its own in their place, and takes them out again after the launch. In a process that
only interprets, once is enough; what a kernel computes is the same.
"""

import inspect

import triton.language as tl
from triton.runtime import interpreter


def replace_builtins_once() -> None:
    """Does nothing where a version of Triton does this in another way."""
    if not all(hasattr(interpreter, name) for name in ("_patch_lang", "_LangPatchScope")):
        return
    replace, known, replaced = interpreter._patch_lang, set(), set()

    def replace_once(fn):
        if fn not in known:
            known.add(fn)
            seen = {value for value in fn.__globals__.values() if inspect.ismodule(value) and value in (tl, tl.core)}
            if not seen <= replaced:
                replace(fn)
                replaced.update(seen)
        return interpreter._LangPatchScope()  # nothing to take back

    interpreter._patch_lang = replace_once

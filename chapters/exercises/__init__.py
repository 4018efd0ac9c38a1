"""Exercises that check themselves: one module a chapter, one `check_...` function an exercise."""

import logging

from IPython import get_ipython

# In a notebook the exception itself says what failed in a step: the engine's log would print it a second time.
if get_ipython() is not None:
    logging.getLogger("nanovllm").setLevel(logging.CRITICAL + 1)

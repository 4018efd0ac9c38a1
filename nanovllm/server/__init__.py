"""An OpenAI-compatible server around `AsyncLLM`: `python -m nanovllm serve`. Needs the `serve` extra."""

KEY_VARIABLE = "NANOVLLM_API_KEY"  # of the environment

"""An OpenAI-compatible server around `AsyncLLM`: `python -m nanovllm serve`. Needs the `serve` extra."""

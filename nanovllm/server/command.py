"""The command line of `python -m nanovllm serve`; reading it needs no web framework."""

import argparse
import json
import os
from typing import Any

from nanovllm.server import KEY_VARIABLE
from nanovllm.utils.numbers import shown

ENGINE_SETTINGS = {  # of nanovllm.config.Config, whose defaults hold
    "max_model_len": (int, "longest prompt and answer together, in tokens"),
    "max_num_seqs": (int, "samples that may run at once"),
    "max_num_batched_tokens": (int, "tokens that one step may compute"),
    "gpu_memory_utilization": (float, "share of the GPU's memory for weights, activations and KV cache together"),
    "num_kvcache_blocks": (int, "blocks of the KV cache (default: what the memory holds)"),
    "kvcache_block_size": (int, "tokens per block"),
    "tensor_parallel_size": (int, "GPUs to split the model over"),
    "device": (str, "auto, cpu or cuda[:n]"),
    "dtype": (str, "auto, float32, float16 or bfloat16"),
    "attention_backend": (str, "auto, torch, cpu, triton or flash_attn"),
    "seed": (int, "of the draws of requests that bring none"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    server, engine = parser.add_argument_group("server"), parser.add_argument_group("engine")
    parser.add_argument("model", nargs="?", help="model folder, GGUF file or 'smollm2'; none is the offline model",
                       default=argparse.SUPPRESS)
    server.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is every one of this machine's")
    server.add_argument("--port", type=int, default=8000, help="port to listen on; 0 is any free one")
    server.add_argument("--api-key", default=argparse.SUPPRESS, metavar="KEY",
                        help=f"clients must send it; better set {KEY_VARIABLE}, which other users of the machine cannot see")
    server.add_argument("--served-model-name", default=argparse.SUPPRESS, metavar="NAME",
                        help="what clients call the model (default: the name of its folder)")
    server.add_argument("--max-queue", type=int, default=1024, metavar="N",
                        help="samples that may wait for their first step; more are refused with status 429")
    server.add_argument("--max-stored-responses", type=int, default=1024, metavar="N",
                        help="answers of /v1/responses that are kept in memory for previous_response_id; 0 keeps none, "
                             "as do several --replicas")
    server.add_argument("--max-body-bytes", type=int, default=4 * 2**20, metavar="N",
                        help="largest body of a request; larger ones are refused with status 413")
    server.add_argument("--receive-seconds", type=float, default=60, metavar="S",
                        help="how long a client may take to send a request, or to read nothing of its answer")
    server.add_argument("--generation-config", default="auto", choices=("auto", "vllm"),
                        help="auto: requests that do not say how to draw get what the model's generation_config.json "
                             "recommends; vllm: they get temperature 1 and no filters")
    server.add_argument("--reasoning-parser", default="auto", choices=("auto", "none", "qwen3", "deepseek_r1"),
                        help="auto: what the model thinks comes as reasoning_content, apart from content, where its chat "
                             "template knows <think>; none: it stays in the content; the others, vLLM's names: any model's")
    server.add_argument("--allow-origin", action="append", default=argparse.SUPPRESS, metavar="ORIGIN",
                        help="a web page's origin whose scripts may use the server, such as http://localhost:3000; * is every "
                             "one; may be given several times (default: none)")
    server.add_argument("--allow-host", action="append", default=argparse.SUPPRESS, metavar="NAME",
                        help="a name that the server is reached by, *.example.com or *; may be given several times (default: "
                             "this machine's own when it listens there only, else any)")
    server.add_argument("--public-metrics", action="store_true", help="answer /metrics without the key")
    server.add_argument("--shutdown-seconds", type=float, default=10, metavar="S",
                        help="how long running requests may take to end after Ctrl-C or SIGTERM")
    server.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"),
                        help="info prints a line for each request")
    for name, (kind, text) in ENGINE_SETTINGS.items():
        engine.add_argument(f"--{name.replace('_', '-')}", type=kind, default=argparse.SUPPRESS, help=text,
                            metavar={int: "N", float: "X", str: "NAME"}[kind])
    engine.add_argument("--enforce-eager", action="store_true", default=argparse.SUPPRESS,
                        help="run every kernel as written: no CUDA graphs, no compilation")
    engine.add_argument("--speculative-config", type=_json, default=argparse.SUPPRESS, metavar="JSON",
                        help='draft tokens and check several in one step: {"method": "ngram"}, or {"model": FOLDER} for a '
                             "smaller model with the same vocabulary")
    engine.add_argument("--no-prefix-caching", dest="enable_prefix_caching", action="store_false", default=argparse.SUPPRESS,
                        help="compute every prompt anew")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number may be too long for Python, and lists too deep
        raise argparse.ArgumentTypeError(f"{shown(text)} is not JSON ({error})") from None


def serve(model: str | None = None, api_key: str | None = None, **settings: Any) -> None:
    """Serve until SIGINT or SIGTERM. Raises ValueError for what cannot be served."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as missing:
        raise SystemExit(f"The server needs {missing.name}, which is not installed: pip install 'nano-vllm-course[serve]'"
                         ) from None
    from nanovllm.server.run import run
    engine_settings = {name: settings.pop(name) for name in (*ENGINE_SETTINGS, "enforce_eager", "enable_prefix_caching",
                                                                "speculative_config")
                       if name in settings}
    run(model, engine_settings, api_key=os.environ.get(KEY_VARIABLE) if api_key is None else api_key, **settings)

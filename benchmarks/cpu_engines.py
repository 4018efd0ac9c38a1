"""One engine in a process of its own, for `benchmarks.cpu_comparison`: `python benchmarks/cpu_engines.py NAME SETTINGS`.

It reads a line for each run from standard input, `{"requests": [[prompt token ids, tokens to generate], ...]}`, and answers
with a line: the seconds that generating took, the processor's and the wall's, and the tokens. Every run owes exactly as many
tokens as asked for, greedily, and no run finds anything cached that an earlier one computed. Imports nothing of
`benchmarks`, so that it can run beside the `nanovllm` of another checkout.
"""

import json
import os
import resource
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

Requests = list[tuple[list[int], int]]
Run = Callable[[Requests], list[list[int]]]
BATCH = 16  # prompts that transformers gets at a time, padded


def nanovllm(model: str, threads: int, dtype: str, **settings: Any) -> tuple[Run, str]:
    """This project's engine, of whichever checkout stands first on the path: a new one for each run."""
    import torch

    from nanovllm import LLM, SamplingParams

    torch.set_num_threads(threads)
    made: list[LLM] = []

    def renew() -> None:
        while made:
            made.pop().close()
        made.append(LLM(model, device="cpu", dtype=dtype, **settings))

    def run(requests: Requests) -> list[list[int]]:
        engine, = made
        params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for _, n in requests]
        return [list(out.token_ids) for out in engine.generate([prompt for prompt, _ in requests], params, use_tqdm=False)]

    run.renew = renew  # type: ignore[attr-defined]
    return run, torch.__version__


def run_transformers(lm: Any, requests: Requests) -> list[list[int]]:
    """`generate`, sixteen prompts at a time in order of arrival, padded on the left, each batch to its longest answer."""
    import torch

    outputs = []
    with torch.inference_mode():
        for first in range(0, len(requests), BATCH):
            batch = requests[first:first + BATCH]
            width, longest = max(len(prompt) for prompt, _ in batch), max(n for _, n in batch)
            ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt, _ in batch])
            mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt, _ in batch])
            out = lm.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=longest, min_new_tokens=longest,
                              pad_token_id=0)
            outputs += [row[width:width + n].tolist() for row, (_, n) in zip(out, batch, strict=True)]
    return outputs


def transformers(model: str, threads: int, dtype: str) -> tuple[Run, str]:
    """What `transformers.generate` does with them."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    lm: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    lm.generation_config.eos_token_id = None

    return partial(run_transformers, lm), transformers.__version__


def llama_cpp(model: str, threads: int, program: str | None = None, slots: int = 32, port: int = 8391) -> tuple[Run, str]:
    """llama.cpp's own server, 32 sequences at a time, and a client that sends all requests at once. model: a GGUF file.

    program: the server's; None for the same server within this process, as the package xllamacpp has it.
    """
    if program:
        url, version, process = llama_program(program, model, threads, slots, port)
    else:
        url, version = llama_package(model, threads, slots, port)

    def ask(path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=300) as answer:
            return json.load(answer)

    for _ in range(600):
        try:
            ask("/health")
            break
        except OSError:
            if program and process.poll() is not None:
                raise SystemExit(f"{program} ended with {process.returncode}") from None
            time.sleep(0.1)

    def generate(request: tuple[list[int], int]) -> list[int]:
        prompt, n = request
        told = ask("/completion", {"prompt": prompt, "n_predict": n, "temperature": 0, "ignore_eos": True,
                                   "cache_prompt": False, "return_tokens": True})
        return list(told["tokens"])

    def run(requests: Requests) -> list[list[int]]:
        with ThreadPoolExecutor(len(requests)) as clients:
            return list(clients.map(generate, requests))

    if program:
        run.close = process.terminate  # type: ignore[attr-defined]
        run.process = process.pid  # type: ignore[attr-defined]
    return run, version


def llama_program(program: str, model: str, threads: int, slots: int, port: int) -> tuple[str, str, "subprocess.Popen[bytes]"]:
    """The server's address, version and process."""
    asked = subprocess.run([program, "--version"], capture_output=True, encoding="utf-8", errors="replace", check=True)
    process = subprocess.Popen(
        [program, "-m", model, "--port", str(port), "-t", str(threads), "-tb", str(threads), "-np", str(slots), "-c",
         str(slots * 512), "--no-webui", "--cache-ram", "0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return f"http://127.0.0.1:{port}", (asked.stderr + asked.stdout).strip().splitlines()[0].removeprefix("version: "), process


def llama_package(model: str, threads: int, slots: int, port: int) -> tuple[str, str]:
    """The address and version of xllamacpp's server; the latter names the instructions that its build uses."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.hostnames, params.port = model, ["127.0.0.1"], port
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_parallel, params.n_ctx, params.cache_ram_mib, params.ui = slots, slots * 512, 0, False
    server = xllamacpp.Server(params)
    llama_package.server = server  # type: ignore[attr-defined]  # it ends with its last reference
    has = [part.split("=")[0].split(":")[-1].strip() for part in xllamacpp.get_system_info().split("|") if "= 1" in part]
    return server.listening_address, f"xllamacpp {xllamacpp.__version__}, with {' '.join(has)}"


def openvino(model: str, threads: int, precision: str | None = None) -> tuple[Run, str]:
    """openvino-genai's continuous batching. model: a GGUF file in float16. precision: f32, or its own choice."""
    import numpy as np
    import openvino
    import openvino_genai as genai

    settings = {"INFERENCE_NUM_THREADS": threads} | ({"INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision}
                                                    if precision else {})
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching, scheduler.max_num_seqs, scheduler.cache_size = False, 256, 1  # GiB
    pipe = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", settings)

    def run(requests: Requests) -> list[list[int]]:
        configs = []
        for _, n in requests:
            config = genai.GenerationConfig()
            config.max_new_tokens, config.ignore_eos, config.do_sample = n, True, False
            configs.append(config)
        prompts = [openvino.Tensor(np.array([prompt], np.int64)) for prompt, _ in requests]
        return [list(result.m_generation_ids[0]) for result in pipe.generate(prompts, configs)]

    return run, str(genai.__version__)


def processor_seconds(pid: int | None) -> float:
    """What this process has used of the processor, and a server that does the work for it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    own = used.ru_utime + used.ru_stime
    if pid is None:
        return own
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return own + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


ENGINES: dict[str, Callable[..., tuple[Run, str]]] = {
    "nanovllm": nanovllm, "transformers": transformers, "llama.cpp": llama_cpp, "openvino-genai": openvino}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")  # whatever a library prints goes where errors go
    os.dup2(2, 1)
    run, version = ENGINES[sys.argv[1]](**json.loads(sys.argv[2]))

    def answer(**told: Any) -> None:
        print(json.dumps(told), file=answers, flush=True)

    answer(version=version)
    for line in sys.stdin:
        requests = [(prompt, n) for prompt, n in json.loads(line)["requests"]]
        pid = getattr(run, "process", None)
        getattr(run, "renew", int)()
        wall, processor = time.perf_counter(), processor_seconds(pid)
        tokens = run(requests)
        answer(wall=time.perf_counter() - wall, processor=processor_seconds(pid) - processor, tokens=tokens)
    if close := getattr(run, "close", None):
        close()


if __name__ == "__main__":
    main()

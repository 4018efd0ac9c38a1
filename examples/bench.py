"""nano-vllm's benchmark, on this engine: random prompts and lengths, tokens per second of output.

`python examples/bench.py MODEL_FOLDER [NUM_REQUESTS]`; 256 requests of up to 1024 + 1024 tokens unless told.
The model's vocabulary must have at least 10,001 tokens.
"""

import sys
import time
from random import randint, seed

from nanovllm import LLM, SamplingParams


def main():
    path, num_seqs = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 256
    seed(0)
    max_input_len, max_output_len = 1024, 1024
    llm = LLM(path, enforce_eager=False, max_model_len=4096)

    prompt_token_ids = [[randint(0, 10000) for _ in range(randint(100, max_input_len))] for _ in range(num_seqs)]
    sampling_params = [SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=randint(100, max_output_len))
                       for _ in range(num_seqs)]
    llm.generate([[1, 2, 3]], SamplingParams())
    start = time.time()
    llm.generate(prompt_token_ids, sampling_params, use_tqdm=False)
    seconds = time.time() - start
    total = sum(p.max_tokens for p in sampling_params)
    print(f"Total: {total}tok, Time: {seconds:.2f}s, Throughput: {total / seconds:.2f}tok/s")


if __name__ == "__main__":
    main()

"""nano-vllm's first steps, on this engine: `python examples/example.py [MODEL_FOLDER]`."""

import sys

from transformers import AutoTokenizer

from nanovllm import LLM, SamplingParams
from nanovllm.config import OFFLINE_MODEL


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else str(OFFLINE_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(path)
    llm = LLM(path, enforce_eager=True, tensor_parallel_size=1)

    sampling_params = SamplingParams(temperature=0.6, max_tokens=256)
    questions = ["Tell me a story about a fox and a lantern.", "Name three colors."]
    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True)
               for q in questions]
    outputs = llm.generate(prompts, sampling_params)
    for prompt, output in zip(prompts, outputs):
        print(f"\nPrompt: {prompt!r}\nCompletion: {output['text']!r}")


if __name__ == "__main__":
    main()

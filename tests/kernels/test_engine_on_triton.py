"""The whole engine on our kernels gives the same greedy tokens as on plain PyTorch: chunks, prefix hits, mixed steps."""

from nanovllm import LLM, SamplingParams
from tests.checkpoints import random_checkpoint


def test_greedy_tokens_are_the_torch_backends(tmp_path, device):
    folder = str(random_checkpoint(tmp_path))
    shared = [5, 6, 7, 8, 9, 10, 11, 12]
    prompts = [shared * 2 + [1], [1, 2, 3], shared * 2 + [20, 21], [11] * 20]
    sampling = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
    tokens = {}
    for backend in ("torch", "triton"):
        options = {"max_num_batched_tokens": 16, "num_kvcache_blocks": 64, "kvcache_block_size": 4}
        with LLM(folder, attention_backend=backend, device=device, dtype="float32", **options) as llm:
            tokens[backend] = [out["token_ids"] for out in llm.generate(prompts, sampling, use_tqdm=False)]
    assert tokens["triton"] == tokens["torch"]

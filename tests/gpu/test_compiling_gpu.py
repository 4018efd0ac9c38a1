"""An engine that stands compiles nothing more: a kernel compiled in the middle of serving stops everybody for a second."""

import pytest

from nanovllm import LLM, SamplingParams

triton = pytest.importorskip("triton")


def test_nothing_is_compiled_once_the_engine_stands(monkeypatch):
    compiled = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda **told: compiled.append(told["fn"].name))
    kinds = [dict(temperature=0), dict(temperature=0.8), dict(temperature=0.8, top_k=20, top_p=0.9), dict(top_p=0.5),
             dict(min_p=0.1), dict(temperature=1.1, top_k=3)]  # fmt: skip
    with LLM(dtype="bfloat16", max_num_seqs=40) as llm:
        assert compiled, "the hook sees what is compiled"
        compiled.clear()
        for count in (1, 2, 3, 7, 40, 75):
            prompts = [[5 + (i + j) % 50 for j in range(1 + 13 * i % 111)] for i in range(count)]
            params = [SamplingParams(max_tokens=3 + i % 9, ignore_eos=True, seed=i, **kinds[i % len(kinds)])
                      for i in range(count)]
            llm.generate(prompts, params, use_tqdm=False)
    assert not compiled

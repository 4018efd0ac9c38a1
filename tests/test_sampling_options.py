"""Every option of a request through the whole engine, against what transformers' model and processors say."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from nanovllm import LLM, SamplingParams

from .checkpoints import random_checkpoint, reference

PROMPTS = [[1, 2, 3], [5] * 9, list(range(20, 37)), [7]]
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = random_checkpoint(tmp_path_factory.mktemp("model"))
    return folder, reference(folder)


@pytest.fixture(scope="module")
def llm(checkpoint):
    with LLM(checkpoint[0], device="cpu", kvcache_block_size=4, num_kvcache_blocks=64) as llm:
        yield llm


@torch.inference_mode()
def greedy_with(model, prompt, processors):
    ids = torch.tensor([prompt])
    for _ in range(NUM_TOKENS):
        scores = LogitsProcessorList(processors)(ids, model(ids).logits[:, -1])
        ids = torch.cat((ids, scores.argmax(-1, keepdim=True)), -1)
    return ids[0, len(prompt):].tolist()


@pytest.mark.parametrize("budget", [16384, 5])
@pytest.mark.parametrize("options, processors", [
    (dict(repetition_penalty=1.5), [RepetitionPenaltyLogitsProcessor(1.5)]),
    (dict(repetition_penalty=0.8), [RepetitionPenaltyLogitsProcessor(0.8)]),
    (dict(logit_bias={8: 6.0, 9: -100}), [SequenceBiasLogitsProcessor({(8,): 6.0, (9,): -100.0})]),
    (dict(logit_bias={8: 6.0}, repetition_penalty=1.2),
     [SequenceBiasLogitsProcessor({(8,): 6.0}), RepetitionPenaltyLogitsProcessor(1.2)]),
], ids=["repeat less", "repeat more", "bias", "bias and penalty"])
def test_greedy_text_equals_transformers_with_the_same_processors(checkpoint, options, processors, budget):
    folder, model = checkpoint
    with LLM(folder, device="cpu", kvcache_block_size=4, num_kvcache_blocks=16, max_num_batched_tokens=budget) as llm:
        params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, **options)
        outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    assert [o.token_ids for o in outputs] == [greedy_with(model, p, processors) for p in PROMPTS]


def test_before_min_tokens_no_end_is_drawn(checkpoint, llm):
    prompt = PROMPTS[0]
    plain, = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=NUM_TOKENS), use_tqdm=False)
    end = plain.token_ids[2]
    for least in (0, 1, 5, NUM_TOKENS):
        params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, min_tokens=least, stop_token_ids=[end])
        out, = llm.generate([prompt], params, use_tqdm=False)
        processor = MinNewTokensLengthLogitsProcessor(len(prompt), least, end)
        expected = greedy_with(checkpoint[1], prompt, [processor])
        stop = next((i + 1 for i, token in enumerate(expected) if token == end), NUM_TOKENS)
        assert out.token_ids == expected[:stop] and len(out.token_ids) >= least


@pytest.mark.parametrize("options", [dict(presence_penalty=1.5), dict(frequency_penalty=0.9),
                                     dict(presence_penalty=-1.0, frequency_penalty=0.5)], ids=str)
def test_presence_and_frequency_follow_their_definition(checkpoint, llm, options):
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, **options)

    def penalize(prompt):
        def processor(ids, scores):
            output = ids[0, len(prompt):]
            counts = torch.bincount(output, minlength=scores.shape[-1])
            return scores - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)
        return processor

    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    assert [o.token_ids for o in outputs] == [greedy_with(checkpoint[1], p, [penalize(p)]) for p in PROMPTS]


@pytest.mark.parametrize("budget", [16384, 5])
def test_logprobs_are_the_models_whatever_the_draw(checkpoint, budget):
    folder, model = checkpoint
    params = [SamplingParams(temperature=1.3, top_k=5, presence_penalty=1, seed=1, max_tokens=6, logprobs=3, prompt_logprobs=2),
              SamplingParams(temperature=0, max_tokens=6, logprobs=0),
              SamplingParams(temperature=0, max_tokens=6, prompt_logprobs=20),
              SamplingParams(temperature=0, max_tokens=6)]
    with LLM(folder, device="cpu", kvcache_block_size=4, num_kvcache_blocks=16, max_num_batched_tokens=budget) as llm:
        outputs = llm.generate(PROMPTS, params, use_tqdm=False)
        again = llm.generate(PROMPTS, params, use_tqdm=False)  # prompts are in the prefix cache now
    for out, second, p, prompt in zip(outputs, again, params, PROMPTS, strict=True):
        logprobs = model(torch.tensor([prompt + out.token_ids])).logits[0].log_softmax(-1)
        assert (out.logprobs is None) == (p.logprobs is None) and (out.prompt_logprobs is None) == (p.prompt_logprobs is None)
        entries = []
        if p.logprobs is not None:
            assert len(out.logprobs) == 6
            drawn = enumerate(zip(out.token_ids, out.logprobs), start=len(prompt))
            entries += [(position, token, entry, p.logprobs) for position, (token, entry) in drawn]
            assert out.outputs[0].cumulative_logprob == pytest.approx(
                sum(logprobs[len(prompt) - 1 + i, t].item() for i, t in enumerate(out.token_ids)), abs=1e-3)
        if p.prompt_logprobs is not None:
            assert len(out.prompt_logprobs) == len(prompt) and out.prompt_logprobs[0] is None
            entries += [(i, prompt[i], e, p.prompt_logprobs) for i, e in enumerate(out.prompt_logprobs) if i]
            assert second.usage.cached_tokens == 0
        for position, token, entry, k in entries:
            row = logprobs[position - 1]
            assert entry[token].rank == 1 + (row > row[token]).sum()
            assert {token, *row.topk(k).indices.tolist()} == set(entry)
            for other, (logprob, rank, _) in entry.items():
                assert logprob == pytest.approx(row[other].item(), abs=1e-4) and rank == 1 + (row > row[other]).sum()
        assert second.token_ids == out.token_ids


def test_only_those_who_ask_compute_their_prompts_logits(llm, monkeypatch):
    rows, model = [], llm.engine.model_runner.model
    compute = model.compute_logits
    monkeypatch.setattr(model, "compute_logits", lambda hidden: rows.append(len(hidden)) or compute(hidden))
    llm.generate([[60 + i for i in range(30)]], SamplingParams(temperature=0, max_tokens=2), use_tqdm=False)
    assert rows == [1, 1]
    rows.clear()
    llm.generate([[61] * 30], SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=0), use_tqdm=False)
    assert rows == [29, 1, 1]


def test_long_prompts_report_in_chunks(checkpoint, monkeypatch):
    import nanovllm.engine.logprobs as module
    with LLM(checkpoint[0], device="cpu") as llm:
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
        whole, = llm.generate([list(range(40))], params, use_tqdm=False)
        monkeypatch.setattr(module, "CHUNK_ROWS", 7)
        chunked, = llm.generate([list(range(40))], params, use_tqdm=False)
    assert [set(e or ()) for e in whole.prompt_logprobs] == [set(e or ()) for e in chunked.prompt_logprobs]


def test_samples_of_one_prompt_report_it_once(llm):
    params = SamplingParams(n=3, seed=1, max_tokens=3, logprobs=1, prompt_logprobs=1)
    out, = llm.generate([[9, 8, 7, 6, 5]], params, use_tqdm=False)
    assert len(out.prompt_logprobs) == 5 and [len(o.logprobs) for o in out.outputs] == [3, 3, 3]

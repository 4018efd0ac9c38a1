"""Scores that are not finite end the requests concerned, with an error that says so, and nobody else's."""

import asyncio
import json
import logging
import math

import pytest
import torch
from fastapi.testclient import TestClient

from nanovllm import LLM, AsyncLLM, SamplingParams
from nanovllm.errors import NotFinite, RequestFailed
from nanovllm.layers.sampler import NOT_FINITE, Sampler, SamplingBatch, finite_rows
from nanovllm.server.app import create_app

from .checkpoints import random_checkpoint

NAN, INF = float("nan"), float("inf")
BAD = 77  # the token whose embedding is broken
GOOD_PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9, 8, 7], [1, 2, 3, 4, 5, 6, 8]]
BAD_PROMPTS = [[1, 2, 3, 4, BAD, 6], [BAD]]
KINDS = {
    "greedy": dict(temperature=0),
    "drawn": dict(temperature=0.8),
    "filtered": dict(temperature=0.8, top_k=9, top_p=0.9, min_p=0.01),
    "penalized": dict(temperature=0.8, repetition_penalty=1.2, logit_bias={3: 2.0}),
    "penalized and greedy": dict(temperature=0, presence_penalty=0.5),
    "with logprobs": dict(temperature=0.8, logprobs=3, prompt_logprobs=2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("model"), tie_word_embeddings=False)


def params_of(kind, **more):
    p = dict(max_tokens=6, ignore_eos=True) | KINDS[kind] | more
    return SamplingParams(**p) if p["temperature"] == 0 else SamplingParams(**p, seed=5)


def break_token(llm, value=NAN):
    """From now on whatever reads token BAD computes with `value`."""
    with torch.inference_mode():
        embedding(llm).weight[BAD, 3] = value


def embedding(llm):
    model = llm.engine.model_runner.model.model
    return getattr(model, "model", model).embed_tokens  # the kernels' form stands around the plain one


@pytest.fixture(params=["step by step", "looking ahead", "from rows", "in Triton"])
def llm(request, folder):
    """An engine so small that blocks of requests that failed are used again at once."""
    settings = dict(device="cpu", kvcache_block_size=4, num_kvcache_blocks=24, max_num_seqs=8)
    if request.param == "in Triton":
        pytest.importorskip("triton")
        settings["attention_backend"] = "triton"
    with LLM(folder, async_scheduling=request.param != "step by step", **settings) as llm:
        if request.param == "from rows":
            runner = llm.engine.model_runner
            runner.graphs = runner.decode_graphs(llm.config, capture=False)
        yield llm
        llm.engine.check_integrity()
        assert not llm.engine.has_unfinished
        assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks


def tokens(outputs):
    return [output.token_ids for output in outputs]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_whose_scores_are_nan_fails_and_the_others_keep_their_tokens(llm, kind, caplog):
    in_triton = llm.engine.model_runner.backend.name == "triton"
    if kind not in ("drawn", "filtered") and in_triton:
        pytest.skip("the interpreter takes its time")
    params = params_of(kind, max_tokens=3 if in_triton else 6)  # a prompt, a decode, and one behind it
    expected = tokens(llm.generate(GOOD_PROMPTS, params, use_tqdm=False))
    break_token(llm)
    prompts = [GOOD_PROMPTS[0], BAD_PROMPTS[0], GOOD_PROMPTS[1], BAD_PROMPTS[1], GOOD_PROMPTS[2]]
    for _ in range(3):  # in the blocks, too, that held what is not finite
        with caplog.at_level(logging.WARNING, "nanovllm"):
            outputs = llm.generate(prompts, params, use_tqdm=False)
        assert tokens(outputs[::2]) == expected and [o.finish_reason for o in outputs[::2]] == ["length"] * 3
        for output in outputs[1::2]:
            assert (output.finish_reason, output.token_ids) == ("error", [])
            assert "not finite" in output.error and "dtype" in output.error
        assert all(output.error is None for output in outputs[::2])
        json.dumps([o.logprobs for o in outputs], allow_nan=False)
    assert "2 of 5 requests failed" in caplog.text
    with pytest.raises(NotFinite, match="output token 0 are not finite") as caught:
        llm.generate(BAD_PROMPTS, params, use_tqdm=False)
    assert isinstance(caught.value, RequestFailed)


def test_a_request_that_draws_the_broken_token_keeps_what_it_drew_before(llm):
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    first, = llm.generate([[1, 2, 3]], params, use_tqdm=False)
    broken = first.token_ids[2]
    with torch.inference_mode():
        embedding(llm).weight[broken, 0] = INF
    other = [t for t in range(90) if t != broken][:4]
    failed, fine = llm.generate([[1, 2, 3], other], [params, SamplingParams(temperature=0, max_tokens=1)], use_tqdm=False)
    assert failed.token_ids == first.token_ids[:3] and failed.finish_reason == "error"
    assert "output token 3 " in failed.error and fine.finish_reason == "length"


def test_a_stream_gives_the_others_and_raises_at_the_end():
    with LLM(device="cpu", num_kvcache_blocks=64, max_num_seqs=8) as llm:
        params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
        good = "Once upon a time"
        bad_token = llm.tokenizer.encode(" kite")[-1]
        expected = llm.generate(good, params, use_tqdm=False)[0].text
        lookup = embedding(llm)
        original = lookup.forward
        lookup.forward = lambda ids: original(ids).masked_fill((ids == bad_token)[:, None], NAN)
        pieces = []
        with pytest.raises(NotFinite):
            for i, piece in llm.stream([good, "A hen and a kite"], params):
                pieces.append((i, piece))
        assert {i for i, _ in pieces} == {0} and "".join(piece for _, piece in pieces) == expected
        assert not llm.engine.has_unfinished


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("kind", KINDS)
def test_no_infinity_of_the_models_own_passes_for_a_filters(kind, value):
    """One score among many is enough, wherever it stands, and however likely the others are."""
    params = [params_of(kind)] * 4
    for draw in draws():
        for at in (0, 40, 5999):
            logits = torch.randn(4, 6000)
            logits[1, at] = value
            assert finite_rows(logits).tolist() == [True, False, True, True]
            found = Sampler(draw)(logits, sampling_batch(params))
            assert [token < 0 for token in found.tolist()] == [False, True, False, False] and found[1] == NOT_FINITE


def test_a_row_whose_tokens_are_all_forbidden_has_none_to_draw():
    params = [SamplingParams(temperature=t, min_tokens=3, stop_token_ids=list(range(n))) for t in (0, 1) for n in (50, 49)]
    params.append(SamplingParams(top_k=2, min_tokens=3, stop_token_ids=list(range(50))))
    for draw in draws():
        found = Sampler(draw)(torch.randn(5, 50), sampling_batch(params))
        assert found.tolist() == [NOT_FINITE, 49, NOT_FINITE, 49, NOT_FINITE]


def draws():
    from nanovllm.layers.sampler import draw as plain
    yield plain
    try:
        from nanovllm.kernels.sample import draw as fast
    except ImportError:
        return
    yield fast


def sampling_batch(params):
    from nanovllm.layers.logits_processors import LogitsProcessors
    seeds = list(range(len(params)))
    processors = None
    if any(p.changes_scores for p in params):
        processors = LogitsProcessors.from_rows(params, [[1, 2]] * len(params), [2] * len(params),
                                                torch.tensor([3] * len(params)), (), 50 if params[0].stop_token_ids else 6000)
    return SamplingBatch.from_params(params, seeds, seeds, processors=processors)


def test_a_filter_may_forbid_all_but_one():
    params = [SamplingParams(top_k=1), SamplingParams(top_p=1e-9), SamplingParams(min_p=1.0)]
    logits = torch.randn(3, 6000)
    for draw in draws():
        assert Sampler(draw)(logits, sampling_batch(params)).tolist() == logits.argmax(-1).tolist()


def test_prompt_logprobs_that_are_no_numbers_end_the_request(folder):
    """A head that overflows for one prompt position only: the draw itself is in order."""
    with LLM(folder, device="cpu") as llm:
        model = llm.engine.model_runner.model
        compute, calls = model.compute_logits, []

        def overflowing(hidden):
            logits = compute(hidden)
            calls.append(len(hidden))
            if len(calls) == 1:  # the prompt's own positions
                logits[1, 5] = INF
            return logits

        model.compute_logits = overflowing
        asking, other = llm.generate(GOOD_PROMPTS[:2], [params_of("greedy", prompt_logprobs=1), params_of("greedy")],
                                     use_tqdm=False)
        assert asking.finish_reason == "error" and "prompt token 2 are not finite" in asking.error
        assert other.finish_reason == "length" and len(other.token_ids) == 6


def test_a_sampler_of_ones_own_need_not_look(folder):
    def greedy(logits, batch):
        return logits.nan_to_num().argmax(-1)

    with LLM(folder, device="cpu", sampler=greedy) as llm:
        break_token(llm)
        bad, good = llm.generate([BAD_PROMPTS[0], GOOD_PROMPTS[0]], params_of("greedy"), use_tqdm=False)
        assert bad.finish_reason == "error" and good.finish_reason == "length"


def test_what_is_not_finite_is_not_found_in_the_prefix_cache(folder):
    """A fault that passes, as of a card that grew too hot: the same prompt is served right afterwards."""
    prompt = list(range(20, 40))
    with LLM(folder, device="cpu", kvcache_block_size=4) as llm:
        expected = tokens(llm.generate([prompt], params_of("greedy"), use_tqdm=False))
        llm.engine.block_manager.reset_prefix_cache()
        norm = llm.engine.model_runner.model.model.layers[0].input_layernorm
        kept = norm.weight.clone()
        with torch.inference_mode():
            norm.weight.fill_(NAN)
            with pytest.raises(NotFinite):
                llm.generate([prompt], params_of("greedy"), use_tqdm=False)
            norm.weight.copy_(kept)
        again, = llm.generate([prompt], params_of("greedy"), use_tqdm=False)
        assert again.num_cached_tokens == 0 and [again.token_ids] == expected


def test_tasks_that_share_an_engine(folder):
    llm = LLM(folder, device="cpu", async_scheduling=True)
    params = params_of("with logprobs", n=2)
    expected = tokens(llm.generate(GOOD_PROMPTS, params, use_tqdm=False))
    break_token(llm)

    async def main():
        async with AsyncLLM(llm) as shared:
            return await asyncio.gather(*(shared.generate(p, params) for p in (*GOOD_PROMPTS, *BAD_PROMPTS)),
                                        return_exceptions=True)

    results = asyncio.run(main())
    assert tokens(results[:3]) == expected
    assert [type(error) for error in results[3:]] == [NotFinite, NotFinite] and results[3] is not results[4]
    assert not llm.engine.has_unfinished
    llm.close()


def test_the_server_answers_500_for_that_request_and_its_stream_ends_with_an_error_event():
    llm = LLM(device="cpu", num_kvcache_blocks=64, max_num_seqs=8)
    prompts = {"good": llm.tokenizer.encode("Once upon a time"), "bad": llm.tokenizer.encode("A hen and a kite")}
    bad = torch.tensor([t for t in prompts["bad"] if t not in prompts["good"]])
    lookup = embedding(llm)
    original = lookup.forward
    body = {"max_tokens": 5, "temperature": 0, "logprobs": 2}
    with TestClient(create_app(AsyncLLM(llm)), raise_server_exceptions=False) as client:
        whole = client.post("/v1/completions", json=body | {"prompt": prompts["good"]}).json()["choices"][0]["text"]
        lookup.forward = lambda ids: original(ids).masked_fill(torch.isin(ids, bad)[:, None], NAN)
        answer = client.post("/v1/completions", json=body | {"prompt": prompts["bad"]})
        assert answer.status_code == 500 and "not finite" in answer.json()["error"]["message"]
        events = client.post("/v1/completions", json=body | {"prompt": prompts["bad"], "stream": True}).text.split("\n\n")
        events = [event.removeprefix("data: ") for event in events if event]
        assert events[-1] == "[DONE]" and "not finite" in json.loads(events[-2], parse_constant=fail)["error"]["message"]
        good = client.post("/v1/completions", json=body | {"prompt": prompts["good"]})
        assert good.status_code == 200 and json.loads(good.text, parse_constant=fail)["choices"][0]["text"] == whole
        assert client.get("/health").status_code == 200
    llm.close()


def fail(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_on_a_model_that_is_split(folder):
    with LLM(folder, device="cpu", tensor_parallel_size=2, async_scheduling=True) as llm:
        from .worker_code import in_worker
        expected = tokens(llm.generate(GOOD_PROMPTS, params_of("with logprobs"), use_tqdm=False))
        for rank in range(2):
            in_worker(llm, rank, "import gc, torch\nfrom nanovllm.engine.model_runner import ModelRunner\n"
                                 "runner, = (o for o in gc.get_objects() if isinstance(o, ModelRunner))\n"
                                 "lookup = runner.model.model.embed_tokens\noriginal = lookup.forward\n"
                                 f"def broken(ids):\n    return original(ids).masked_fill((ids == {BAD})[:, None], torch.nan)\n"
                                 "lookup.forward = broken")
        outputs = llm.generate([*GOOD_PROMPTS, *BAD_PROMPTS], params_of("with logprobs"), use_tqdm=False)
        assert tokens(outputs[:3]) == expected
        assert [output.finish_reason for output in outputs] == ["length"] * 3 + ["error"] * 2
        assert llm.engine.failure is None


def test_a_trace_of_it_is_sound(folder, tmp_path):
    with LLM(folder, device="cpu") as llm:
        break_token(llm)
        with llm.trace(tmp_path / "steps.jsonl") as trace:
            llm.generate([GOOD_PROMPTS[0], BAD_PROMPTS[0]], params_of("drawn"), use_tqdm=False)
        assert any({"seq_id": 1, "reason": "error"} == ended for record in trace for ended in record.finished)
        assert all(token >= 0 for record in trace for token in record.tokens.values())
        assert math.isfinite(trace[0].duration)

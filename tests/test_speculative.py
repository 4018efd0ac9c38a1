"""Speculative decoding with real models: the same text, the same distribution, fewer steps."""

from itertools import product
from math import exp, sqrt

import pytest

from nanovllm import LLM, SamplingParams
from nanovllm.config import DRAFT_MODEL, OFFLINE_MODEL
from nanovllm.engine.drafts import Drafter
from nanovllm.engine.scheduler import Scheduler
from nanovllm.tracing.perfetto import perfetto_events
from nanovllm.tracing.trace import Trace
from tests.checkpoints import random_checkpoint
from visualizations import SpeculationExplorer, record_speculation
from visualizations.explorers.base import unpack

BY_MODEL = {"method": "draft_model", "model": str(DRAFT_MODEL), "num_speculative_tokens": 4}
LOOK_UP = {"method": "ngram", "prompt_lookup_max": 4}
CHATS = ["Tell me a story about a fox.", "What is the capital of France?", "Write a poem about the rain."]


@pytest.fixture(scope="module")
def plain():
    with LLM(device="cpu") as llm:
        yield llm


def chats(llm):
    return [llm.render_chat([{"role": "user", "content": text}]) for text in CHATS]


def steps(llm, prompts, params):
    before = llm.engine.num_steps
    outputs = llm.generate(prompts, params, use_tqdm=False)
    llm.engine.check_integrity()
    assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks
    return [out.token_ids for out in outputs], llm.engine.num_steps - before


@pytest.mark.parametrize("temperature", [0, 0.7, 1.2])
def test_a_draft_model_changes_the_number_of_steps_and_not_one_token(plain, temperature):
    params = [SamplingParams(temperature=temperature, seed=i, max_tokens=60, ignore_eos=True) for i in range(3)]
    expected, without = steps(plain, chats(plain), params)
    with LLM(device="cpu", speculative_config=BY_MODEL) as llm:
        for _ in range(2):  # the second time it finds the prompts cached, its own cache too
            texts, num_steps = steps(llm, chats(llm), params)
            assert texts == expected
            assert num_steps < 0.8 * without
        counts = llm.engine.speculation.counts
        assert counts.accepted > 0.5 * counts.drafted
        assert not llm.engine.speculation.drafter._copies


def test_the_draft_model_computes_a_shared_prefix_once(plain):
    with LLM(device="cpu", speculative_config=BY_MODEL, kvcache_block_size=16) as llm:
        runner, computed = llm.engine.speculation.drafter.runner, []
        launch = runner.launch
        runner.launch = lambda batch: (computed.append(batch.num_tokens), launch(batch))[1]
        prompt = llm.tokenizer.encode("Once upon a time there was a fox who lived by the sea. " * 6)
        assert len(prompt) > 64
        sizes = []
        for _ in range(2):
            computed.clear()
            llm.generate([prompt], SamplingParams(temperature=0, max_tokens=8, ignore_eos=True), use_tqdm=False)
            sizes.append(sum(computed))
        assert sizes[0] > len(prompt) and sizes[1] < sizes[0] - len(prompt) + 17


@pytest.mark.parametrize("from_rows", [False, True])
def test_a_draft_model_of_the_same_weights_is_right_every_time(from_rows):
    """Its cache, its noise and its filters are the target's then, so a wrong draft would be a fault in one of them."""
    params = [SamplingParams(temperature=1.0, seed=1, max_tokens=40, ignore_eos=True),
              SamplingParams(temperature=0.8, seed=2, max_tokens=40, ignore_eos=True, top_k=20, top_p=0.9),
              SamplingParams(temperature=0.8, seed=3, max_tokens=40, ignore_eos=True, repetition_penalty=1.3, min_tokens=30)]
    with LLM(device="cpu", speculative_config={"model": OFFLINE_MODEL}, kvcache_block_size=4, num_kvcache_blocks=60,
             max_num_batched_tokens=48) as llm:
        drafter = llm.engine.speculation.drafter
        drafter.cost = 0.0  # as if it were cheap
        if from_rows:  # as CUDA graphs run both
            for runner, config in ((drafter.runner, llm.config.draft), (llm.engine.model_runner, llm.config)):
                runner.graphs = runner.decode_graphs(config, capture=False)
        llm.generate(chats(llm), params, use_tqdm=False)
        counts = llm.engine.speculation.counts
        assert counts.accepted == counts.drafted >= 60, counts


def test_look_up_pays_where_a_text_repeats_itself(plain):
    prompt = plain.render_chat([{"role": "user", "content": "Please repeat: fox, lantern, Mia, bell, bear, red, hen, Otto."}])
    expected, without = steps(plain, [prompt], SamplingParams(temperature=0))
    with LLM(device="cpu", speculative_config=LOOK_UP) as llm:
        texts, num_steps = steps(llm, [prompt], SamplingParams(temperature=0))
    assert texts == expected and num_steps < 0.7 * without


def test_log_probabilities_are_those_of_the_model(plain):
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=30, ignore_eos=True, logprobs=3, prompt_logprobs=1)
    expected = plain.generate(chats(plain)[:1], params, use_tqdm=False)[0]
    with LLM(device="cpu", speculative_config=BY_MODEL) as llm:
        ours = llm.generate(chats(llm)[:1], params, use_tqdm=False)[0]
    assert ours.token_ids == expected.token_ids and len(ours.logprobs) == 30
    for a, b in zip(ours.logprobs + ours.prompt_logprobs[1:], expected.logprobs + expected.prompt_logprobs[1:], strict=True):
        assert a.keys() == b.keys()
        assert all(a[token].logprob == pytest.approx(b[token].logprob, abs=1e-3) for token in a)


def test_streams_get_several_tokens_at_once_and_the_same_text(plain):
    params = SamplingParams(temperature=0, max_tokens=40, stop=["the sea"])
    expected = "".join(plain.stream(chats(plain)[0], params))
    with LLM(device="cpu", speculative_config=BY_MODEL) as llm:
        assert "".join(llm.stream(chats(llm)[0], params)) == expected


@pytest.mark.unmeasured
def test_the_coupled_draws_have_the_models_distribution(plain):
    """Three tokens out of four allowed ones, drawn by many seeds with drafts: as often as the model says (chi-square)."""
    prompt, allowed, num_draws = plain.tokenizer.encode("Once upon a time"), [40, 41, 50, 60], 3000
    bias = dict.fromkeys(allowed, 80.0)
    triples = list(product(allowed, repeat=3))
    scored = plain.generate([prompt + list(triple) for triple in triples],
                            SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0), use_tqdm=False)
    logprobs = {triple: [out.prompt_logprobs[len(prompt) + i][triple[i]].logprob for i in range(3)]
                for triple, out in zip(triples, scored)}
    # High enough for every triple to be seen.
    temperature, expected = 3.0, {}
    for triple in triples:
        chance = 1.0
        for i in range(3):
            rivals = [exp(logprobs[(*triple[:i], token, *[allowed[0]] * (2 - i))][i] / temperature) for token in allowed]
            chance *= exp(logprobs[triple][i] / temperature) / sum(rivals)
        expected[triple] = chance * num_draws
    params = [SamplingParams(temperature=temperature, seed=seed, max_tokens=3, ignore_eos=True, logit_bias=bias)
              for seed in range(num_draws)]
    with LLM(device="cpu", max_num_seqs=32, speculative_config=BY_MODEL | {"disable_by_batch_size": 10_000}) as llm:
        outputs = llm.generate([prompt] * num_draws, params, use_tqdm=False)
        counts = llm.engine.speculation.counts
    assert min(counts.accepted, counts.drafted - counts.accepted) >= 500, counts
    seen = dict.fromkeys(triples, 0)
    for out in outputs:
        seen[tuple(out.token_ids)] += 1
    cells = [(seen[t], expected[t]) for t in triples if expected[t] >= 5]
    rest = [sum(seen[t] for t in triples if expected[t] < 5), sum(e for e in expected.values() if e < 5)]
    if rest[1] >= 5:
        cells.append(tuple(rest))
    freedom = len(cells) - 1
    chi2 = sum((o - e) ** 2 / e for o, e in cells)
    z = ((chi2 / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / sqrt(2 / (9 * freedom))  # Wilson and Hilferty, 1931
    assert freedom >= 12 and z < 3.3, (chi2, freedom)


class Parrot(Drafter):
    """Guesses that the last token comes again: mostly wrong."""

    def propose(self, sequences, limits):
        return [[seq.token_ids[-1]] * limit for seq, limit in zip(sequences, limits)]


class OnlyProposes:
    propose = Parrot.propose


class HasADevice(OnlyProposes):
    on_device = Parrot.on_device


class LooksLikeOne(OnlyProposes):
    """Of no class of ours, and with all that a drafter of the host is asked."""

    cost = 0.0

    def forget(self, seq_id):
        pass

    def close(self):
        pass


@pytest.mark.parametrize("drafter", [Parrot, LooksLikeOne])
def test_a_drafter_of_ones_own(plain, drafter):
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    expected, _ = steps(plain, chats(plain), params)
    with LLM(device="cpu", drafter=drafter(), speculative_config={"num_speculative_tokens": 2}) as llm:
        assert steps(llm, chats(llm), params)[0] == expected
        assert llm.engine.speculation.counts.drafted >= 3


def costing(cost):
    drafter = Parrot()
    drafter.cost = cost
    return drafter


class OwnScheduler(Scheduler):
    def schedule(self):
        return super().schedule()


class OwnWithDrafts(Scheduler):
    schedules_drafts = True

    def schedule(self):
        return super().schedule()


def test_a_scheduler_that_schedules_drafts_serves_with_a_drafter():
    params = SamplingParams(temperature=0, max_tokens=24)
    asked = [[{"role": "user", "content": text}] for text in (*CHATS[:1], "Please repeat: fox, lantern, Mia, bell, bear, hen.")]
    with LLM(device="cpu") as llm:
        expected = [out.text for out in llm.chat(asked, params, use_tqdm=False)]
    with LLM(device="cpu", speculative_config=LOOK_UP, scheduler_cls=OwnWithDrafts) as llm:
        assert [out.text for out in llm.chat(asked, params, use_tqdm=False)] == expected
        assert llm.engine.speculation.counts.accepted >= 5
        llm.engine.check_integrity()


@pytest.mark.parametrize("settings, message", [
    ({"drafter": Parrot(), "speculative_config": LOOK_UP}, "pass one of the two"),
    ({"drafter": "parrot"}, "an object with a `propose` method"),
    ({"speculative_config": {}}, r"\['method'\]=None: must be named"),
    ({"speculative_config": LOOK_UP, "scheduler_cls": OwnScheduler}, "scheduler_cls='OwnScheduler'"),
    ({"speculative_config": {"model": "/nowhere"}}, r"^speculative_config\['model'\]: model='/nowhere'"),
    ({"drafter": Parrot}, "an object, and not its class"),
    ({"drafter": OnlyProposes()}, "it has no forget, close"),
    ({"drafter": HasADevice()}, "it has no likely, catch_up, overwrite, follow, forget, close"),
    ({"drafter": costing(None)}, "drafter.cost=None"), ({"drafter": costing(-0.1)}, "drafter.cost=-0.1"),
    ({"drafter": costing(float("nan"))}, "drafter.cost=nan")])
def test_what_cannot_be_combined_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        LLM(device="cpu", **settings)


def test_a_draft_model_with_another_vocabulary_is_refused(tmp_path):
    folder = str(random_checkpoint(tmp_path))
    with pytest.raises(ValueError, match=r"a model with the target's vocabulary of \d+ tokens, not \d+"):
        LLM(device="cpu", speculative_config={"model": folder})


def test_a_complaint_about_the_draft_model_says_that_it_is_its(tmp_path):
    """Another model than the one that was named first cannot be run by the kernels that this one is run by."""
    target, narrow = (str(random_checkpoint(tmp_path / str(width), head_dim=width)) for width in (32, 16))
    with pytest.raises(ValueError, match=r"^speculative_config\['model'\]: .*head_dim 16"):
        LLM(target, device="cpu", attention_backend="cpu", num_kvcache_blocks=9, speculative_config={"model": narrow})


def test_closing_gives_the_draft_models_memory_back():
    llm = LLM(device="cpu", speculative_config=BY_MODEL)
    runner = llm.engine.speculation.drafter.runner
    llm.close()
    llm.close()
    assert runner.model is None and runner.kv_cache is None


def test_a_trace_says_what_was_drafted_and_kept(tmp_path):
    params = [SamplingParams(temperature=1.0, seed=i, max_tokens=20 + i, ignore_eos=True) for i in range(3)]
    with LLM(device="cpu", speculative_config=BY_MODEL) as llm:
        with llm.trace() as trace:
            outputs = llm.generate(chats(llm), params, use_tqdm=False)
    assert sum(record.num_new_tokens for record in trace) == sum(len(out.token_ids) for out in outputs) == 63
    for i, out in enumerate(outputs):
        told, seq_id = [], out.request_id
        for record in trace:
            told += record.drafts.get(seq_id, [])[:record.accepted.get(seq_id, 0)]
            told += [record.tokens[seq_id]] if seq_id in record.tokens else []
        assert told == out.token_ids, f"request {i}"
    drafted = sum(len(drafts) for record in trace for drafts in record.drafts.values())
    assert drafted == sum(out.num_drafted_tokens for out in outputs) >= 20
    trace.save(tmp_path / "trace.zip")
    assert list(Trace.load(tmp_path / "trace.zip")) == list(trace)
    names = {event["name"] for event in perfetto_events(trace, trace.meta["arrivals"], trace.operations)}
    assert "drafts" in names


def test_a_request_that_a_draft_ends_is_told_right():
    with LLM(device="cpu", speculative_config=BY_MODEL) as llm:
        prompt = chats(llm)[0]
        whole = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=40), use_tqdm=False)[0].token_ids
        ends = 0
        for stop in range(3, 20):
            if whole[stop] in whole[:stop]:
                continue
            with llm.trace() as trace:
                out, = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=40, stop_token_ids=[whole[stop]]),
                                    use_tqdm=False)
            last = trace[-1]
            ends += last.tokens[out.request_id] in last.drafts.get(out.request_id, [])
            assert last.tokens[out.request_id] == out.token_ids[-1] == whole[stop]
            assert sum(record.num_new_tokens for record in trace) == len(out.token_ids)
        assert ends >= 2


def test_rows_draft_what_plain_steps_draft():
    """Guess for guess: a row that went on from its own wrong guess would only show in how many are right."""
    params = [SamplingParams(temperature=t, seed=5, max_tokens=50, ignore_eos=True) for t in (0, 0.8, 1.0)]
    counts = []
    for from_rows in (False, True):
        with LLM(device="cpu", speculative_config=BY_MODEL) as llm:
            runner = llm.engine.speculation.drafter.runner
            runner.graphs = runner.decode_graphs(llm.config.draft, capture=False) if from_rows else None
            llm.generate(chats(llm), params, use_tqdm=False)
            counts.append(llm.engine.speculation.counts.by_position)
    assert counts[0] == counts[1]


def test_an_answer_is_recorded_with_what_both_models_thought(plain):
    params = SamplingParams(temperature=0, max_tokens=24)
    expected = plain.generate(chats(plain)[:1], params, use_tqdm=False)[0].token_ids
    for settings, has_own in ((BY_MODEL, True), (LOOK_UP, False)):
        with LLM(device="cpu", speculative_config=settings) as llm:
            recorded = record_speculation(llm, chats(llm)[0], params)
            assert not llm.engine.has_unfinished and recorded.output_token_ids == expected
            for step in recorded.steps:
                assert len(step["drawn"]) == len(step["drafts"]) + 1 == len(step["target"])
                assert step["target"].argmax(-1).tolist() == step["drawn"]
                if has_own and step["drafts"]:
                    assert step["draft"][:len(step["drafts"])].argmax(-1).tolist() == step["drafts"]
            explorer = SpeculationExplorer(recorded, llm.tokenizer.decode)
            told = unpack(explorer.payload)
            assert sum(step["new"] for step in told["steps"]) == len(told["words"]) == len(expected)
            assert "guesses were kept" in explorer.summary() and explorer.figure().axes
    with pytest.raises(ValueError, match="one that drafts"):
        record_speculation(plain, "x")

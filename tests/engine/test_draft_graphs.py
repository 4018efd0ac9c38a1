"""Steps that draft and check on the device, run without graphs on a CPU: the same text, and nothing left behind.

(The same steps in real graphs: tests/gpu/test_graphs_gpu.py.)
"""

import json
import random
import shutil

import pytest

from nanovllm import LLM, SamplingParams
from nanovllm.config import DRAFT_MODEL, OFFLINE_MODEL
from nanovllm.engine.draft_on_device import draft_on_device
from nanovllm.engine.drafts_ahead import SpeculationAhead

BY_MODEL = {"method": "draft_model", "model": str(DRAFT_MODEL), "num_speculative_tokens": 4}
LOOK_UP = {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 1, "num_speculative_tokens": 6}
TEXTS = ["Tell me a story about a fox.", "What is the capital of France?", "Please repeat: fox, lantern, Mia, bell, bear, red.",
         "Write a poem about the rain.", "Please repeat: hen, fox, hen, fox, hen, Otto, hen, fox."]
KINDS = [dict(temperature=0), dict(temperature=0.8, seed=3), dict(temperature=1.2), dict(temperature=0.9, top_k=5, seed=8),
         dict(temperature=0.7, top_p=0.8), dict(temperature=0.5, repetition_penalty=1.3, seed=1),
         dict(temperature=0, logprobs=2), dict(temperature=0, min_tokens=6, stop_token_ids=[1, 2, 3]),
         dict(temperature=1.0, seed=5, stop=["the"])]


def ahead(speculative_config, **settings):
    """An engine whose drafts are made and checked by the device's rows wherever that can be, and looks ahead."""
    llm = LLM(device="cpu", speculative_config=speculative_config, async_scheduling=True, **settings)
    engine = llm.engine
    drafter = engine.speculation.drafter
    drafter.cost = 0.0  # as if it were cheap
    rows = draft_on_device(engine.model_runner, drafter, llm.config, capture=False)
    engine.speculation = SpeculationAhead(drafter, engine.scheduler, llm.config.speculative_config,
                                          llm.config.hf_config.vocab_size, looks_ahead=True, rows=rows)
    # A look at every step, and drafts for the smallest gain: more comes together so.
    engine.speculation._pause_for, engine.speculation.worth = lambda running, steps: None, 1.0
    llm.launches = launches = []
    launch = rows.launch
    rows.launch = lambda *args: (launches.append(len(engine._in_flight)), launch(*args))[1]
    return llm


def plain_texts(requests, **settings):
    with LLM(device="cpu", **settings) as llm:
        return [out.token_ids for out in llm.generate(*requests(llm), use_tqdm=False)]


def serve(llm, requests):
    outputs = llm.generate(*requests(llm), use_tqdm=False)
    llm.engine.check_integrity()
    assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks
    return [out.token_ids for out in outputs]


def chats(llm, params):
    return [llm.render_chat([{"role": "user", "content": TEXTS[i % len(TEXTS)]}]) for i in range(len(params))], params


@pytest.mark.parametrize("config", [BY_MODEL, LOOK_UP], ids=["draft_model", "ngram"])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_the_text_is_the_same_and_the_host_is_a_step_ahead(config, temperature):
    params = [SamplingParams(temperature=temperature, seed=i, max_tokens=25 + 9 * i, ignore_eos=i % 2 == 0) for i in range(5)]
    expected = plain_texts(lambda llm: chats(llm, params))
    with ahead(config) as llm:
        for _ in range(2):
            assert serve(llm, lambda llm: chats(llm, params)) == expected
        assert llm.launches.count(1) > 0.5 * len(llm.launches) >= 5  # most were launched behind one in flight
        counts = llm.engine.speculation.counts
        assert counts.accepted >= 20


@pytest.mark.parametrize("config", [BY_MODEL, LOOK_UP], ids=["draft_model", "ngram"])
def test_another_block_may_come_in_place_of_a_refused_drafts(config):
    """A block behind the text goes back, and the device's copy of the table must follow when another comes at its index."""
    params = [SamplingParams(temperature=1.0, seed=i, max_tokens=50, ignore_eos=True) for i in range(3)]
    settings = dict(kvcache_block_size=4, num_kvcache_blocks=300)
    expected = plain_texts(lambda llm: chats(llm, params), **settings)
    with ahead(config, **settings) as llm:
        rows, manager = llm.engine.speculation.rows, llm.engine.block_manager
        llm.engine._looks_ahead = False  # nothing is in flight, so a block behind the text holds nothing yet
        launch, held, replaced, wrong = rows.launch, {}, [], []

        def launch_with_other_blocks(batch, *args):
            for item in batch.items:
                seq, table = item.seq, item.seq.block_table
                if (len(table) - 1) * 4 >= len(seq):
                    manager.trim(seq, len(seq))
                    manager._unreferenced.move_to_end(next(iter(manager._unreferenced)))
                    manager.append(seq, item.start + item.num_tokens)
                before = held.get(seq.seq_id, [])
                replaced.extend(i for i, (had, has) in enumerate(zip(before, table)) if had != has)
                held[seq.seq_id] = list(table)
            launched = launch(batch, *args)
            for item in batch.items:
                table = item.seq.block_table
                known = rows.state.rows.block_tables[rows.row_of[item.seq.seq_id], :len(table)].tolist()
                wrong.extend([(known, list(table))] if known != table else [])
            return launched

        rows.launch = launch_with_other_blocks
        texts = serve(llm, lambda llm: chats(llm, params))
        assert replaced and not wrong
        assert texts == expected


def test_a_draft_model_of_the_same_weights_is_right_every_time():
    """Its cache, its noise and its filters are the target's then, and what it skips it computes later."""
    params = [SamplingParams(temperature=1.0, seed=1, max_tokens=60, ignore_eos=True),
              SamplingParams(temperature=0.8, seed=2, max_tokens=40, ignore_eos=True, top_k=20, top_p=0.9),
              SamplingParams(temperature=0, max_tokens=50, ignore_eos=True)]
    with ahead({"model": OFFLINE_MODEL, "num_speculative_tokens": 3}, kvcache_block_size=4, num_kvcache_blocks=200) as llm:
        serve(llm, lambda llm: chats(llm, params))
        counts = llm.engine.speculation.counts
        ended = 3 * len(params)  # what is drawn behind a request's end is not counted as kept
        assert counts.drafted >= 90 and counts.accepted >= counts.drafted - ended, counts


@pytest.mark.parametrize("config", [BY_MODEL, LOOK_UP], ids=["draft_model", "ngram"])
@pytest.mark.parametrize("settings", [
    dict(num_kvcache_blocks=60, kvcache_block_size=4), dict(max_num_seqs=3), dict(max_num_batched_tokens=24),
    dict(num_kvcache_blocks=45, kvcache_block_size=4, max_num_batched_tokens=32), dict(max_model_len=64, max_num_seqs=4),
    dict(enable_prefix_caching=False, kvcache_block_size=1, num_kvcache_blocks=260)], ids=str)
def test_under_pressure_and_with_everything_mixed(config, settings):
    """Requests come and go, some of which only the host can draft for; blocks run out; lengths end at the model's own."""
    rng = random.Random(0)
    kinds = [KINDS[i % len(KINDS)] for i in range(14)] + [KINDS[i % 5] for i in range(14)]
    params = [SamplingParams(max_tokens=rng.randint(1, 30), ignore_eos=rng.random() < 0.5, **kind) for kind in kinds]
    settings = dict(seed=7, dtype="float32") | settings

    def requests(llm):
        prompts = [llm.tokenizer.encode(TEXTS[i % len(TEXTS)] * (1 + i % 3))[:40] for i in range(len(params))]
        return prompts, params

    expected = plain_texts(requests, **settings)
    with ahead(config, **settings) as llm:
        assert serve(llm, requests) == expected
        assert llm.launches


def test_a_draft_model_of_a_shorter_context_drafts_from_the_host_and_as_far_as_it_knows(tmp_path):
    """The device looks at no length, and would ask it for positions that it has no angles for."""
    folder = shutil.copytree(DRAFT_MODEL, tmp_path / "draft")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 48}), encoding="utf-8")
    params = [SamplingParams(temperature=0, max_tokens=90, ignore_eos=True)]
    expected = plain_texts(lambda llm: chats(llm, params))
    with LLM(device="cpu", speculative_config={"model": folder}) as llm:
        engine = llm.engine
        assert draft_on_device(engine.model_runner, engine.speculation.drafter, llm.config, capture=False) is None
        assert serve(llm, lambda llm: chats(llm, params)) == expected
        assert engine.speculation.counts.drafted >= 5 and engine.num_failed_steps == 0


def test_a_backend_that_would_not_see_which_rows_are_queries_leaves_the_drafts_to_the_host(monkeypatch):
    with LLM(device="cpu", speculative_config=LOOK_UP, attention_backend="torch", num_kvcache_blocks=20) as llm:
        runner, drafter = llm.engine.model_runner, llm.engine.speculation.drafter
        monkeypatch.setattr(runner.backend, "name", "cpu")
        assert draft_on_device(runner, drafter, llm.config, capture=False) is None and runner.draft_graphs is None


def test_a_trial_ends_at_its_first_step_without_a_right_draft():
    """Each way from steps without drafts to one with them and back costs more than the step."""
    with ahead(LOOK_UP, num_kvcache_blocks=200, kvcache_block_size=16) as llm:
        speculation = llm.engine.speculation
        # Only right drafts would pay.
        speculation._fastest = lambda lengths, chances, least=1.0: lengths[-1] if min(chances) == 1 else 0
        speculation._chance = lambda seq: 0.01
        speculation.rows.drafter.propose = lambda kernels, state, num_rows, num_drafts, filtered: (
            state.drafts[:num_rows].fill_(7), state.found[:num_rows].fill_(num_drafts))
        speculation._rest = 0
        llm.generate([TEXTS[0]], SamplingParams(temperature=0, max_tokens=60, ignore_eos=True), use_tqdm=False)
        assert speculation.counts.accepted == 0 and 1 <= len(llm.launches) <= 2, len(llm.launches)

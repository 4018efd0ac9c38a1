"""One request followed from prompt to output: deltas, stop strings, samples, usage. On the offline model."""

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanovllm import LLM, SamplingParams
from nanovllm.engine.sequence import Sequence, SequenceStatus
from nanovllm.serving.request import Request

STORY = "Tell me a story about a fox."


@pytest.fixture(scope="module")
def llm():
    with LLM(device="cpu", kvcache_block_size=4) as llm:
        yield llm


@pytest.fixture(autouse=True)
def nothing_stays_behind(llm):
    yield
    llm.engine.check_integrity()
    assert not llm.engine.has_unfinished
    assert llm.engine.block_manager.num_free_blocks == llm.engine.block_manager.num_blocks


class Scripted:
    """An engine whose model says what the test tells it to."""

    def __init__(self, eos_token_ids=()):
        self.ids, self.queued, self.ended = itertools.count(), [], []
        self.config = SimpleNamespace(eos_token_ids=eos_token_ids)

    def validate(self, prompt_token_ids, params, priority):
        pass

    def new_sequence(self, prompt_token_ids, params, priority, matcher=None):
        return Sequence(next(self.ids), prompt_token_ids, params)

    def enqueue(self, seq):
        self.queued.append(seq)

    def abort(self, seq_id, reason):
        self.ended.append((seq_id, reason))
        self.end(self.queued[seq_id], reason)

    @staticmethod
    def end(seq, reason):
        seq.status, seq.finish_reason = SequenceStatus.FINISHED, reason


def scripted(llm, text, steps, reason="length", end_token=(), **params):
    """The request that generated `text`, `steps[i]` tokens before the i-th look, and the deltas it gave."""
    engine = Scripted(tuple(end_token))
    request = Request(engine, llm.tokenizer, [1, 2, 3], SamplingParams(max_tokens=1000, **params)).submit()
    seq, = request.sequences
    ids, deltas, steps = llm.tokenizer.encode(text) + list(end_token), [], itertools.chain(steps, itertools.repeat(1))
    while ids and not request.is_finished:
        count = next(steps)
        seq.token_ids += ids[:count]
        ids = ids[count:]
        if not ids:
            engine.end(seq, reason)
        deltas += request.advance()
    return request, deltas, engine


TEXTS = ["The fox met a hen. END of it", "naïve café — “quoted” END", "狐狸和灯笼在森林里。狐狸END", "🦊🏮 and 👩‍👩‍👧 ENEND 🦊"]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=st.sampled_from(TEXTS), steps=st.lists(st.integers(1, 12), max_size=30), include=st.booleans(), ends=st.booleans(),
       stop=st.sampled_from([(), "END", ["met", "END"], "狐狸", "🏮", "é", "not there", ["👩‍👧", " E"]]))
def test_the_deltas_are_the_text_up_to_the_stop_string_however_tokens_come(llm, text, steps, stop, include, ends):
    """ends: a token that ends the request comes behind the text, perhaps before anybody has looked for a stop string."""
    end_token = llm.config.eos_token_ids[:1] if ends else ()
    request, deltas, engine = scripted(llm, text, steps, "stop" if ends else "length", end_token, stop=stop,
                                       include_stop_str_in_output=include)
    stops = [s for s in ((stop,) if isinstance(stop, str) else stop) if s in text]
    expected, found = text, None
    if stops:
        found = min(stops, key=lambda s: text.index(s) + len(s))
        expected = text[:text.index(found) + len(found) * include]
    out = request.output()
    assert out.text == expected == "".join(d.text for d in deltas)
    assert not any("\ufffd" in d.text for d in deltas)
    assert out.token_ids == [t for d in deltas for t in d.token_ids]
    assert (out.finish_reason, out.stop_reason) == (("stop", found) if found else ("stop" if ends else "length", None))
    assert [d.finish_reason for d in deltas] == [None] * (len(deltas) - 1) + [out.finish_reason]
    # The tokens kept are those up to the one that completes the stop string, whenever it was looked at.
    shorter = llm.tokenizer.decode(out.token_ids[:-1])
    assert found is None or (found in llm.tokenizer.decode(out.token_ids) and found not in shorter)
    assert request.sequences[0].is_finished and (engine.ended == [] or engine.ended == [(0, "stop")])


def test_text_that_may_begin_a_stop_string_waits(llm):
    _, deltas, _ = scripted(llm, "The fox and the hen", [1] * 20, stop="fox and the bear")
    assert [d.text for d in deltas if d.text][:3] == ["The", " ", "fox and the hen"]


def test_before_min_tokens_no_stop_string_counts(llm):
    text = "a b a b a b a b a"
    count = len(llm.tokenizer.encode(text))
    request, _, _ = scripted(llm, text, [1] * count, stop="b", min_tokens=count - 1)
    assert request.output().text == text and request.output().finish_reason == "length"
    request, _, _ = scripted(llm, text, [1] * count, stop="b", min_tokens=4)
    out = request.output()
    ids = llm.tokenizer.encode(text)
    first = next(n for n in range(5, count + 1) if llm.tokenizer.decode(ids[:n]).endswith("b"))
    assert (out.finish_reason, out.token_ids) == ("stop", ids[:first])


def test_the_token_that_ends_a_request_is_not_in_its_text(llm):
    params = dict(temperature=0, max_tokens=40, ignore_eos=True)
    plain = llm.generate(STORY, SamplingParams(**params), use_tqdm=False)[0]
    token = plain.token_ids[20]
    first = plain.token_ids.index(token)
    out, = llm.generate(STORY, SamplingParams(**params, stop_token_ids=[token]), use_tqdm=False)
    assert (out.finish_reason, out.stop_reason, out.token_ids) == ("stop", token, plain.token_ids[:first + 1])
    assert out.text == llm.tokenizer.decode(plain.token_ids[:first], skip_special_tokens=True)
    kept, = llm.generate(STORY, SamplingParams(**params, stop_token_ids=[token],
                                               include_stop_str_in_output=True), use_tqdm=False)
    assert kept.text == llm.tokenizer.decode(plain.token_ids[:first + 1], skip_special_tokens=True)


def test_a_stop_string_ends_the_sequence_in_the_engine(llm):
    params = dict(temperature=0, max_tokens=60, ignore_eos=True)
    plain, = llm.generate(STORY, SamplingParams(**params), use_tqdm=False)
    stop = plain.text[50:53]
    with llm.trace() as trace:
        both = [SamplingParams(**params, stop=stop), SamplingParams(**params)]
        out, other = llm.generate([STORY, STORY], both, use_tqdm=False)
    assert out.text == plain.text[:plain.text.index(stop)] and other.text == plain.text
    assert (out.finish_reason, out.stop_reason) == ("stop", stop)
    assert len(out.token_ids) < 60 and sum(0 in r.tokens or out.request_id in r.tokens for r in trace) <= len(out.token_ids) + 1
    assert "".join(llm.stream(STORY, SamplingParams(**params, stop=stop))) == out.text


def test_samples_share_the_prompts_full_blocks_and_draw_by_their_own_seeds(llm):
    prompt = llm.tokenizer.encode(STORY + " Make it a long one, please, with a hen and a kite.")
    full = len(prompt) // 4 * 4
    p = dict(temperature=1.0, max_tokens=12, ignore_eos=True)
    llm.engine.block_manager.reset_prefix_cache()
    with llm.trace() as trace:
        out, = llm.generate([prompt], SamplingParams(**p, n=4, seed=7), use_tqdm=False)
    assert sum(r.num_prefill_tokens for r in trace) <= len(prompt) + 3 * max(1, len(prompt) - full)
    record = next(r for r in trace if len(r.running) == 4)
    tables = list(record.block_tables.values())
    assert all(table[:full // 4] == tables[0][:full // 4] for table in tables)
    assert {record.ref_counts[b] for b in tables[0][:full // 4]} == {4}
    alone = [llm.generate([prompt], SamplingParams(**p, seed=7 + i), use_tqdm=False)[0].token_ids for i in range(4)]
    assert [o.token_ids for o in out.outputs] == alone and len({tuple(t) for t in alone}) == 4
    assert [o.index for o in out.outputs] == [0, 1, 2, 3] and out["text"] == out.outputs[0].text
    assert out.usage.prompt_tokens == len(prompt) and out.usage.completion_tokens == 48 and out.usage.cached_tokens == 0
    short, = llm.generate([[5, 6]], SamplingParams(**p, n=3), use_tqdm=False)  # less than a block: nothing to share
    assert [len(o.token_ids) for o in short.outputs] == [12] * 3


def test_samples_end_each_for_itself(llm):
    plain, = llm.generate(STORY, SamplingParams(max_tokens=30, n=3, seed=3, ignore_eos=True), use_tqdm=False)
    texts = [o.text for o in plain.outputs]
    stop = next(piece for i in range(len(texts[1]) - 6) if (piece := texts[1][i:i + 6]) not in texts[0])
    out, = llm.generate(STORY, SamplingParams(max_tokens=30, n=3, seed=3, ignore_eos=True, stop=stop), use_tqdm=False)
    assert [o.text for o in out.outputs] == [o.text.split(stop)[0] for o in plain.outputs]
    assert {o.finish_reason for o in out.outputs} == {"stop", "length"}
    with pytest.raises(ValueError, match="n=3: must be 1 in stream"):
        llm.stream(STORY, SamplingParams(n=3))


def test_special_tokens_stay_when_asked_for(llm):
    end = llm.config.eos_token_ids[0]
    engine = Scripted()
    for skip in (True, False):
        request = Request(engine, llm.tokenizer, [1], SamplingParams(skip_special_tokens=skip, ignore_eos=True)).submit()
        seq = request.sequences[0]
        seq.token_ids += [end, *llm.tokenizer.encode("fox")]
        engine.end(seq, "length")
        request.advance()
        assert request.output().text == ("fox" if skip else llm.tokenizer.decode([end]) + "fox")


def test_usage_and_timings(llm):
    prompt = llm.tokenizer.encode(STORY)
    llm.engine.block_manager.reset_prefix_cache()
    first, second = (llm.generate([prompt], SamplingParams(temperature=0, max_tokens=5, ignore_eos=True), use_tqdm=False)[0]
                     for _ in range(2))
    assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, len(prompt) // 4 * 4)
    assert second.usage.total_tokens == len(prompt) + 5
    t = first.timings
    assert 0 <= t.queued <= t.time_to_first_token and len(t.inter_token) == 4 and min(t.inter_token) >= 0
    assert t.total == pytest.approx(t.time_to_first_token + sum(t.inter_token))


def test_an_aborted_request_keeps_what_it_has(llm):
    params = SamplingParams(temperature=0, max_tokens=50, ignore_eos=True, stop="!!")
    request = Request(llm.engine, llm.tokenizer, STORY, params)
    assert not request.is_finished and request.sequences == []
    request.submit()
    text = ""
    for _ in range(5):
        llm.engine.step()
        text += "".join(d.text for d in request.advance())
    request.abort()
    text += "".join(d.text for d in request.advance())
    out = request.output()
    assert request.is_finished and out.finish_reason == "abort" and out.text == text and 1 <= len(out.token_ids) <= 5
    request.abort()
    assert request.advance() == [] and not llm.engine.has_unfinished


def test_what_needs_a_tokenizer_says_so(llm):
    with pytest.raises(ValueError, match=r"stop=.*a model without a tokenizer; use stop_token_ids"):
        Request(llm.engine, None, [1, 2], SamplingParams(stop="x"))
    with pytest.raises(ValueError, match="pass a SamplingParams"):
        Request(llm.engine, llm.tokenizer, "A", {"max_tokens": 3})
    request = Request(llm.engine, None, [1, 2], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)).submit()
    while llm.engine.has_unfinished:
        llm.engine.step()
    request.advance()
    assert request.output().text == "" and len(request.output().token_ids) == 2

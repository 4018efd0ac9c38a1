"""Guesses by a smaller model: it writes a few tokens ahead, and the large one checks them."""

from dataclasses import dataclass, replace
from itertools import takewhile
from math import sqrt
from types import SimpleNamespace

from nanovllm.config import Config
from nanovllm.engine.device_drafters import DeviceDrafter, DraftChain
from nanovllm.engine.drafts import Drafter, num_accepted
from nanovllm.engine.launched import Launched
from nanovllm.engine.model_runner import ModelRunner
from nanovllm.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from nanovllm.engine.sequence import Sequence
from nanovllm.engine.short_steps import draws_plainly


@dataclass(slots=True)
class _Copy:
    """A sequence as the draft model sees it.

    seq: same id, seed, parameters and block table as the engine's; its tokens may end in guesses. num_known: how many of
        them the engine's had when it last drafted. num_noted: its full blocks whose content is noted. num_preemptions: the
        engine's by then, as a preempted one gets other blocks.
    """

    seq: Sequence
    num_known: int = 0
    num_noted: int = 0
    num_preemptions: int = 0


class DraftModel(Drafter):
    """A smaller model with the same vocabulary, run by a ModelRunner of its own (under CUDA graphs where that has some).

    It draws each guess as the large model will draw the token: same seed, same offset, same temperature and filters, so with
    the same noise. Two distributions that are close then have the same winner most of the time, at any temperature (the
    Gumbel coupling; Maddison, Sontag, Daumé 2019 review it), where independent draws would rarely agree.

    Owns the model and a KV cache with as many blocks as the engine's, so that a block table serves both. What the engine
    computes never reaches this cache: before it guesses, it computes for itself what it has not seen of a sequence, be it a
    whole prompt. A sequence for which it never guesses costs it nothing. A note for each block says which content lies in
    it, by the hash of `Sequence.block_hashes`, so that shared prefixes are computed once here, too.

    config: its own. target: the configuration of the model that it drafts for. num_blocks: of the engine's cache.
    """

    def __init__(self, config: Config, target: SimpleNamespace, num_blocks: int):
        config.num_kvcache_blocks = num_blocks
        self.config, self.block_size = config, config.kvcache_block_size
        self.runner = ModelRunner(config)
        own = config.hf_config
        # A large batch's step is as long as its weights are many, a small model's as its layers are: between the two.
        self.cost = sqrt(_num_weights(own) / _num_weights(target) * own.num_hidden_layers / target.num_hidden_layers)
        self._copies: dict[int, _Copy] = {}
        self._contents: dict[int, bytes] = {}  # block -> hash of what lies in it

    def __repr__(self) -> str:
        return f"DraftModel({self.config.model.name}, {self.runner!r})"

    def propose(self, sequences: list[Sequence], limits: list[int]) -> list[list[int]]:
        drafting = [(self._copy_of(seq), limit) for seq, limit in zip(sequences, limits)
                    if len(seq) + limit <= self.config.max_model_len]
        try:
            self._draft(drafting)
        except BaseException:
            self._forget_all()
            raise
        guesses = {copy.seq.seq_id: copy.seq.token_ids[copy.num_known:] for copy, _ in drafting}
        return [guesses.get(seq.seq_id, []) for seq in sequences]

    def on_device(self) -> DeviceDrafter:
        runner, sampler = self.runner, self.runner.own_sampler
        return DraftChain(runner.model, runner.kv_cache, sampler.draw, sampler.filtered_draw, self.config.max_model_len)

    def catch_up(self, sequences: list[Sequence]) -> None:
        """Compute all of each but its last token, which may still be pending."""
        copies = [self._copy_of(seq).seq for seq in sequences]
        try:
            self._catch_up(copies, spared=0)
        except BaseException:
            self._forget_all()
            raise

    def follow(self, seq: Sequence) -> None:
        copy = self._copies.get(seq.seq_id)
        if copy is not None and copy.num_preemptions == seq.num_preemptions:
            own = copy.seq
            own.token_ids[copy.num_known:] = seq.token_ids[copy.num_known:]
            copy.num_known = len(seq)
            # The last draft, where all were right, is computed in the step after.
            own.num_computed_tokens = max(own.num_computed_tokens, len(seq) - 2)

    def overwrite(self, blocks: list[int]) -> None:
        for block in blocks:
            self._contents.pop(block, None)

    def forget(self, seq_id: int) -> None:
        self._copies.pop(seq_id, None)

    def close(self) -> None:
        self.runner.close()

    def _forget_all(self) -> None:
        self._copies.clear()
        self._contents.clear()
        self.runner.reset()

    def _copy_of(self, seq: Sequence) -> _Copy:
        """Its copy, brought up to date: the same tokens, and the count of those that lie in this cache."""
        size, hashes = self.block_size, seq.block_hashes(self.block_size)
        copy = self._copies.get(seq.seq_id)
        if copy is None or copy.num_preemptions != seq.num_preemptions:
            params = replace(seq.sampling_params, n=1, logprobs=None, prompt_logprobs=None)
            own = Sequence(seq.seq_id, seq.token_ids, params)
            own.num_prompt_tokens, own.seed = seq.num_prompt_tokens, seq.seed
            copy = self._copies[seq.seq_id] = _Copy(own, num_preemptions=seq.num_preemptions)
            num_there = sum(1 for _ in takewhile(lambda pair: self._contents.get(pair[0]) == pair[1],
                                                 zip(seq.block_table, hashes)))
            own.num_computed_tokens = num_there * size
        own, known = copy.seq, copy.num_known
        if known:  # of its own guesses it keeps what it computed of the right ones
            right = num_accepted(own.token_ids[known:], seq.token_ids[known:])
            own.num_computed_tokens = min(own.num_computed_tokens, known + right)
            own.token_ids[known:] = seq.token_ids[known:]
        own.block_table, copy.num_known = seq.block_table, len(seq)
        full = own.num_computed_tokens // size
        self._contents.update(zip(seq.block_table[copy.num_noted:full], hashes[copy.num_noted:full]))
        copy.num_noted = full
        for block in seq.block_table[full:]:  # about to be written
            self._contents.pop(block, None)
        # The last token is computed even if its keys are there: only it says what follows.
        own.num_pending_tokens = seq.num_pending_tokens
        own.num_computed_tokens = min(own.num_computed_tokens, len(own) + own.num_pending_tokens - 1)
        return copy

    def _draft(self, drafting: list[tuple[_Copy, int]]) -> None:
        """Append to each copy its guesses: one step of the model for each, all sequences at once."""
        self._catch_up([copy.seq for copy, _ in drafting])
        if drafting and self._draft_in_one_call(drafting):
            return
        # Where nothing looks at the tokens in between, they need not come to the host before the last.
        waits = self.runner.device.type != "cuda" or any(copy.seq.sampling_params.changes_scores for copy, _ in drafting)
        under_way, ended = [], set[int]()
        for i in range(max((limit for _, limit in drafting), default=0)):
            batch = self._batch([(copy.seq, len(copy.seq) + copy.seq.num_pending_tokens - copy.seq.num_computed_tokens)
                                 for copy, limit in drafting if limit > i and copy.seq.seq_id not in ended])
            if not batch.items:
                break
            launched = self.runner.launch(batch)
            if waits:
                for item, token in zip(batch.items, self.runner.collect(launched)):
                    if token < 0 and item.seq.sampling_params.forbids_words:  # perhaps every one; no concern of the others
                        ended.add(item.seq.seq_id)
                        continue
                    _check_finite([token])
                    item.seq.append_token(token)
                continue
            under_way.append((batch, launched))
            for item in batch.items:
                if item.seq.num_pending_tokens:
                    item.seq.append_token(0)  # it has a place, and its value when all are here
                item.seq.num_pending_tokens = 1
        if under_way:
            guesses: dict[int, list[int]] = {copy.seq.seq_id: [] for copy, _ in drafting}
            for batch, launched in under_way:
                for item, token in zip(batch.items, self._collect(launched)):
                    guesses[item.seq.seq_id].append(token)
            for copy, _ in drafting:
                copy.seq.token_ids[copy.num_known:] = guesses[copy.seq.seq_id]
                copy.seq.num_pending_tokens = 0

    def _draft_in_one_call(self, drafting: list[tuple[_Copy, int]]) -> bool:
        """The same on a CPU, where its kernels can; returns whether they could."""
        steps, sequences = self.runner.short_steps, [copy.seq for copy, _ in drafting]
        if steps is None or not all(draws_plainly(seq.sampling_params) and not seq.num_pending_tokens for seq in sequences):
            return False
        limits = {copy.seq.seq_id: limit for copy, limit in drafting}
        batch = self._batch([(seq, len(seq) - seq.num_computed_tokens) for seq in sequences])
        drafts = steps.draft(batch, [limits[item.seq.seq_id] for item in batch.items])
        for item, tokens in zip(batch.items, drafts):
            _check_finite(tokens)
            item.seq.token_ids += tokens
            item.seq.num_computed_tokens += len(tokens) - 1  # the last one was drawn, and not fed back
        return True

    def _collect(self, launched: Launched) -> list[int]:
        token_ids = self.runner.collect(launched)
        _check_finite(token_ids)
        return token_ids

    def _catch_up(self, sequences: list[Sequence], spared: int = 1) -> None:
        """Compute what lacks before the last token of each, in steps no longer than the engine's own may be.

        spared: so many may be left: the first step of guessing takes one along, unless it runs in graphs, which take one each.
        """
        if self.runner.graphs:
            lagging = [seq for seq in sequences if not seq.num_pending_tokens and len(seq) - 1 - seq.num_computed_tokens == 1]
            if lagging:  # their last draft was right, and never fed back: as a decode step, whose draw nobody wants
                last = [seq.token_ids.pop() for seq in lagging]
                self.runner.launch(self._batch([(seq, 1) for seq in lagging]))
                for seq, token in zip(lagging, last):
                    seq.token_ids.append(token)
            self.runner.graphs.rows.invalidate()  # what a row drew last is a guess, and may not be what came
            spared = 0
        while True:
            work, left = [], self.config.max_num_batched_tokens
            for seq in sequences:
                missing = min(len(seq) + seq.num_pending_tokens - 1 - seq.num_computed_tokens, left)
                if missing > spared:
                    work.append((seq, missing))
                    left -= missing
            if not work:
                return
            self.runner.launch(self._batch(work))

    @staticmethod
    def _batch(work: list[tuple[Sequence, int]]) -> ScheduledBatch:
        """A step of so many tokens of each, counted as computed."""
        items = [ScheduledSequence(seq, seq.num_computed_tokens, num_tokens, "") for seq, num_tokens in work]
        for item in items:
            item.seq.num_computed_tokens += item.num_tokens
        return ScheduledBatch(sorted(items, key=lambda item: item.num_tokens > 1))


def _check_finite(token_ids: list[int]) -> None:
    if min(token_ids) < 0:
        raise FloatingPointError("the draft model's scores are not finite; is this the right checkpoint?")


def _num_weights(hf: SimpleNamespace) -> int:
    """About how many a step reads, up to a factor: of dense layers and the head."""
    attention: int = 2 * (hf.num_attention_heads + hf.num_key_value_heads) * hf.head_dim
    layer: int = hf.hidden_size * (attention + 3 * hf.intermediate_size)
    whole: int = hf.num_hidden_layers * layer + hf.vocab_size * hf.hidden_size
    return whole

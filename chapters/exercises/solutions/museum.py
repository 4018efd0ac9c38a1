"""The ten repairs, and the exhibit that needs none."""

import math
import weakref

from nanovllm.engine.scheduler import Scheduler
from nanovllm.sampling_params import SamplingParams

from ..ch04 import Workbench


class Engine:
    def __init__(self, weights):
        self.state = {"weights": weights}
        # The finalizer holds what must be freed, not the engine: it runs when the engine goes, at exit, or when called.
        self.close = weakref.finalize(self, self.state.clear)

    @property
    def weights(self):
        return self.state["weights"]


class Server:
    def __init__(self, engine):
        self.engine = engine

    def generate(self, prompts, params):
        own = [self.engine.add_request(prompt, params) for prompt in prompts]
        try:
            while not all(seq.is_finished for seq in own):
                self.engine.step()
        finally:
            for seq in own:
                self.engine.abort(seq.seq_id)
        return [seq.output_token_ids for seq in own]


class Doorman(Scheduler):
    def validate(self, num_prompt_tokens, max_tokens, priority=0):
        capacity = self.block_manager.num_blocks * self.block_manager.block_size
        needed = min(num_prompt_tokens + max_tokens, self.max_model_len) - 1  # the last token is never fed back
        if needed > capacity:
            raise ValueError(f"the request may need {needed} tokens of cache and there are {capacity}; lower max_tokens")


def table_width(max_model_len, block_size):
    return -(-max_model_len // block_size)


def check_temperature(value):
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"temperature={value!r}: must be a number from 0 up; 0 is greedy")


def pair_up(prompts, params):
    if isinstance(prompts, str):
        prompts = [prompts]
    if isinstance(params, SamplingParams):
        params = [params] * len(prompts)
    if len(params) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts and {len(params)} params: pass one for each, or one for all")
    for prompt in prompts:
        if isinstance(prompt, int) or not len(prompt):
            raise ValueError(f"prompt {prompt!r}: must be a text or a list of token ids, and not empty")
    return list(zip(prompts, params))


class Crowd(Workbench):
    def plan(self, batch):
        for seq in list(self.waiting)[:self.max_num_seqs - len(self.running)]:
            self.admit(batch, seq)
        for seq in self.running:
            self.give(batch, seq, seq.num_uncomputed_tokens)


class Twin(Scheduler):
    def _blocks_being_computed(self, batch):
        return set().union(*(self._hashes_of(item) for item in batch.items))

    def _hashes_of(self, item):
        size = self.block_manager.block_size
        return set(item.seq.block_hashes(size)[item.start // size:(item.start + item.num_tokens) // size])


def rows_to_sample(items):
    rows, end = [], 0
    for item in items:
        end += item.num_tokens
        if item.start + item.num_tokens == item.length:
            rows.append(end - 1)
    return rows


class Table:
    def __init__(self, num_tokens, block_size=None):
        self.num_tokens, self.block_size = num_tokens, block_size or 256

    def num_blocks(self):
        return -(-self.num_tokens // self.block_size)


def needs_block(length, block_size):
    return length % block_size == 1

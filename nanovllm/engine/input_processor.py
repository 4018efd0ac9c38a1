"""What becomes of a request on its way into the engine: it is checked, and gets its id and its seed."""

import itertools
import random
from array import array
from itertools import chain

import numpy as np

from nanovllm.config import Config
from nanovllm.engine.salted_sequence import SaltedSequence
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.engine.token_matcher import TokenMatcher
from nanovllm.sampling_params import SamplingParams
from nanovllm.utils.checks import check_request


class InputProcessor:
    """Checks requests and makes their sequences. Owns the next id and the seeds of requests without one; queues nothing."""

    def __init__(self, config: Config, scheduler: Scheduler):
        self._config, self._scheduler = config, scheduler
        self._ids = itertools.count()
        self._seeds = random.Random(config.seed)  # for requests without one

    def validate(self, prompt_token_ids: list[int], params: SamplingParams, priority: int) -> None:
        """Raise InvalidRequest unless the request can be served to its end."""
        vocab_size = self._config.hf_config.vocab_size
        self._scheduler.validate(len(prompt_token_ids), params.max_tokens, priority)
        named = (*params.stop_token_ids, *(params.logit_bias or ()), *(params.allowed_token_ids or ()),
                 *chain.from_iterable(params.bad_words_ids))
        for token in _outside_vocabulary((*prompt_token_ids, *named), vocab_size):
            check_request(isinstance(token, int) and 0 <= token < vocab_size, "token id", token,
                          f"a whole number in [0, {vocab_size}), the model's vocabulary",
                          "encode the text with this model's tokenizer")
        ending = params.ending_tokens(self._config.eos_token_ids) if params.min_tokens else ()
        check_request(len(ending) < vocab_size, "stop_token_ids", params.stop_token_ids,
                      "fewer than all tokens with min_tokens above 0", "leave one that may be drawn before min_tokens")
        check_request(not params.bad_words, "bad_words", params.bad_words, "token ids here, where no tokenizer is",
                      "use LLM, or pass bad_words_ids")
        if params.allowed_token_ids is not None:
            forbidden = {*ending, *(word[0] for word in params.bad_words_ids if len(word) == 1)}
            check_request(not forbidden.issuperset(params.allowed_token_ids), "allowed_token_ids", params.allowed_token_ids,
                          "more than the tokens that end the request before min_tokens, and those of bad_words",
                          "allow one that may be drawn")

    def sequence(self, prompt_token_ids: list[int], params: SamplingParams, priority: int,
                 matcher: TokenMatcher | None) -> Sequence:
        """A sequence with an id of its own. matcher: see `LLMEngine.new_sequence`."""
        check_request((matcher is None) == (params.structured_outputs is None), "structured_outputs", params.structured_outputs,
                      "what a matcher was made of, or None", "the engine knows no grammars: use LLM, or pass matcher")
        kind = Sequence if params.cache_salt is None else SaltedSequence
        seq = kind(next(self._ids), prompt_token_ids, params, priority)
        seq.matcher = matcher
        if params.seed is None:
            seq.seed = self._seeds.getrandbits(63)
        return seq


def _outside_vocabulary(tokens: tuple[int, ...], vocab_size: int) -> tuple[int, ...]:
    """The tokens, if one of them may not be in the vocabulary. Prompts are long, so all are looked at in one go."""
    try:
        numbers = np.frombuffer(array("q", tokens), np.int64)
    except (TypeError, OverflowError):
        return tokens
    return tokens if len(numbers) and (numbers.min() < 0 or numbers.max() >= vocab_size) else ()

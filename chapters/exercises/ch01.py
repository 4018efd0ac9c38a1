"""Chapter 01: what a preemption costs, the cached loop, and when a request ends."""

import random
from dataclasses import fields

from nanovllm.engine.sequence import Sequence
from nanovllm.sampling_params import SamplingParams

from .verdict import check, require


@check("tokens through the model")
def check_tokens_computed(tokens_computed):
    """tokens_computed(num_prompt, num_output, preempted_after) -> how many tokens go through the model in all."""
    draw = random.Random(0)
    cases = [(54, 36, []), (5, 1, []), (54, 11, [10]), (1, 4, [1]), (1000, 500, [1, 250, 499])]
    cases += [(draw.randrange(1, 60), n, sorted(draw.sample(range(1, n), draw.randrange(min(n, 4))))) for n in range(2, 30)]
    for num_prompt, num_output, preempted_after in cases:
        right = cached = 0
        for drawn in range(num_output):  # counted by going through it
            if drawn in preempted_after:
                cached = 0
            right += num_prompt + drawn - cached
            cached = num_prompt + drawn
        got = tokens_computed(num_prompt, num_output, list(preempted_after))
        hint = f"{num_prompt} prompt tokens, {num_output} drawn, preempted after {preempted_after}: {right}, you say {got}."
        times = len(preempted_after)
        if got == right + 1 and not times:
            hint += " The token drawn last is never fed back: nobody asks for the one after it."
        elif got == num_prompt + num_output - 1:
            hint += " What was in the cache is gone with each preemption, and goes through the model again."
        elif got == num_prompt + num_output - 1 + times * num_prompt:
            hint += " The tokens generated so far were in the cache, too."
        elif got == right + times:
            hint += " When it is preempted, the token just drawn has not been through the model yet: it is new, not repeated."
        require(got == right, hint)
    return f"{len(cases)} requests, with up to three preemptions"


class CountingModel:
    """A stand-in for the network, exact and fast: the next token depends on all tokens it can see.

    Called like the chapter's `forward(tokens, cache)`; `cache` is a list that keeps what was fed before.
    """

    def __init__(self):
        self.fed = []

    def __call__(self, tokens, cache=None):
        self.fed.append(list(tokens))
        seen = list(tokens) if cache is None else cache
        if cache is not None:
            cache.extend(tokens)
        return _next_token(seen)


def _next_token(tokens):
    state = 7
    for token in tokens:
        state = (state * 31 + token + 1) % 10007
    return state % 97


def _naive(prompt, num_output):
    tokens = list(prompt)
    for _ in range(num_output):
        tokens.append(_next_token(tokens))
    return tokens[len(prompt):]


@check("the cached loop")
def check_cached_loop(generate):
    """generate(forward, new_cache, prompt, num_output) -> the generated tokens, each token fed once."""
    draw = random.Random(0)
    for case in range(20):
        prompt, num_output = [draw.randrange(97) for _ in range(draw.randrange(1, 12))], draw.randrange(1, 9)
        model = CountingModel()
        got = generate(model, list, list(prompt), num_output)
        right = _naive(prompt, num_output)
        fed = [token for call in model.fed for token in call]
        where = f"case {case}, prompt {prompt}, {num_output} tokens to draw"
        require(isinstance(got, list) and len(got) == num_output, f"{where}: return the {num_output} drawn tokens, not {got}.")
        if got != right:
            hint = f"{where}: you drew {got}, the naive loop draws {right}."
            if len(fed) > len(prompt) + num_output:
                hint += " A token was fed twice; the model took the second copy for one more token of the text."
            elif case:
                hint += " The first case was right: does something of it live on? Every request needs a cache of its own."
            require(False, hint)
        require(len(fed) == len(prompt) + num_output - 1,
                f"{where}: right tokens, but {len(fed)} went through the model and {len(prompt) + num_output - 1} suffice. "
                "Feed only what is not in the cache yet.")
    return "20 random prompts: the tokens of the naive loop, each fed once"


def _asked(params):
    """What a request asks for beyond the defaults; all of `SamplingParams` would hide it."""
    asked = {f.name: value for f in fields(params) if (value := getattr(params, f.name)) != f.default}
    return ", ".join(f"{name}={value}" for name, value in asked.items()) or "nothing asked for"


@check("when it ends")
def check_finish_reason(finish_reason):
    """finish_reason(seq, eos_token_ids, max_model_len) -> "stop", "length" or None, asked after each drawn token."""
    eos, draw = {2, 3}, random.Random(0)
    stops, goes_on = dict(stop_token_ids=(7,)), SamplingParams(max_tokens=9)
    cases = [([5, 2], [4], goes_on, None, "an end token inside the *prompt* ends nothing: many chats contain them."),
             ([5], [4, 2], goes_on, "stop", "the model drew an end token."),
             ([5], [4, 3], goes_on, "stop", "a model may have several end tokens."),
             ([5], [4, 2], SamplingParams(max_tokens=2), "stop", "it both ended and used up max_tokens; the model's own end "
              "is the better news, since the text is complete."),
             ([5], [4, 2], SamplingParams(ignore_eos=True), None, "ignore_eos: end tokens are tokens like any other."),
             ([5], [4, 7], SamplingParams(ignore_eos=True, **stops), "stop", "ignore_eos is about the model's end tokens; "
              "the request's own stop_token_ids still hold."),
             ([5, 6, 7], [4], SamplingParams(max_tokens=1, **stops), "length", "max_tokens counts generated tokens only."),
             ([5, 6, 8], [4, 4], SamplingParams(max_tokens=3), None, "max_tokens counts generated tokens, not the prompt."),
             ([1] * 10, [4, 4], goes_on, "length", "prompt and output together reached max_model_len=12.")]
    for prompt, output, params, right, why in draw.sample(cases, len(cases)):
        seq = Sequence(0, prompt, params)
        for token in output:
            seq.append_token(token)
        got = finish_reason(seq, eos, 12)
        require(got == right, f"prompt {prompt}, output {output}, {_asked(params)}: {right!r}, not {got!r}; {why}")
    return f"{len(cases)} endings"


def check_same_as_sequence(request_class, cases: int = 200) -> str:
    """The chapter's own Request beside the package's Sequence, on the same random life. Raises when they part."""
    for case in range(cases):
        draw = random.Random(case)
        prompt = [draw.randrange(97) for _ in range(draw.randrange(1, 20))]
        mine, theirs = request_class(list(prompt)), Sequence(case, prompt)
        for _ in range(30):
            if draw.random() < 0.1:
                mine.preempt()
                theirs.num_computed_tokens = 0  # what BlockManager.free does when the blocks are taken away
            n = min(draw.randrange(1, 8), theirs.num_uncomputed_tokens)
            piece = mine.next_tokens(n)
            expected = theirs.token_ids[theirs.num_computed_tokens:theirs.num_computed_tokens + n]
            if piece != expected:
                raise ValueError(f"case {case}: next_tokens({n}) gives {piece}, Sequence would run {expected}")
            theirs.num_computed_tokens += n
            drawn = draw.randrange(97) if theirs.num_uncomputed_tokens == 0 else None
            mine.commit(n, drawn)
            if drawn is not None:
                theirs.append_token(drawn)
            if mine.tokens != theirs.token_ids or mine.num_computed != theirs.num_computed_tokens:
                raise ValueError(f"case {case}: {mine.tokens}, {mine.num_computed} computed; Sequence has {theirs!r}")
    return f"{cases} random lives, step by step the same"

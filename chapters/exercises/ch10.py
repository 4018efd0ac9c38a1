"""Chapter 10: temperature without accidents, the top-p boundary, and a sampler of one's own in the real engine."""

import torch

from nanovllm import LLM, SamplingParams
from nanovllm.layers.noise import random_bits
from nanovllm.layers.sampler import Filters, Sampler, SamplingBatch, draw, filter_logits

from .verdict import check, quiet_engine, require


def uniform(seeds: torch.Tensor, offsets: torch.Tensor, count: int) -> torch.Tensor:
    """[num_rows, count] float64 in (0, 1): a pure function of seed, offset and column, from the engine's own bits."""
    bits = random_bits(seeds, offsets, count).to(torch.int64) & 0xFFFFFFFF
    return (bits.double() + 0.5) / 2.0**32


@check("temperature")
def check_temperature(probabilities):
    """probabilities(logits, temperatures): [rows, vocab] and [rows] -> [rows, vocab] that sum to 1; temperature 0 is greedy."""
    generator = torch.Generator().manual_seed(0)
    for scale, vocab in ((1.0, 5), (4.0, 50), (3000.0, 8)):
        logits = torch.randn(6, vocab, generator=generator) * scale
        logits[5, 2] = logits[5, 4] = logits[5].max() + 1  # a tie for the first place
        temperatures = torch.tensor([1.0, 0.5, 2.0, 0.0, 0.3, 0.0])
        before = logits.clone()
        got = probabilities(logits, temperatures)
        require(tuple(got.shape) == tuple(logits.shape), f"logits {tuple(logits.shape)}: the answer is {tuple(got.shape)}.")
        require(torch.equal(logits, before), "the logits you were given have changed; others still need them.")
        for row, t in enumerate(temperatures.tolist()):
            where = f"temperature {t:g}, logits up to {before[row].abs().max():.0f}"
            if t == 0:
                right = torch.zeros(vocab).index_fill_(0, before[row].argmax(), 1.0)
            else:
                right = (before[row] / t).softmax(-1)
            require(not got[row].isnan().any(), f"{where}: not a number. " + (
                "At temperature 0 there is nothing to divide by: the likeliest token gets 1." if t == 0 else
                "exp of a large number overflows; take the row's maximum off first."))
            hint = f"{where}: the likeliest token should have {right.max():.4f} and has {float(got[row].max()):.4f}."
            if t == 0 and (got[row] > 0).sum() > 1:
                hint = f"{where}: {int((got[row] > 0).sum())} tokens can be drawn. Greedy takes one; of equals, the first."
            require(torch.allclose(got[row].float(), right, atol=1e-5), hint)
    return "18 rows, flat and steep, with ties and with temperature 0"


BOUNDARIES = (  # probabilities, top_p, how many of the likeliest stay
    ([0.5, 0.25, 0.125, 0.125], 0.1, 1),    # less than the likeliest has: it stays all the same
    ([0.5, 0.25, 0.125, 0.125], 0.6, 2),
    ([0.5, 0.25, 0.125, 0.125], 0.75, 2),   # reached exactly: no third
    ([0.5, 0.25, 0.125, 0.125], 1.0, 4),
    ([0.125, 0.5, 0.125, 0.25], 0.8, 3),    # not in order, and of equals the first
    ([0.25, 0.25, 0.25, 0.25], 0.5, 2),
    ([0.0, 1.0, 0.0, 0.0], 0.9, 1),
    ([0.0, 0.5, 0.5, 0.0], 1.0, 4),         # 1 is off: it takes nothing out, whatever has been taken out before
)


@check("the top-p boundary")
def check_keep_top_p(keep_top_p):
    """keep_top_p(probs, top_p): [rows, vocab] and [rows] -> [rows, vocab] bool, the smallest set that reaches top_p."""
    for values, p, count in BOUNDARIES:
        probs = torch.tensor([values])
        order = probs[0].argsort(descending=True, stable=True)
        right = torch.zeros(4, dtype=torch.bool).index_fill_(0, order[:count], True)
        got = keep_top_p(probs, torch.tensor([p]))
        where = f"probabilities {values}, top_p {p:g}"
        require(tuple(got.shape) == (1, 4) and got.dtype == torch.bool, f"{where}: [1, 4] bool is wanted, not "
                                                                        f"{list(got.shape)} {got.dtype}.")
        hint = f"{where}: the set is {right.tolist()}, not {got[0].tolist()}."
        if not got.any():
            hint += " No token is left to be drawn. The likeliest one always stays."
        elif p == 1 and got[0].sum() < count:
            hint += " At top_p = 1 the filter is off: every token stays, one of probability 0 too."
        elif got[0].sum() < count:
            hint += " It does not reach top_p: the token that crosses the line belongs to it."
        elif got[0].sum() > count:
            hint += " One could do with fewer: the set had reached top_p already."
        elif not torch.equal(got[0], right):
            hint += " The right number, and not the likeliest: does the mask stand in the tokens' own order?"
        require(torch.equal(got[0], right), hint)
    generator = torch.Generator().manual_seed(1)
    probs = (3 * torch.randn(40, 200, generator=generator)).softmax(-1)
    top_p = torch.rand(40, generator=generator).clamp(0.05, 0.99)
    got = keep_top_p(probs, top_p)
    theirs = filter_logits(probs.log(), Filters(torch.arange(40), top_p=top_p[:, None])) > float("-inf")
    wrong = (got != theirs).any(-1).nonzero().flatten().tolist()
    require(not wrong, f"40 rows at once, each with a top_p of its own: row {wrong[0] if wrong else 0} keeps "
            f"{int(got[wrong[0]].sum()) if wrong else 0} tokens and should keep {int(theirs[wrong[0]].sum()) if wrong else 0}.")
    return f"{len(BOUNDARIES)} boundaries, and 40 random rows at once, the same sets as the package's"


class TopPSampler(Sampler):
    """The finished sampler with the reader's `keep_top_p` in place of its own line; other filters as they are."""

    def __init__(self, keep_top_p):
        super().__init__()
        self.keep_top_p = keep_top_p

    def forward(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        if batch.processors is not None:
            logits = batch.processors(logits)
        if batch.temperatures is None:
            return logits.argmax(-1)
        tokens = draw(logits, batch.temperatures, batch.seeds, batch.offsets)
        if (filters := batch.filters) is not None:
            rows, temperatures = filters.rows, batch.temperatures[filters.rows]
            scores = logits[rows].float() / temperatures[:, None]
            scores = filter_logits(scores, Filters(rows, top_k=filters.top_k))
            if filters.top_p is not None:
                kept = self.keep_top_p(scores.softmax(-1), filters.top_p[:, 0])
                scores = scores.masked_fill(~kept, float("-inf"))
            scores = filter_logits(scores, Filters(rows, min_p=filters.min_p))
            tokens[rows] = draw(scores, torch.ones_like(temperatures), batch.seeds[rows], batch.offsets[rows], masked=True)
        return tokens


REQUESTS = (
    {"temperature": 0}, {"temperature": 1.0, "seed": 1}, {"temperature": 1.3, "seed": 2, "top_p": 0.9},
    {"temperature": 0.8, "seed": 1, "top_p": 0.35}, {"temperature": 1.0, "seed": 3, "top_k": 5},
    {"temperature": 1.2, "seed": 4, "min_p": 0.05}, {"temperature": 1.0, "seed": 1}, {"temperature": 1.5, "seed": 6,
                                                                                      "top_k": 40, "top_p": 0.8})


@quiet_engine()
def serve_with(sampler, prompts, same_as_ours: bool = False) -> str:
    """Serve `prompts` with the reader's sampler: under pressure, books checked after each step, and each text as alone.

    same_as_ours: its texts must be those of the finished sampler, too. On the CPU, where a row's logits are the same to
    the last bit whatever else is computed with it. Raises RuntimeError naming the request that differs.
    """
    work = [(prompt, SamplingParams(max_tokens=12, ignore_eos=True, **asked))
            for asked, prompt in zip(REQUESTS, (prompts * len(REQUESTS))[:len(REQUESTS)])]
    with LLM(device="cpu", sampler=sampler, enable_prefix_caching=False) as llm:
        alone = [llm.generate([prompt], params, use_tqdm=False)[0].token_ids for prompt, params in work]
        if same_as_ours:
            llm.engine.model_runner.sampler = Sampler()
            for asked, mine, ours in zip(REQUESTS, alone, llm.generate(*map(list, zip(*work)), use_tqdm=False)):
                if mine != ours.token_ids:
                    raise RuntimeError(f"{asked}: your sampler draws {mine}, the finished one {ours.token_ids}")
    room = 2 * -(-max(map(len, prompts)) // 4) + 4  # for two prompts, and not for their answers
    with LLM(device="cpu", sampler=sampler, kvcache_block_size=4, num_kvcache_blocks=room, max_num_batched_tokens=48,
             enable_prefix_caching=False) as llm:
        seqs = [llm.engine.add_request(prompt, params) for prompt, params in work]
        steps = 0
        while llm.engine.has_unfinished:
            llm.engine.step()
            llm.engine.check_integrity()
            steps += 1
        preemptions = llm.engine.scheduler.num_preemptions
    for asked, seq, text in zip(REQUESTS, seqs, alone):
        if seq.output_token_ids != text:
            raise RuntimeError(f"{asked}: {seq.output_token_ids} in company, {text} alone; what a row draws "
                               "must follow from its own logits, seed and offset only")
    return (f"{len(work)} requests in {steps} steps with {preemptions} preemptions: books balanced after each step, each text "
            "what it is alone" + (", and what the finished sampler draws" if same_as_ours else ""))


def _batch(temperatures, seeds, offsets, **filters) -> SamplingBatch:
    params = [SamplingParams(temperature=t, **{name: values[i] for name, values in filters.items()})
              for i, t in enumerate(temperatures)]
    return SamplingBatch.from_params(params, list(seeds), list(offsets))


@check("a sampler of your own")
def check_sampler(MySampler):
    """MySampler()(logits, batch) -> [num_rows] int64: greedy rows, temperature and top_k, by the exponential race."""
    sampler = MySampler()
    generator = torch.Generator().manual_seed(2)
    logits = 2 * torch.randn(4, 12, generator=generator)
    got = sampler(logits, SamplingBatch())
    require(torch.equal(got, logits.argmax(-1)), "a step in which every row is greedy (batch.temperatures is None): the "
                                                 f"likeliest are {logits.argmax(-1).tolist()}, not {got.tolist()}.")
    mixed = _batch([0.0, 1.0, 0.0, 0.7], [1, 2, 3, 4], [0, 0, 0, 0])
    got = sampler(logits, mixed)
    require(got[0] == logits[0].argmax() and got[2] == logits[2].argmax(), "rows 0 and 2 of this step have temperature 0 and "
            f"drew {got[0]} and {got[2]}; the likeliest are {logits[0].argmax()} and {logits[2].argmax()}.")
    rows = 6000
    for temperature in (1.0, 0.5, 2.0):
        same = logits[:1].expand(rows, -1)
        drawn = sampler(same, _batch([temperature] * rows, range(rows), [3] * rows))
        shares = torch.bincount(drawn, minlength=12) / rows
        wanted = (logits[0] / temperature).softmax(-1)
        off = float((shares - wanted).abs().max())
        require(off < 0.03, f"temperature {temperature:g}, {rows} seeds: token {int(wanted.argmax())} should win "
                            f"{wanted.max():.0%} of the draws and won {shares[wanted.argmax()]:.0%}. Is the rate of each token "
                            "its probability at this temperature?")
        again = sampler(same, _batch([temperature] * rows, [7] * rows, range(rows)))
        shares = torch.bincount(again, minlength=12) / rows
        require(float((shares - wanted).abs().max()) < 0.03, f"one request with seed 7 that draws {rows} times: its likeliest "
                f"token won {shares[wanted.argmax()]:.0%} instead of {wanted.max():.0%}. Does the offset take part?")
    batch = _batch([1.0] * 4, [5, 6, 7, 8], [0, 1, 2, 3])
    first, twice = sampler(logits, batch), sampler(logits, batch)
    require(torch.equal(first, twice), f"the same step twice: {first.tolist()}, then {twice.tolist()}. Where does the "
                                       "randomness come from, if not from seed and offset?")
    lone = torch.cat([sampler(logits[i:i + 1], _batch([1.0], [5 + i], [i])) for i in range(4)])
    require(torch.equal(first, lone), f"together the four rows draw {first.tolist()}, one by one {lone.tolist()}.")
    tight = sampler(logits[:1].expand(2000, -1), _batch([1.5, 1.5] * 1000, range(2000), [0] * 2000, top_k=[3, 0] * 1000))
    allowed = set(logits[0].topk(3).indices.tolist())
    strays = set(tight[::2].tolist()) - allowed
    require(not strays, f"top_k 3: token {min(strays, default=0)} was drawn, and it is not among the three likeliest, "
                        f"{sorted(allowed)}. (batch.filters speaks of the rows that ask for a filter; see its `rows`.)")
    require(len(set(tight[1::2].tolist())) > 3, "rows without a filter drew three tokens at most: the filter of their "
                                                "neighbours was applied to them, too.")
    return f"{6 * rows} draws at three temperatures, greedy rows, the same alone and together, and top_k"


def check_same_as_sampler(choose, steps: int = 40) -> str:
    """The chapter's `choose(logits, params, seed, offset)` beside the package's, row by row. Raises when they part."""
    generator = torch.Generator().manual_seed(3)
    count = 0
    for step in range(steps):
        logits = 3 * torch.randn(6, 300, generator=generator)
        params = [SamplingParams(temperature=t, top_k=k, min_p=m) for t, k, m in (
            (0, 0, 0.0), (1.0, 0, 0.0), (0.7, 20, 0.0), (1.4, 0, 0.1), (1.0, 5, 0.02), (2.0, 300, 0.0))]
        seeds, offsets = list(range(step, step + 6)), [step % 7] * 6
        theirs = Sampler()(logits, SamplingBatch.from_params(params, seeds, offsets)).tolist()
        mine = [int(choose(*row)) for row in zip(logits, params, seeds, offsets)]
        if mine != theirs:
            raise ValueError(f"step {step}: {mine} here, {theirs} in Sampler")
        count += len(mine)
    return f"{count} draws with and without filters: the same tokens"

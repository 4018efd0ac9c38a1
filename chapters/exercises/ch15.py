"""Chapter 15: tokens in a step, a drafter that serves, and the classical rule."""

from functools import cache
from unittest.mock import patch

import torch
from torch import Tensor

from nanovllm import LLM, SamplingParams
from nanovllm.engine.drafts_ngram import NgramIndex
from nanovllm.engine.sequence import Sequence

from .verdict import check, require

REPEAT = "Please repeat: fox, lantern, Mia, bell, bear, red, hen, Otto."


@cache
def plain_answer() -> tuple[int, ...]:
    """What the offline model answers without drafts."""
    with LLM(device="cpu", num_kvcache_blocks=64) as llm:
        prompt = llm.render_chat([{"role": "user", "content": REPEAT}])
        return tuple(llm.generate([prompt], SamplingParams(temperature=0, max_tokens=40), use_tqdm=False)[0].token_ids)


@check("tokens in a step")
def check_tokens_per_step(tokens_per_step):
    """tokens_per_step(acceptance, k) -> expected tokens of a step with k drafts, each right with that probability."""
    for acceptance, k in ((0.5, 1), (0.8, 4), (0.0, 3), (1.0, 5), (0.3, 0)):
        right, got = sum(acceptance**i for i in range(k + 1)), tokens_per_step(acceptance, k)
        require(isinstance(got, (int, float)), f"acceptance {acceptance}, k = {k}: a number is wanted, not {got!r}.")
        hint = f"acceptance {acceptance}, k = {k}: {right:.3f} tokens, not {got:.3f}."
        if abs(got - (1 + k * acceptance)) < 1e-9:
            hint += " A draft counts only if all before it were right, too."
        elif abs(got - (right - 1)) < 1e-9:
            hint += " The model's own token comes on top of the drafts that were kept."
        require(abs(got - right) < 1e-9, hint)
    return "five cases, from never right to always right."


@check("a drafter that serves")
def check_Repeats(Repeats):
    """Repeats().propose(sequences, limits): what followed the last two tokens when they stood together before."""
    seq, none, twice = Sequence(0, [1, 2, 3, 4, 5, 1, 2]), Sequence(1, [1, 2, 3]), Sequence(2, [1, 2, 7, 1, 2, 8, 9, 1, 2])
    with patch.object(NgramIndex, "propose", _looked_up):
        got = Repeats().propose([seq, none, twice], [3, 3, 2])
    require(isinstance(got, list) and len(got) == 3, f"three sequences: three lists are wanted, not {got!r}.")
    require(list(got[1]) == [], f"after 1 2 3 nothing is known of what follows 2 3: an empty list, not {got[1]!r}.")
    require(len(got[0]) <= 3, f"the limit was 3 tokens, the proposal {got[0]!r} is longer.")
    require(list(got[0]) == [3, 4, 5], f"after 1 2 3 4 5 1 2 the guess is [3, 4, 5], not {got[0]!r}.")
    require(list(got[2]) == [8, 9], f"in 1 2 7 1 2 8 9 1 2 the *last* place of 1 2 before the end is followed by [8, 9]; you "
            f"return {got[2]!r}, and the limit was 2.")
    with LLM(device="cpu", num_kvcache_blocks=64, drafter=Repeats()) as llm:
        prompt = llm.render_chat([{"role": "user", "content": REPEAT}])
        out = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=40), use_tqdm=False)[0]
        require(tuple(out.token_ids) == plain_answer(), "the text is another: did `propose` change the sequence?")
        saved = len(out.token_ids) - llm.engine.num_steps
        require(saved >= 5, f"served, but {saved} steps were saved; it failed {llm.engine.speculation.num_failures} times.")
    return f"the same text, in {saved} steps fewer."


def _looked_up(*args: object) -> None:
    require(False, "NgramIndex does the look-up for you. Write the search yourself.")


@check("the classical rule")
def check_settle(settle):
    """settle(p, q, guess) -> the token that the text gains. guess was drawn from q; the token must have distribution p."""
    near, count = [0.5, 0.3, 0.1, 0.06, 0.04], 6000
    for p, q in ((near, [0.1, 0.2, 0.4, 0.2, 0.1]), (near, near), ([0.0, 0.9, 0.1], [0.6, 0.2, 0.2])):
        p, q = torch.tensor(p), torch.tensor(q)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            guesses = torch.multinomial(q, count, replacement=True).tolist()
            got = [settle(p.clone(), q.clone(), guess) for guess in guesses]
        wrong = next((one for one in got if not _is_token(one, len(p))), None)
        require(wrong is None, f"a token from 0 to {len(p) - 1} is wanted, not {wrong!r}.")
        tokens = torch.tensor([int(one) for one in got])
        shares = torch.bincount(tokens, minlength=len(p)) / count
        kept, best = float((tokens == torch.tensor(guesses)).float().mean()), float(torch.minimum(p, q).sum())
        told = f"p = {_listed(p)}, q = {_listed(q)}, {count:,} guesses: the tokens come with the shares {_listed(shares)}"
        hint = f"{told}, and p is wanted."
        if _apart(shares, torch.minimum(p, q) + (1 - best) * p) < 0.03:
            hint += " After a refusal draw from what is left of p: p - q where that is positive, and 0 elsewhere."
        elif kept > best + 0.03:
            hint += f" {kept:.0%} of the guesses were kept, too many: x is kept with probability min(1, p[x] / q[x])."
        require(_apart(shares, p) < 0.03, hint)
        require(kept > best - 0.03, f"{told}, as they should, but only {kept:.0%} of the guesses were kept, where {best:.0%} "
                "can be.")
    return "three pairs of distributions: the model's own shares, and as many guesses kept as can be."


def _is_token(one: object, count: int) -> bool:
    if isinstance(one, Tensor):
        one = one.item() if one.numel() == 1 and not one.is_floating_point() else None
    return isinstance(one, int) and not isinstance(one, bool) and 0 <= one < count


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().sum() / 2)


def _listed(shares: Tensor) -> str:
    return "[" + ", ".join(f"{share:.2f}" for share in shares.tolist()) + "]"

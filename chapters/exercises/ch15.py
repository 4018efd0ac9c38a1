"""Chapter 15: tokens in a step, what is kept of a guess, and a drafter that serves."""

from functools import cache

from nanovllm import LLM, SamplingParams
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


@check("what is kept")
def check_keep(keep):
    """keep(drafts, drawn) -> the tokens that the text gains. drawn has one token more than drafts."""
    for drafts, drawn in (([5, 6, 7], [5, 6, 7, 8]), ([5, 6, 7], [5, 9, 7, 8]), ([5], [4, 6]), ([], [3]), ([1, 2], [3, 2, 4])):
        right, got = [], keep(list(drafts), list(drawn))
        for i, token in enumerate(drawn):
            right.append(token)
            if i < len(drafts) and drafts[i] != token:
                break
        hint = f"drafts {drafts}, drawn {drawn}: the text gains {right}, not {got!r}."
        if got == drawn and right != drawn:
            hint += " What was drawn behind a wrong draft was drawn on a wrong text."
        elif got == right[:-1]:
            hint += " The token drawn in place of a wrong draft, or behind the last right one, is the model's own: it stays."
        require(got == right, hint)
    return "five steps: the drafts before the first wrong one, and the model's own token."


@check("a drafter that serves")
def check_Repeats(Repeats):
    """Repeats().propose(sequences, limits): what followed the last two tokens when they stood together before."""
    seq, none = Sequence(0, [1, 2, 3, 4, 5, 1, 2]), Sequence(1, [1, 2, 3])
    got = Repeats().propose([seq, none], [3, 3])
    require(isinstance(got, list) and len(got) == 2, f"two sequences: two lists are wanted, not {got!r}.")
    require(list(got[1]) == [], f"after 1 2 3 nothing is known of what follows 2 3: an empty list, not {got[1]!r}.")
    require(len(got[0]) <= 3, f"the limit was 3 tokens, the proposal {got[0]!r} is longer.")
    require(list(got[0]) == [3, 4, 5], f"after 1 2 3 4 5 1 2 the guess is [3, 4, 5], not {got[0]!r}.")
    with LLM(device="cpu", num_kvcache_blocks=64, drafter=Repeats()) as llm:
        prompt = llm.render_chat([{"role": "user", "content": REPEAT}])
        out = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=40), use_tqdm=False)[0]
        require(tuple(out.token_ids) == plain_answer(), "the text is another: did `propose` change the sequence?")
        saved = len(out.token_ids) - llm.engine.num_steps
        require(saved >= 5, f"served, but {saved} steps were saved; it failed {llm.engine.speculation.num_failures} times.")
    return f"the same text, in {saved} steps fewer."

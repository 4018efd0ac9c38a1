"""Does the model copy yet? Asked at a quarter of the run, while there is still time to teach it."""

import re

import torch
from tokenizers import Tokenizer

from training.chats import story_request
from training.dice import Dice
from training.model import Qwen3
from training.render import prompt, user


@torch.no_grad()
def naming(model: Qwen3, tokenizer: Tokenizer, device: str, requests: int, num_tokens: int, seed: int = 20_000) -> float:
    """Share of held-out requests whose greedy answer, cut at `num_tokens`, names everything asked for.

    The rows are padded on the right, where a causal model cannot look, and recomputed for every token.
    """
    rng = Dice(seed)
    asked = [story_request(rng, unseen=True) for _ in range(requests)]
    rows = [tokenizer.encode(prompt([user(r.text)])).ids for r in asked]
    starts = torch.tensor([len(row) for row in rows], device=device)
    ids = torch.zeros(requests, max(map(len, rows)) + num_tokens, dtype=torch.long, device=device)
    for i, row in enumerate(rows):
        ids[i, :len(row)] = torch.tensor(row, device=device)
    each = torch.arange(requests, device=device)
    for n in range(num_tokens):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(ids[:, :int(starts.max()) + n])
        ids[each, starts + n] = logits[each, starts + n - 1].argmax(-1)
    end = tokenizer.token_to_id("<|im_end|>")
    named = 0
    for request, row, start in zip(asked, ids.tolist(), starts.tolist()):
        answer = row[start:start + num_tokens]
        text = tokenizer.decode(answer[:answer.index(end)] if end in answer else answer)
        named += all(re.search(rf"\b{word}\b", text) for word in request.wanted)
    return named / requests

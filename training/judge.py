"""Is the model any good? Held-out requests, sampled at temperature 0.7, judged against what they asked for."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.chats import SIGN_OFFS, document, lookup_chat, render, story_request
from training.dice import Dice
from training.stories import ANIMALS, PEOPLE, Story

KINDS = (*ANIMALS, *PEOPLE)


def judge(folder: Path, draft: Path | None = None, *, requests: int = 200, device: str = "cpu", seed: int = 10_000,
          max_new_tokens: int = 600) -> dict:
    """The figures of the model card, and a few of the texts they were taken from."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    rng = Dice(seed)
    asked = [story_request(rng, unseen=True) for _ in range(requests)]
    prompts = [render([(r.text, "")]).removesuffix("<|im_end|>\n") for r in asked]
    torch.manual_seed(seed)
    answers = answer(model, tokenizer, device, prompts, max_new_tokens)
    stops = {tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")}
    texts = [tokenizer.decode(a, skip_special_tokens=True) for a in answers]
    named = [all(re.search(rf"\b{w}\b", text) for w in r.wanted) for r, text in zip(asked, texts)]
    kept = [keeps_hero(r.hero, text) for r, text in zip(asked, texts) if r.hero]
    stopped = [bool(stops & set(a)) for a in answers]
    words = [re.findall(r"\w+", t.lower()) for t in texts]
    grams4 = [tuple(w[i:i + 4]) for w in words for i in range(len(w) - 3)]
    report = dict(
        requests=requests, names_everything=_share(named), keeps_hero=_share(kept), stops=_share(stopped),
        distinct_4grams=round(len(set(grams4)) / max(1, len(grams4)), 4), copied_8grams=copied(words, 8, 100 * requests),
        **entropy(model, tokenizer, device, min(100, requests)),
        **obeys(model, tokenizer, device, min(100, requests), max_new_tokens),
        top_template_share=top_template_share(15 * requests))
    if draft:
        report["draft_agreement"] = agreement(model, draft, tokenizer, asked, device)
    report["missed"] = [dict(request=r.text, wanted=r.wanted, text=t) for r, t, ok in zip(asked, texts, named) if not ok][:5]
    report["samples"] = [dict(request=r.text, text=t) for r, t in list(zip(asked, texts))[:4]]
    return report


@torch.inference_mode()
def answer(model, tokenizer, device, prompts: list[str], max_new_tokens: int) -> list[list[int]]:
    """Token ids sampled after each prompt at temperature 0.7, a hundred at a time, padded after their end."""
    answers = []
    for i in range(0, len(prompts), 100):
        batch = tokenizer(prompts[i:i + 100], return_tensors="pt", padding=True).to(device)
        out = model.generate(**batch, do_sample=True, temperature=0.7, top_p=1.0, top_k=0, max_new_tokens=max_new_tokens)
        answers += out[:, batch["input_ids"].shape[1]:].tolist()
    return answers


def obeys(model, tokenizer, device, count: int, max_new_tokens: int, seed: int = 30_000) -> dict:
    """What a system prompt does: answers from a village that stands only there, and stories that end with its sign-off."""
    rng = Dice(seed)
    torch.manual_seed(seed)
    prompts, right = zip(*(_last_turn(lookup_chat(rng)) for _ in range(count)))
    given = tokenizer.batch_decode(answer(model, tokenizer, device, prompts, min(40, max_new_tokens)), skip_special_tokens=True)
    asked = [(story_request(rng, unseen=True).text, rng.choice(SIGN_OFFS)) for _ in range(count // 2)]
    system = "You are a storyteller. Always finish with: "
    prompts = [_last_turn(render([(text, "")], system + words))[0] for text, words in asked]
    told = tokenizer.batch_decode(answer(model, tokenizer, device, prompts, max_new_tokens), skip_special_tokens=True)
    return dict(lookups_right=_share(a.strip() == b for a, b in zip(given, right)),
                sign_offs_kept=_share(text.endswith(words) for text, (_, words) in zip(told, asked)))


def _last_turn(chat: str) -> tuple[str, str]:
    """A chat up to its last answer, and that answer."""
    prompt, said = chat.rsplit("<|im_start|>assistant\n", 1)
    return prompt + "<|im_start|>assistant\n", said.removesuffix("<|im_end|>\n")


def keeps_hero(hero: str, text: str) -> bool:
    """The hero's kind is named, its name (where it has one) is never given to another kind, and it is there at the end.

    The name is read off the sentence that brings the hero in: "a shy fox named Mia" or "Mia the fox".
    """
    found = re.search(rf"\b{hero} (?:named|called) (\w+)", text) or re.search(rf"\b([A-Z]\w+) the {hero}\b", text)
    name = found.group(1) if found else None
    if not re.search(rf"\b{hero}\b", text):
        return False
    if name:
        for kind in KINDS:
            if kind != hero and re.search(rf"\b{name} the {kind}\b|\b{kind} (?:named|called) {name}\b", text):
                return False
    last = text.rstrip().split("\n\n")[-1]
    return bool(re.search(rf"\b{hero}\b", last) or (name and re.search(rf"\b{name}\b", last)))


def copied(words: list[list[str]], n: int, documents: int) -> float:
    """Share of the answers' n-grams that stand in a sample of the training text too."""
    seen = set()
    rng = Dice(1)
    for _ in range(documents):
        w = re.findall(r"\w+", document(rng).lower())
        seen.update(hash(tuple(w[i:i + n])) for i in range(len(w) - n + 1))
    grams = [hash(tuple(w[i:i + n])) for w in words for i in range(len(w) - n + 1)]
    return round(sum(g in seen for g in grams) / max(1, len(grams)), 4)


def drawn_nats(tokenizer, documents: int = 2000) -> dict:
    """What the text promises before any training: nats drawn for a token of it, an upper bound of its entropy rate.

    `tokenizer` is a tokenizers.Tokenizer. The checkpoint's mean entropy came out at 0.94 of this figure.
    """
    rng = Dice(999_998)
    tokens = sum(len(tokenizer.encode(document(rng)).ids) + 1 for _ in range(documents))
    return dict(nats_per_token=round(rng.nats / tokens, 4), tokens_per_document=round(tokens / documents, 1))


@torch.inference_mode()
def entropy(model, tokenizer, device, count: int = 100) -> dict:
    """Next-token entropy and loss on held-out documents, in nats, and the share of positions with more than 3 nats."""
    rng, entropies, losses = Dice(999_999), [], []
    for _ in range(count):
        ids = torch.tensor([tokenizer(document(rng))["input_ids"][:1024]], device=device)
        logp = model(ids).logits[0].float().log_softmax(-1)
        entropies.append(-(logp.exp() * logp).sum(-1))
        losses.append(-logp[:-1].gather(1, ids[0, 1:, None])[:, 0])
    e, x = torch.cat(entropies), torch.cat(losses)
    return dict(mean_entropy=round(e.mean().item(), 4), over_3_nats=round((e > 3).float().mean().item(), 4),
                held_out_loss=round(x.mean().item(), 4), perplexity=round(math.exp(x.mean().item()), 3))


@torch.inference_mode()
def agreement(model, draft: Path, tokenizer, asked, device, length: int = 120) -> float:
    """Share of positions of the draft's own greedy text at which the model would have chosen the same token."""
    small = AutoModelForCausalLM.from_pretrained(draft, dtype=torch.float32).to(device).eval()
    prompts = [render([(r.text, "")]).removesuffix("<|im_end|>\n") for r in asked[:50]]
    same = total = 0
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").to(device)
        out = small.generate(**ids, do_sample=False, temperature=None, top_p=None, max_new_tokens=length)
        start = ids["input_ids"].shape[1]
        choice = model(out).logits[0, start - 1:-1].argmax(-1)
        same += int((choice == out[0, start:]).sum())
        total += len(choice)
    return round(same / total, 4)


def top_template_share(stories: int = 3000) -> float:
    """The largest share that one line of beats.txt has among the sentences of the stories."""
    rng, used, sentences = Dice(2), Counter(), 0
    for _ in range(stories):
        story = Story(rng)
        used.update(story.templates)
        sentences += len(re.findall(r"[.!?]\"?(?:\s|$)", story.text))
    return round(used.most_common(1)[0][1] / sentences, 4)


def _share(flags) -> float:
    flags = list(flags)
    return round(sum(flags) / max(1, len(flags)), 4)


def save(report: dict, file: Path) -> None:
    file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

"""Is the model any good? Held-out requests, sampled at temperature 0.7, judged against what they asked for."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.chats import SHAPED, SIGN_OFFS, document, lookup_chat, story_request
from training.dice import Dice
from training.grammar import ANIMALS, PEOPLE
from training.grounding import strays
from training.judge_shapes import shapes
from training.overlap import copied
from training.render import prompt, system, user
from training.stories import Story

KINDS = (*ANIMALS, *PEOPLE)


def judge(folder: Path, draft: Path | None = None, *, requests: int = 200, device: str = "cpu", seed: int = 10_000,
          max_new_tokens: int = 600) -> dict:
    """The figures of the model card, and a few of the texts they were taken from."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    rng = Dice(seed)
    asked = [story_request(rng, unseen=True) for _ in range(requests)]
    prompts = [prompt([user(r.text)]) for r in asked]
    torch.manual_seed(seed)
    answers = answer(model, tokenizer, device, prompts, max_new_tokens)
    stops = {tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")}
    texts = [tokenizer.decode(a, skip_special_tokens=True) for a in answers]
    named = [all(re.search(rf"\b{w}\b", text) for w in r.wanted) for r, text in zip(asked, texts)]
    kept = [keeps_hero(r.hero, text) for r, text in zip(asked, texts) if r.hero]
    stopped = [bool(stops & set(a)) for a in answers]
    words = [re.findall(r"\w+", t.lower()) for t in texts]
    grams4 = [tuple(w[i:i + 4]) for w in words for i in range(len(w) - 3)]
    sentences = [sentence for r, text in zip(asked, texts) for sentence in strays(text, r.text)]

    def say(prompts: list[str], longest: int) -> list[str]:
        return tokenizer.batch_decode(answer(model, tokenizer, device, prompts, longest), skip_special_tokens=True)

    report = dict(
        requests=requests, names_everything=_share(named), keeps_hero=_share(kept), stops=_share(stopped),
        grounded=_share(not nouns for _, nouns in sentences),
        distinct_4grams=round(len(set(grams4)) / max(1, len(grams4)), 4), copied_8grams=copied(words, 8, 100 * requests),
        **entropy(model, tokenizer, device, min(100, requests)),
        **obeys(say, min(100, requests), max_new_tokens), **shapes(say, min(100, requests), max_new_tokens),
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


def obeys(say, count: int, max_new_tokens: int, seed: int = 30_000) -> dict:
    """What a system prompt does: answers from a village that stands only there, and stories that end with its sign-off.

    say: prompts and the most new tokens -> sampled texts.
    """
    rng = Dice(seed)
    torch.manual_seed(seed)
    prompts, right = zip(*(_last_turn(lookup_chat(rng, thoughts=0)) for _ in range(count)))
    given = say(prompts, min(40, max_new_tokens))
    asked = [(story_request(rng, unseen=True).text, rng.choice(SIGN_OFFS)) for _ in range(count // 2)]
    rule = "You are a storyteller. Always finish with: "
    told = say([prompt([*system(rule + words), user(text)]) for text, words in asked], max_new_tokens)
    return dict(lookups_right=_share(a.strip() == b for a, b in zip(given, right)),
                sign_offs_kept=_share(text.endswith(words) for text, (_, words) in zip(told, asked)))


def _last_turn(chat: str) -> tuple[str, str]:
    """A chat up to its last answer, and that answer."""
    before, said = chat.rsplit("<|im_start|>assistant\n", 1)
    return before + "<|im_start|>assistant\n", said.removesuffix("<|im_end|>\n")


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


def drawn_nats(tokenizer, documents: int = 2000) -> dict:
    """What the text promises before any training: nats drawn for a token of it, an upper bound of its entropy rate.

    `tokenizer` is a tokenizers.Tokenizer. nats_per_token: of documents without JSON and tools, whose prompts repeat
    themselves; with_shapes: of all. The checkpoint's mean entropy came out at 0.94 of this figure.
    """
    figures = {}
    for name, shaped in (("nats_per_token", 0.0), ("with_shapes", SHAPED)):
        rng = Dice(999_998)
        tokens = sum(len(tokenizer.encode(document(rng, shaped=shaped)).ids) + 1 for _ in range(documents))
        figures[name] = round(rng.nats / tokens, 4)
    return figures | dict(tokens_per_document=round(tokens / documents, 1))


@torch.inference_mode()
def entropy(model, tokenizer, device, count: int = 100) -> dict:
    """Next-token entropy and loss on held-out documents, in nats, and the share of positions with more than 3 nats.

    The documents are without JSON and tools, so that the figures go on from those of models that did not know them.
    """
    rng, entropies, losses = Dice(999_999), [], []
    for _ in range(count):
        ids = torch.tensor([tokenizer(document(rng, shaped=0.0))["input_ids"][:1024]], device=device)
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
    batch = tokenizer([prompt([user(r.text)]) for r in asked[:50]], return_tensors="pt", padding=True).to(device)
    out = small.generate(**batch, do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=length)
    start = batch["input_ids"].shape[1]
    said = out[:, start:]
    mask = torch.cat([batch["attention_mask"], torch.ones_like(said)], 1)
    choice = model(out, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, start - 1:-1].argmax(-1)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    counts = ((said == end).cumsum(1) - (said == end).int()) == 0  # up to the end of the answer, that token included
    return round(((choice == said) & counts).sum().item() / counts.sum().item(), 4)


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

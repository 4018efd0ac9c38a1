"""One training run: Muon for the matrices, AdamW for the rest, as many steps as the time allows."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from training.model import Qwen3, Shape

SAMPLE_PROMPT = "<|im_start|>user\nTell me a story about a fox and a lantern.<|im_end|>\n<|im_start|>assistant\n"
CURRICULUM = 0.15  # of the run, on text half of which is copying: without it a small model never learns to copy
GATE = 0.25        # of the run: is copying learned?
EXTENDED = 0.5     # until here goes the curriculum when it is not
LONG = 0.9         # from here on in rows of the full context, so that every position is trained


class Rows:
    """Random windows of a token array that begin where a document begins. Lives on the training device."""

    def __init__(self, tokens: np.ndarray, end: int, device: str, seed: int):
        starts = np.flatnonzero(tokens == end)[:-1] + 1
        self.tokens = torch.from_numpy(tokens.astype(np.int16)).to(device)
        self.starts = torch.from_numpy(np.concatenate(([0], starts))).to(device)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.device = device

    def draw(self, count: int, length: int) -> torch.Tensor:
        """[count, length] int64."""
        last = int((self.starts < len(self.tokens) - length).sum())
        pick = torch.randint(max(1, last), (count,), generator=self.generator, device=self.device)
        at = self.starts[pick, None] + torch.arange(length, device=self.device)
        return self.tokens[at.clamp(max=len(self.tokens) - 1)].long()


def train(shape: Shape, curriculum: np.ndarray, tokens: np.ndarray, held_out: np.ndarray, tokenizer: Tokenizer, out: Path, *,
          seconds: float, max_steps: int = 10**9, batch_tokens: int, context: int, lr: float = 4e-3, device: str, seed: int = 0,
          compile: bool = False, copies: Callable[[Qwen3], float] | None = None,
          enough: float = 0.5) -> Qwen3:
    """Train for `seconds` (or `max_steps`), from `out`/checkpoint.pt when there is one; returns the model.

    copies: measures, at a quarter of the run, how well the model copies what it is asked for, 0 to 1; below `enough` the
    curriculum comes back until half of the run, and the console and gate.json say so. None: no such gate.
    Writes checkpoint.pt and history.json ([step, seconds, tokens, train loss, held-out loss] rows) to `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    eval_every = max(7.0, seconds / 25)
    torch.manual_seed(seed)
    end = tokenizer.token_to_id("<|endoftext|>")
    early, late, check = (Rows(ids, end, device, s) for ids, s in ((curriculum, seed), (tokens, seed + 1), (held_out, 7)))
    model = Qwen3(shape).to(device)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0)]
    step, spent, seen, history, gate = 0, 0.0, 0, [], None
    file = out / "checkpoint.pt"
    if file.exists():
        state = torch.load(file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        step, spent, seen, history = state["step"], state["spent"], state["seen"], state["history"]
        gate = state["gate"]
    loss_of = torch.compile(model.loss, dynamic=False) if compile else model.loss

    def loss(rows):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return loss_of(rows)

    def save():
        torch.save(dict(model=model.state_dict(), optimizers=[o.state_dict() for o in optimizers], step=step, spent=spent,
                        seen=seen, history=history, gate=gate), file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)
        (out / "history.json").write_text(json.dumps(history), encoding="utf-8")

    held = check.draw(64, min(context, 512) + 1)
    recent, next_eval, last = [], spent + eval_every, time.perf_counter()
    with tqdm(total=100, desc="training", unit="%", bar_format="{l_bar}{bar}| {elapsed} {postfix}") as bar:
        while (done := max(spent / seconds, step / max_steps)) < 1:
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr * schedule(done)
            if copies and gate is None and done >= GATE:
                gate = dict(at_step=step, names_everything=round(copies(model), 4), enough=enough)
                gate["curriculum_until"] = CURRICULUM if gate["names_everything"] >= enough else EXTENDED
                (out / "gate.json").write_text(json.dumps(gate) + "\n", encoding="utf-8")
                bar.write(f"gate on copying: {gate}")
                last = time.perf_counter()  # the measurement is no training time
            copying_until = gate["curriculum_until"] if gate else CURRICULUM
            length = context if done < LONG else min(2 * context, shape.positions)
            rows = (early if done < copying_until else late).draw(max(1, batch_tokens // length), length + 1)
            value = loss(rows)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            step, seen = step + 1, seen + rows.shape[0] * length
            recent.append(value.detach())
            if step % 8 == 0 or device == "cpu":
                recent[-1].item()  # wait for the device, so that the clock below tells the truth
            if step > 1:  # the first step compiles and does not count
                spent += time.perf_counter() - last
            last = time.perf_counter()
            bar.n = min(100, int(100 * done))
            if spent >= next_eval or max(spent / seconds, step / max_steps) >= 1:
                with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                    held_loss = sum(model.loss(held[i:i + 16]).item() for i in range(0, 64, 16)) / 4
                train_loss = torch.stack(recent).mean().item()
                history.append([step, round(spent, 1), seen, train_loss, held_loss])
                bar.set_postfix_str(f"step {step}, {seen / 1e6:.1f}M tokens, train {train_loss:.3f}, held out {held_loss:.3f}")
                bar.write(f"{history[-1]}  {sample(model, tokenizer, device)!r}")
                recent, next_eval, last = [], spent + eval_every, time.perf_counter()
                save()
    return model


def schedule(done: float) -> float:
    """The learning rate's factor at a share of the run: 2% warm-up, then a cosine to a fiftieth."""
    return done / 0.02 if done < 0.02 else 0.02 + 0.49 * (1 + math.cos(math.pi * (done - 0.02) / 0.98))


@torch.no_grad()
def sample(model: Qwen3, tokenizer: Tokenizer, device: str, num_tokens: int = 40) -> str:
    """Greedy continuation of one request; recomputes everything for every token, which is chapter 1's naive loop."""
    ids = tokenizer.encode(SAMPLE_PROMPT).ids
    start = len(ids)
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        while len(ids) < start + num_tokens and (len(ids) == start or ids[-1] != tokenizer.token_to_id("<|im_end|>")):
            ids.append(int(model(torch.tensor([ids], device=device))[0, -1].argmax()))
    return tokenizer.decode(ids[start:])

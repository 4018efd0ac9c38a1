"""`python -m training`: from nothing to nanovllm/assets. On a GPU in minutes, on a CPU in hours; interrupt and go on."""

import argparse
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import torch
from tokenizers import Tokenizer

from training.card import card, draft_card, moe_card
from training.data import make_tokens, train_tokenizer
from training.export import export
from training.gate import naming
from training.judge import drawn_nats, judge, save
from training.model import Shape
from training.train import train

matplotlib.use("agg")
ASSETS = Path(__file__).parent.parent / "nanovllm" / "assets"


PARTS = ("offline", "draft", "moe")


@dataclass(frozen=True)
class Recipe:
    """Sizes of one run. Times are seconds of training proper; documents are about 270 tokens long."""

    shape: Shape
    draft: Shape
    moe: Shape
    documents: int
    seconds: float
    draft_seconds: float
    moe_seconds: float
    batch_tokens: int
    context: int = 1024
    max_steps: int = 10**9
    requests: int = 200
    gate_requests: int = 32  # asked at a quarter of the model's run; the draft need not copy
    gate_tokens: int = 200


MODEL = Shape(hidden=256, layers=6, heads=8, kv_heads=4, intermediate=576)
DRAFT = Shape(hidden=128, layers=2, heads=4, kv_heads=2, intermediate=256)
MOE = Shape(hidden=192, layers=4, heads=6, kv_heads=2, intermediate=128, experts=8, active=2)
TINY = Shape(hidden=64, layers=1, heads=2, kv_heads=1, intermediate=64, vocab=384)
TINY_MOE = Shape(hidden=64, layers=1, heads=2, kv_heads=1, intermediate=32, vocab=384, experts=4, active=2)
RECIPES = {
    "gpu": Recipe(MODEL, DRAFT, MOE, 450_000, 250, 45, 120, 131_072),
    "cpu": Recipe(MODEL, DRAFT, MOE, 100_000, 9000, 1200, 6000, 8192, context=512),
    "minute": Recipe(TINY, TINY, TINY_MOE, 200, 60, 60, 60, 512, context=64, max_steps=6, requests=2, gate_requests=2,
                     gate_tokens=8),  # what the tests run
}


def run(recipe: Recipe, work: Path, assets: Path, device: str, workers: int, seed: int = 0, judged: bool = True,
        only: tuple[str, ...] = PARTS) -> dict | None:
    """Tokenizer, data, models, export, verdict. Finished parts in `work` are not made again.

    only: which of the models; without "offline" the tokenizer is the one that lies with that model already.
    """
    work.mkdir(parents=True, exist_ok=True)
    tokenizer_file = work / "tokenizer.json"
    if "offline" not in only:
        shutil.copy(assets / "offline" / "tokenizer.json", tokenizer_file)
    if not tokenizer_file.exists():
        train_tokenizer(seed, recipe.shape.vocab, min(10_000, recipe.documents)).save(str(tokenizer_file))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens", flush=True)
    make = dict(tokenizer_file=tokenizer_file, workers=workers)
    tokens = make_tokens(num_documents=recipe.documents, seed=seed + 1000, copying=0.12, **make)
    curriculum = make_tokens(num_documents=max(200, recipe.documents // 6), seed=seed + 500_000, copying=0.5, **make)
    held_out = make_tokens(num_documents=2000 if recipe.documents > 2000 else 200, seed=seed + 900_000, copying=0.12, **make)
    print(f"data: {len(tokens) / 1e6:.1f}M tokens, {len(curriculum) / 1e6:.1f}M for the curriculum", flush=True)

    def copies(model):
        return naming(model, tokenizer, device, recipe.gate_requests, recipe.gate_tokens)

    parts = {"offline": (recipe.shape, recipe.seconds), "draft": (recipe.draft, recipe.draft_seconds),
             "moe": (recipe.moe, recipe.moe_seconds)}
    for name in only:
        shape, seconds = parts[name]
        model = train(shape, curriculum, tokens, held_out, tokenizer, work / name, seconds=seconds, max_steps=recipe.max_steps,
                      batch_tokens=recipe.batch_tokens, context=recipe.context, device=device, seed=seed,
                      compile=device == "cuda", copies=copies if name == "offline" else None)
        export(model, tokenizer, assets / name)
        shutil.copy(work / name / "history.json", assets / name)
        plot_loss(json.loads((work / name / "history.json").read_text(encoding="utf-8")), assets / name / "loss.png")
    return judge_all(recipe, work, assets, device, only) if judged else None


def judge_all(recipe: Recipe, work: Path, assets: Path, device: str, only: tuple[str, ...] = PARTS) -> dict | None:
    """The verdicts on the folders in `assets`, to `work`/judge.json and judge_moe.json and to the models' cards."""
    longest = 600 if recipe.requests >= 100 else 16
    report = None
    if "offline" in only and "draft" in only:
        report = judge(assets / "offline", assets / "draft", requests=recipe.requests, device=device, max_new_tokens=longest)
        save(report, work / "judge.json")
        write_cards(report, work, assets)
    if "moe" in only:
        verdict = judge(assets / "moe", requests=min(64, recipe.requests), device=device, max_new_tokens=longest)
        save(verdict, work / "judge_moe.json")
        history = json.loads((assets / "moe" / "history.json").read_text(encoding="utf-8"))
        (assets / "moe" / "README.md").write_text(moe_card(verdict, history, recipe.moe), encoding="utf-8")
        report = report or verdict
    return report


def write_cards(report: dict, work: Path, assets: Path) -> None:
    """README.md of both folders, from the judge's figures and what the gate saw."""
    gate = work / "offline" / "gate.json"
    histories = {name: json.loads((assets / name / "history.json").read_text(encoding="utf-8"))
                 for name in ("offline", "draft")}
    seen = json.loads(gate.read_text(encoding="utf-8")) if gate.exists() else None
    (assets / "offline" / "README.md").write_text(card(report, histories["offline"], seen), encoding="utf-8")
    (assets / "draft" / "README.md").write_text(draft_card(report, histories["draft"]), encoding="utf-8")


def plot_loss(history: list[list], file: Path) -> None:
    """Training and held-out loss over tokens seen, small enough for the model card."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axes = figure.subplots()
    seen = [row[2] / 1e6 for row in history]
    axes.plot(seen, [row[3] for row in history], ".-", label="training")
    axes.plot(seen, [row[4] for row in history], ".-", label="held out")
    axes.set(xlabel="tokens seen (millions)", ylabel="loss (nats a token)", xlim=(0, None), ylim=(0, None))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=80, metadata={"Software": None})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--recipe", choices=RECIPES, help="default: gpu where there is one, else cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/offline-model"), help="where checkpoints stay, to resume from")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="where the finished folders go")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="which of the models to train")
    parser.add_argument("--documents", type=int, help="how many to make, about 270 tokens each; default: the recipe's")
    parser.add_argument("--unjudged", action="store_true", help="train and export only; --judge-only can follow")
    parser.add_argument("--judge-only", action="store_true", help="judge the folders in --assets and write their cards")
    parser.add_argument("--entropy", action="store_true", help="print the nats drawn for a token of training text")
    arguments = parser.parse_args(argv)
    if arguments.entropy:
        print(json.dumps(drawn_nats(train_tokenizer(0, MODEL.vocab, 10_000))))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = RECIPES[arguments.recipe or ("gpu" if device == "cuda" else "cpu")]
    recipe = replace(recipe, documents=arguments.documents or recipe.documents)
    only = tuple(arguments.only)
    if arguments.judge_only:
        arguments.work.mkdir(parents=True, exist_ok=True)
        report = judge_all(recipe, arguments.work, arguments.assets, device, only)
    else:
        report = run(recipe, arguments.work, arguments.assets, device, arguments.workers, judged=not arguments.unjudged,
                     only=only)
    print(json.dumps({k: v for k, v in (report or {}).items() if k not in ("samples", "missed")}, indent=1))


if __name__ == "__main__":
    main()

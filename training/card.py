"""The model card, written from the judge's figures: `python -m training.card runs/offline-model/judge.json`."""

import json
import sys
from pathlib import Path

ROWS = (
    ("names_everything", "answers that name every hero, object and place asked for", 0.95, ">="),
    ("keeps_hero", "answers that keep the hero's kind and name to the end", 0.90, ">="),
    ("stops", "answers that stop by themselves", 0.98, ">="),
    ("draft_agreement", "positions of the draft's greedy text where the model agrees", 0.60, ">="),
    ("top_template_share", "largest share of one sentence template", 0.01, "<="),
    ("mean_entropy", "mean next-token entropy, nats (aim: 0.6 to 1.5)", None, ""),
    ("held_out_loss", "loss on held-out text, nats a token", None, ""),
    ("distinct_4grams", "distinct 4-grams", None, ""),
    ("copied_8grams", "8-grams of the answers found in 20,000 training documents", None, ""),
)


def card(report: dict) -> str:
    """Markdown. A figure that misses its aim says so."""
    lines = ["---", "license: mit", "language: en", "library_name: transformers", "---", "", "# The offline model", "",
             "A small Qwen3 checkpoint made from nothing by `python -m training` (see training/README.md), for trying the",
             "engine without a download. It writes simple stories and answers simple questions, and knows nothing else.",
             "Its text is the project's own, from a seeded generator, and so are the weights: MIT, like the rest.", "",
             f"Judged on {report['requests']} held-out requests, sampled at temperature 0.7:", "",
             "| what | figure | aim |", "| --- | --- | --- |"]
    for key, what, aim, sign in ROWS:
        if key in report:
            met = aim is None or (report[key] >= aim if sign == ">=" else report[key] <= aim)
            wish = "" if aim is None else f"{sign} {aim}" + ("" if met else ", missed")
            lines.append(f"| {what} | {report[key]} | {wish} |")
    if not 0.6 <= report["mean_entropy"] <= 1.5:
        lines += ["", f"The mean entropy of {report['mean_entropy']} nats misses its aim: the text is more predictable than it should be."]
    lines += ["", "Held out means that no training request pairs that hero with that object; plain stories may hold both.", "",
              "![loss](loss.png)", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    text = card(json.loads(Path(sys.argv[1]).read_text()))
    (Path(__file__).parent.parent / "nanovllm" / "assets" / "offline" / "README.md").write_text(text)

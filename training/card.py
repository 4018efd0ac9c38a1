"""The cards of the models, written from the judge's figures."""

from training.model import Shape

ROWS = (
    ("names_everything", "answers that name every hero, object and place asked for", 0.95, ">="),
    ("keeps_hero", "answers that keep the hero's kind and name to the end", 0.90, ">="),
    ("stops", "answers that stop by themselves", 0.98, ">="),
    ("grounded", "sentences whose nouns the request, the place or the plot brought in", 0.95, ">="),
    ("lookups_right", "questions about a village in the system prompt, answered right", None, ""),
    ("sign_offs_kept", "stories that end with the words the system prompt asks for", None, ""),
    ("json_valid_known", "answers in JSON, nothing holding them, that fit their schema; keys as in training", 0.90, ">="),
    ("json_right_known", "answers in JSON that are right; keys as in training", None, ""),
    ("json_valid", "answers in JSON that fit their schema; keys that no training text has", 0.90, ">="),
    ("json_right", "answers in JSON that are right; keys that no training text has", None, ""),
    ("tool_calls_parse", "questions for a tool that are answered by calls that parse; unseen names", 0.90, ">="),
    ("tool_names_right_known", "calls of the right tools; names as in training", None, ""),
    ("tool_names_right", "calls of the right tools; unseen names", None, ""),
    ("tool_calls_right_known", "calls of the right tools with the right arguments; names as in training", 0.80, ">="),
    ("tool_calls_right", "calls of the right tools with the right arguments; unseen names", 0.80, ">="),
    ("tools_left_alone", "questions that need no tool, answered without one; unseen names", None, ""),
    ("responses_used", "answers that say what the tool's response says; unseen names", None, ""),
    ("draft_agreement", "positions of the draft's greedy text where the model agrees", 0.60, ">="),
    ("top_template_share", "largest share of one sentence template", 0.01, "<="),
    ("mean_entropy", "mean next-token entropy, nats (at most 1.5)", 0.6, ">="),
    ("over_3_nats", "share of positions with more than 3 nats", None, ""),
    ("held_out_loss", "loss on held-out text, nats a token", None, ""),
    ("distinct_4grams", "distinct 4-grams", None, ""),
    ("copied_8grams", "8-grams of the answers found in 20,000 training documents", None, ""),
)


HEAD = ["---", "license: mit", "language: en", "library_name: transformers", "---", ""]


def card(report: dict, history: list[list], gate: dict | None = None) -> str:
    """Markdown. A figure that misses its aim says so. history, gate: what train.py wrote to the files of that name.

    A report may say under `measured` how figures came about that were measured apart from the others.
    """
    lines = [*HEAD, "# The offline model", "",
             "A small Qwen3 checkpoint made from nothing by `python -m training` (see training/README.md), for trying the",
             "engine without a download. It writes simple stories, answers simple questions, in words or in JSON, and calls",
             "tools; it knows nothing else.",
             "Its text is the project's own, from a seeded generator, and so are the weights: MIT, like the rest.", "",
             f"Trained on {history[-1][2] / 1e6:.0f} million tokens.",
             f"Judged on {report['requests']} held-out requests, sampled at temperature 0.7:", "",
             "| what | figure | aim |", "| --- | --- | --- |"]
    for key, what, aim, sign in ROWS:
        if key in report:
            met = aim is None or (report[key] >= aim if sign == ">=" else report[key] <= aim)
            wish = "" if aim is None else f"{sign} {aim}" + ("" if met else ", missed")
            lines.append(f"| {what} | {report[key]} | {wish} |")
    lines += ["", "Held out means that no training story or request brings that hero together with that object or that place."]
    if "measured" in report:
        lines += ["", report["measured"]]
    if gate:
        lines += ["", f"At a quarter of the run, {gate['names_everything']:.0%} of the answers named everything; the",
                  f"curriculum of copying went on until {gate['curriculum_until']:.0%} of the run."]
    return "\n".join([*lines, "", "![loss](loss.png)", ""])


def moe_card(report: dict, history: list[list], shape: Shape) -> str:
    """Markdown for the mixture of experts."""
    lines = [*HEAD, "# The offline mixture of experts", "",
             "A Qwen3-MoE checkpoint with the offline model's tokenizer, trained on the same text by",
             "`python -m training --only moe` (see training/README.md), so that experts, too, have something to say.",
             "Text and weights are the project's own: MIT, like the rest.", "",
             f"{shape.layers} layers of {shape.experts} experts; a token uses {shape.active} of them.",
             f"Trained on {history[-1][2] / 1e6:.0f} million tokens.",
             f"Judged on {report['requests']} held-out requests, sampled at temperature 0.7:", "",
             "| what | figure |", "| --- | --- |"]
    lines += [f"| {what} | {report[key]} |" for key, what, *_ in ROWS if key in report and key != "draft_agreement"]
    if "measured" in report:
        lines += ["", report["measured"]]
    return "\n".join([*lines, "", "![loss](loss.png)", ""])


def draft_card(report: dict, history: list[list]) -> str:
    """Markdown for the draft."""
    return "\n".join([
        *HEAD, "# The offline model's draft", "",
        "A Qwen3 checkpoint of two layers with the offline model's tokenizer, trained on the same text by `python -m training`",
        "(see training/README.md). It proposes tokens for speculative decoding and is not meant to be read: alone it writes",
        "sentences, but loses what it was asked for. Text and weights are the project's own: MIT, like the rest.", "",
        f"Trained on {history[-1][2] / 1e6:.0f} million tokens.",
        f"At {report['draft_agreement']:.1%} of the positions of its greedy text the offline model would have chosen the same",
        "token (aim: 60% or more).", "", "![loss](loss.png)", ""])

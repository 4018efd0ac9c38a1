"""The way from nothing to a checkpoint, at a size that takes seconds, and what its text must be like."""

import json
import math
import re
from collections import Counter

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from nanovllm.config import OFFLINE_MODEL
from training import chats, data, gate, grammar, stories
from training.__main__ import RECIPES, TINY, TINY_MOE, main, run
from training.card import ROWS
from training.dice import Dice
from training.judge import drawn_nats, keeps_hero, top_template_share
from training.overlap import copied
from training.render import prompt, user
from training.train import train
from training.village import ABOUT


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    report = run(RECIPES["minute"], folder / "work", folder / "assets", "cpu", workers=1)
    return folder, report


def test_the_whole_way_leaves_three_folders_and_a_report(made):
    folder, report = made
    for name in ("offline", "draft", "moe"):
        held = {file.name for file in (folder / "assets" / name).iterdir()}
        assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                "loss.png", "README.md"} <= held
        history = json.loads((folder / "work" / name / "history.json").read_text(encoding="utf-8"))
        assert history[-1][0] == RECIPES["minute"].max_steps and history[-1][3] < 6.0  # ln 384 = 5.95 at the start
    assert json.loads((folder / "work" / "judge.json").read_text(encoding="utf-8")) == report
    assert {"names_everything", "keeps_hero", "stops", "distinct_4grams", "copied_8grams", "mean_entropy", "grounded",
            "draft_agreement", "lookups_right", "sign_offs_kept", "json_valid", "json_right", "tool_calls_parse",
            "tool_names_right", "tool_calls_right", "tools_left_alone", "responses_used"} <= report.keys()
    card = (folder / "assets" / "offline" / "README.md").read_text(encoding="utf-8")
    assert all(what in card for key, what, *_ in ROWS if key in report)


@pytest.mark.parametrize(("name", "shape"), [("offline", TINY), ("moe", TINY_MOE)])
def test_exported_weights_give_the_logits_of_the_model_trained(made, name, shape):
    from transformers import AutoModelForCausalLM

    from training.model import Qwen3

    folder, _ = made
    state = torch.load(folder / "work" / name / "checkpoint.pt", weights_only=True)["model"]
    twin = Qwen3(shape)
    twin.load_state_dict({name: weight.to(torch.bfloat16).float() for name, weight in state.items()})
    theirs = AutoModelForCausalLM.from_pretrained(folder / "assets" / name, dtype=torch.float32).eval()
    tokens = torch.randint(TINY.vocab, (2, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(twin(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)


def test_training_goes_on_from_its_checkpoint(made, tmp_path):
    folder, _ = made
    file = folder / "work" / "tokenizer.json"
    tokens = data.make_tokens(file, 200, seed=5, copying=0.2, workers=1)
    settings = dict(seconds=60, batch_tokens=256, context=64, device="cpu")
    tokenizer = Tokenizer.from_file(str(file))
    train(TINY, tokens, tokens, tokens, tokenizer, tmp_path, max_steps=2, **settings)
    train(TINY, tokens, tokens, tokens, tokenizer, tmp_path, max_steps=5, **settings)
    history = json.loads((tmp_path / "history.json").read_text(encoding="utf-8"))
    assert [row[0] for row in history] == [2, 5] and history[1][2] == 5 * 256


def test_the_same_seed_gives_the_same_tokens_on_any_number_of_workers(made):
    file = made[0] / "work" / "tokenizer.json"
    alone = data.make_tokens(file, 4000, seed=3, copying=0.1, workers=1)
    assert np.array_equal(alone, data.make_tokens(file, 4000, seed=3, copying=0.1, workers=2))
    assert not np.array_equal(alone[:1000], data.make_tokens(file, 200, seed=4, copying=0.1, workers=1)[:1000])


def test_stories_vary():
    assert len(grammar.PLOTS) >= 30
    assert top_template_share(1000) < 0.01


def test_no_slot_and_no_choice_is_left_open():
    rng = Dice(0)
    for _ in range(400):
        text = chats.document(rng, 0.2, shaped=0.0)
        assert not set("{}[]") & set(text) and not re.search(r"<(?!think)\w+>", text)


@pytest.mark.parametrize("unseen", (False, True), ids=("training", "judge"))
def test_training_and_judge_ask_for_different_pairs(unseen):
    rng = Dice(0)
    asked = [request.story for request in (chats.story_request(rng, unseen) for _ in range(3000)) if request.hero]
    for what in ("obj", "place"):
        held = [chats.held_out(story["hero"], story[what]) for story in asked if what in story]
        assert len(held) > 300 and all(h is unseen for h in held)


def test_stories_of_training_bring_no_held_out_pair_together():
    rng = Dice(0)
    for story in (chats.seen_story(rng) for _ in range(500)):
        assert not chats.held_out(story.hero.kind, story.obj) and not chats.held_out(story.hero.kind, story.place)


def test_dice_count_the_surprise_of_what_they_draw():
    dice, n = Dice(0), 40_000
    for _ in range(n):
        dice.flip(0.25)
    assert dice.nats / n == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3), rel=0.02)
    dice.nats = 0.0
    dice.choice("abcd"), dice.whole(1, 4), dice.some("abcd", 2), dice.weighted("ab", (1, 1))
    assert dice.nats == pytest.approx(math.log(4 * 4 * (4 * 3) * 2))
    dice.nats = 0.0
    drawn = Counter(dice.skewed("abc") for _ in range(n))
    assert dice.nats / n == pytest.approx(-sum(c / n * math.log(c / n) for c in drawn.values()), rel=0.01)


def test_the_text_is_not_too_predictable():
    tokenizer = Tokenizer.from_file(str(OFFLINE_MODEL / "tokenizer.json"))
    figures = drawn_nats(tokenizer, 300)
    # The checkpoint's own entropy stands in its card. Schemas and tools repeat themselves, stories must not.
    assert 0.55 < figures["with_shapes"] < figures["nats_per_token"] < 1.5 and figures["nats_per_token"] > 0.75


def test_every_pool_is_used_and_every_pool_used_is_there():
    beats = [line.text for beat in grammar.BEATS.values() for line in beat]
    said = [*stories.OPENERS, *stories.TAILS, *chats.RULES, chats.ROLE, *chats.GREETINGS, *chats.REASONS, *ABOUT]
    said += [word for pool in grammar.POOLS.values() for word in pool]
    used = set(re.findall(r"<(\w+)>", " ".join(beats + said)))
    used |= {"way", "gesture", "adv", "lively", "look", "town"}  # drawn by the code
    used |= {"object", "food", "day", "being"}                   # in what a tool sends
    assert used == set(grammar.POOLS)


@pytest.mark.parametrize(("share", "until"), [(0.9, 0.15), (0.1, 0.5)], ids=("it copies", "it does not"))
def test_a_model_that_does_not_copy_gets_more_of_the_curriculum(made, tmp_path, share, until):
    file = made[0] / "work" / "tokenizer.json"
    tokens = data.make_tokens(file, 200, seed=5, copying=0.2, workers=1)
    asked_at = []

    def copies(model):
        asked_at.append(model)
        return share

    settings = dict(seconds=60, batch_tokens=256, context=64, device="cpu", copies=copies)
    train(TINY, tokens, tokens, tokens, Tokenizer.from_file(str(file)), tmp_path, max_steps=8, **settings)
    gate = json.loads((tmp_path / "gate.json").read_text(encoding="utf-8"))
    assert len(asked_at) == 1 and gate["at_step"] == 2 and gate["curriculum_until"] == until


def test_the_gate_counts_the_answers_that_name_everything(made, monkeypatch):
    tokenizer = Tokenizer.from_file(str(made[0] / "work" / "tokenizer.json"))
    asked = [gate.story_request(Dice(20_000), unseen=True)]
    said = tokenizer.encode(" ".join(asked[0].wanted)).ids + [tokenizer.token_to_id("<|im_end|>")]
    start = len(tokenizer.encode(prompt([user(asked[0].text)])).ids)

    def model(ids):  # says `said`, whatever it is asked
        logits = torch.zeros(*ids.shape, TINY.vocab)
        for i, token in enumerate(said):
            if start + i - 1 < ids.shape[1]:
                logits[:, start + i - 1, token] = 1.0
        return logits

    assert gate.naming(model, tokenizer, "cpu", 1, len(said)) == 1.0
    said[:-1] = tokenizer.encode("nothing").ids
    assert gate.naming(model, tokenizer, "cpu", 1, 20) == 0.0


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("A shy fox named Mia lived here.\n\nMia was glad.", True),
        ("A shy fox named Mia lived here.\n\nMia the bear was glad.", False),
        ("A shy fox named Mia lived here.\n\nTom was glad.", False),
        ("A shy bear named Mia lived here.\n\nMia was glad.", False),
    ],
)
def test_the_judge_sees_a_hero_that_changes(text, kept):
    assert keeps_hero("fox", text) is kept


def test_folders_that_are_there_can_be_judged_alone(made, capsys):
    folder, report = made
    for name in ("judge.json", "judge_moe.json"):
        (folder / "work" / name).unlink()
    cards = [folder / "assets" / name / "README.md" for name in ("offline", "draft", "moe")]
    before = [card.read_text(encoding="utf-8") for card in cards]
    for card in cards:
        card.unlink()
    main(["--judge-only", "--recipe", "minute", "--work", str(folder / "work"), "--assets", str(folder / "assets")])
    assert '"names_everything"' in capsys.readouterr().out
    assert [card.read_text(encoding="utf-8") for card in cards] == before
    assert json.loads((folder / "work" / "judge.json").read_text(encoding="utf-8")).keys() == report.keys()


def test_copied_counts_what_the_training_text_has_too():
    rng = Dice(0)
    seen = [re.findall(r"\w+", chats.document(rng).lower()) for _ in range(20)]
    assert copied(seen, 8, 20) == 1.0 and copied(seen, 8, 900) == 1.0  # alone, and in parts by several processes
    assert copied([["zebra", "of", "the", "moon"] * 4], 8, 20) == 0.0


def test_the_exported_tokenizer_keeps_what_tools_and_thoughts_are_written_with(made):
    from transformers import AutoTokenizer

    from nanovllm.serving.tokenizer import load_tokenizer

    folder = made[0] / "assets" / "offline"
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    text = '<think>\nHm.\n</think>\n\n<tool_call>\n{"name": "a"}\n</tool_call><|im_end|>'
    ids = theirs(text)["input_ids"]
    assert ours.encode(text) == ids and ids.count(theirs.convert_tokens_to_ids("<tool_call>")) == 1
    for tokenizer in (theirs, ours):
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.removesuffix("<|im_end|>")
    vocab = theirs.get_vocab()
    assert [vocab[token] for token in data.SPECIAL] == [TINY.vocab - 3, TINY.vocab - 2, TINY.vocab - 1]
    assert sorted(vocab.values()) == list(range(TINY.vocab))

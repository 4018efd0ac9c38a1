"""The way from nothing to a checkpoint, at a size that takes seconds, and what its text must be like."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from training import chats, data, stories
from training.__main__ import RECIPES, TINY, run
from training.dice import Dice
from training.judge import keeps_hero, top_template_share
from training.train import train


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    report = run(RECIPES["minute"], folder / "work", folder / "assets", "cpu", workers=1)
    return folder, report


def test_the_whole_way_leaves_two_folders_and_a_report(made):
    folder, report = made
    for name in ("offline", "draft"):
        held = {file.name for file in (folder / "assets" / name).iterdir()}
        assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                "loss.png"} <= held
        history = json.loads((folder / "work" / name / "history.json").read_text())
        assert history[-1][0] == RECIPES["minute"].max_steps and history[-1][3] < 6.0  # ln 384 = 5.95 at the start
    assert json.loads((folder / "work" / "judge.json").read_text()) == report
    assert {"names_everything", "keeps_hero", "stops", "distinct_4grams", "copied_8grams", "mean_entropy",
            "draft_agreement"} <= report.keys()


def test_exported_weights_give_the_logits_of_the_model_trained(made):
    from transformers import AutoModelForCausalLM

    from training.model import Qwen3

    folder, _ = made
    state = torch.load(folder / "work" / "offline" / "checkpoint.pt", weights_only=True)["model"]
    twin = Qwen3(TINY)
    twin.load_state_dict({name: weight.to(torch.bfloat16).float() for name, weight in state.items()})
    theirs = AutoModelForCausalLM.from_pretrained(folder / "assets" / "offline", dtype=torch.float32).eval()
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
    history = json.loads((tmp_path / "history.json").read_text())
    assert [row[0] for row in history] == [2, 5] and history[1][2] == 5 * 256


def test_the_same_seed_gives_the_same_tokens_on_any_number_of_workers(made):
    file = made[0] / "work" / "tokenizer.json"
    alone = data.make_tokens(file, 4000, seed=3, copying=0.1, workers=1)
    assert np.array_equal(alone, data.make_tokens(file, 4000, seed=3, copying=0.1, workers=2))
    assert not np.array_equal(alone[:1000], data.make_tokens(file, 200, seed=4, copying=0.1, workers=1)[:1000])


def test_stories_vary():
    assert len(stories.PLOTS) >= 30
    assert top_template_share(1000) < 0.01


def test_no_slot_and_no_choice_is_left_open():
    rng = Dice(0)
    for _ in range(400):
        assert not set("{}[]") & set(chats.document(rng, 0.2))


def test_requests_of_the_judge_are_never_asked_in_training():
    rng = Dice(0)
    pairs = [request.story for request in (chats.story_request(rng) for _ in range(3000)) if "obj" in request.story]
    assert not any(chats.held_out(pair["hero"], pair["obj"]) for pair in pairs if "hero" in pair)


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

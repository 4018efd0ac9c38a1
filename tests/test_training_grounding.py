"""The judge's measure of stories that stay with what they are about, on stories written by hand and by the generator."""

import pytest

from training.chats import story_request
from training.dice import Dice
from training.grammar import PLACES, PLOTS
from training.grounding import everyday, grounded_share, likely_object, likely_place, likely_plots, singular, strays
from training.stories import Story

GOOD = """In the kitchen, where the kettle whistled, there lived a shy fox named Mia. Mia had a brass lantern. It glowed like a
tiny sun. Beside the flour sack, a small cricket looked on.

Just then, Mia met Tom the owl. "It smells of cinnamon here," said Tom. But one evening, the lantern was gone. They searched
for hours, behind the copper pans and under the long table. And there, in an old sack, was the lantern! Mia hugged Tom."""

BAD = """In the kitchen, where the kettle whistled, there lived a shy fox named Mia. Mia thought of the price of chains, and
then of the stars. A camel hardly bigger than a trumpet was in the way. Mia had a brass lantern. A ship from the desert
carried forty bricks. Tom the owl had a violin and twelve bicycles. Mia laughed."""

ASKED = "Tell me a story about a fox and a lantern in the kitchen."


def test_a_good_story_and_a_bad_one():
    assert grounded_share(GOOD, ASKED) == 1.0
    assert grounded_share(BAD, ASKED) <= 0.5
    found = {noun for _, nouns in strays(BAD, ASKED) for noun in nouns}
    assert {"chains", "camel", "trumpet", "bricks", "violin", "bicycles"} <= {*found, *(noun + "s" for noun in found)}
    assert not {"fox", "owl", "lantern", "kettle"} & found


def test_the_same_sentence_is_at_home_in_one_place_and_a_stray_in_another():
    sentence = "Mia the fox looked at a rolling pin and a frying pan."
    assert grounded_share(sentence, "A story about a fox in the kitchen.") == 1.0
    assert grounded_share(sentence, "A story about a fox in the meadow.") == 0.0
    assert grounded_share(sentence, "A story about a fox, a rolling pin and a frying pan in the meadow.") == 1.0


def test_a_fourth_kind_and_a_third_food_are_strays():
    cast = "A fox met an owl and a bear. They ate bread and cheese. "
    assert grounded_share(cast, "A story about a fox in the castle.") == 1.0
    assert [nouns for _, nouns in strays(cast + "A penguin came. They ate noodles.", "A story about a fox in the castle.")
            ] == [[], [], ["penguin"], ["noodles"]]


def test_the_generators_own_stories_stay_with_what_they_are_about():
    rng, sentences = Dice(11), []
    for _ in range(150):
        request = story_request(rng)
        sentences += strays(Story(rng, **request.story).text, request.text)
    share = sum(not nouns for _, nouns in sentences) / len(sentences)
    assert share >= 0.99, [pair for pair in sentences if pair[1]][:10]


def test_stories_of_one_place_told_of_another_lose_their_ground():
    """The measure sees it, when the place is not the one that was asked for."""
    rng = Dice(12)
    for place, other in (("kitchen", "harbor"), ("forest", "market"), ("jungle", "library")):
        shares = []
        for asked in (place, other):
            stories = [Story(rng, place=place, length="long") for _ in range(15)]
            shares.append(sum(grounded_share(story.text, f"A story {PLACES[asked]['phrase']}.") for story in stories) / 15)
        assert shares[0] > 0.97 and shares[1] < 0.8, (place, other, shares)


def test_place_and_plot_and_object_are_told_from_the_text():
    rng, right = Dice(13), {"place": 0, "plot": 0}
    for _ in range(120):
        story = Story(rng)
        right["place"] += likely_place(story.text) == story.place
        right["plot"] += story.plot in likely_plots(story.text)
    assert min(right.values()) >= 0.95 * 120, right
    assert likely_object(GOOD, everyday()) == "lantern" and likely_object("Mia sat on the grass.", everyday()) is None


def test_everyday_words_are_no_persons_and_every_noun_has_a_number():
    assert not {"fox", "queen", "dragon"} & everyday()
    assert singular()["geese"] == "goose" and singular()["lanterns"] == "lantern" and singular()["lantern"] == "lantern"
    assert "see" not in singular() and "quickly" not in singular()


@pytest.mark.parametrize("text", ["", "...", "!"])
def test_a_text_without_sentences_has_no_strays(text):
    assert grounded_share(text) == 1.0


def test_every_plot_is_found_where_it_fits_and_every_place_has_all_it_needs():
    for name, place in PLACES.items():
        assert all(len(place[key]) >= 6 for key in ("sights", "sounds", "smells", "things", "beasts", "folk", "plants", "spots")
                   ), name
        assert sum(plot.fits(set(place["tags"])) for plot in PLOTS.values()) >= 20, name

"""Stop strings in a growing text: however it is cut, the same end is found and no beginning of one gets out."""

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanovllm.serving.stop_strings import StopStrings

words = st.text("abé🦊", min_size=1, max_size=4)


def cut(text, places):
    bounds = sorted({0, len(text), *(p % (len(text) + 1) for p in places)})
    return [text[a:b] for a, b in pairwise(bounds)]


def expected(text, stops, include):
    """By definition: the shortest beginning of the text that ends with a stop string."""
    for end in range(1, len(text) + 1):
        ends = [s for s in stops if text[:end].endswith(s)]
        if ends:
            longest = max(ends, key=len)
            return text[:end] if include else text[:end - len(longest)], longest
    return text, None


@settings(max_examples=500, deadline=None, derandomize=True)
@given(text=st.text("abé🦊", max_size=20), stops=st.lists(words, min_size=1, max_size=3), places=st.lists(st.integers(0, 99)),
       include=st.booleans())
@example(text="aab", stops=["aab", "ab"], places=[1, 2], include=False)
def test_however_the_text_is_cut_the_same_end_is_found(text, stops, places, include):
    finder, out = StopStrings(tuple(stops), include), ""
    for piece in cut(text, places):
        out += finder.push(piece)
        if finder.found:
            break
        assert text.startswith(out)
        held = text[len(out):]
        assert not any(out.endswith(s[:n]) and held == "" for s in stops for n in range(1, len(s)))
    out += finder.flush()
    assert (out, finder.found) == expected(text, stops, include)


def test_only_what_could_become_a_stop_string_is_held_back():
    finder = StopStrings(("STOP", "end."))
    assert [finder.push(p) for p in ("the en", "emy S", "TO", "RE en", "d")] == ["the ", "enemy ", "", "STORE ", ""]
    assert finder.flush() == "end" and finder.found is None


@pytest.mark.parametrize("include, text", [(False, "one "), (True, "one STOP")])
def test_the_text_ends_before_or_after_the_stop_string(include, text):
    finder = StopStrings(("STOP",), include)
    assert finder.push("one STOP two") == text and finder.found == "STOP"


def test_without_search_a_stop_string_passes_but_one_that_ends_later_is_found():
    finder = StopStrings(("aba",))
    out = finder.push("aba", search=False)
    assert out == "ab" and finder.found is None
    assert finder.push("ba") == "" and finder.found == "aba"

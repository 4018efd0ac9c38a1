"""A check always answers, and its answer names what went wrong."""

from chapters.exercises.verdict import check, require


@check("halves")
def check_half(half):
    require(half(4) == 2, "4: half of it is 2.")
    return "one number"


def test_a_right_answer_says_what_was_tried():
    verdict = check_half(lambda n: n // 2)
    assert verdict and repr(verdict) == "passed · halves: one number"


def test_a_wrong_answer_becomes_its_hint():
    verdict = check_half(lambda n: n)
    assert not verdict and repr(verdict) == "not yet · halves: 4: half of it is 2."


def test_an_unwritten_exercise_and_a_crash_are_answers_too():
    def unwritten(n):
        raise NotImplementedError

    def crashes(n):
        return n / 0

    assert "still to be written" in check_half(unwritten).text
    assert "ZeroDivisionError" in check_half(crashes).text and "return n / 0" in check_half(crashes).text

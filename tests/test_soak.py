"""The soak, short: what the long one asserts over 20,000 requests, over a few."""

from benchmarks.soak import Case, Soak, soak


def test_a_short_soak_loses_nothing_and_leaves_nothing():
    figures = soak(num_requests=160, num_clients=32, num_cases=40)
    assert figures["first_wrong"] == [] and figures["wrong"] == 0
    assert figures["right"] + figures["disconnected"] == 160 and figures["right"] > 120
    assert figures["free_blocks"] == figures["blocks"] and not figures["unfinished"]
    assert figures["steps"] > 0 and figures["memory"][-1][0] == 160


def test_a_wrong_answer_would_be_noticed():
    case = Case("completions", {}, [("once upon", "length")], 2)
    assert Soak._verdict(case, [("once upon", "length")], 2) == "right"
    for got, num_tokens in (([("once", "length")], 2), ([("once upon", "stop")], 2), ([("once upon", "length")], 3), ([], 2)):
        assert Soak._verdict(case, got, num_tokens) != "right"

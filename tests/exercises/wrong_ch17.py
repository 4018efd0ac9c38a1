"""Plausible wrong answers to chapter 17: name of the check -> answers that must fail it, each with a hint of its own."""

import math

from chapters.exercises.solutions.ch17 import MyRouter


def keeps_them_busy(rate, seconds_each, utilisation):
    return math.ceil(rate * seconds_each)


def rounds_down(rate, seconds_each, utilisation):
    return max(1, int(rate * seconds_each / utilisation))


def half_an_engine(rate, seconds_each, utilisation):
    return rate * seconds_each / utilisation


class TakesTurns:
    def __init__(self, block_ms, wait_ms):
        self.turn = 0

    def choose(self, hashes, loads):
        self.turn += 1
        return self.turn % len(loads)

    def sent(self, replica, hashes):
        pass

    def restarted(self, replica):
        pass


class NeverForgets(MyRouter):
    def restarted(self, replica):
        pass


class RouterOfTheChapter(MyRouter):
    """What the chapter has on its pages, and the bound."""

    def choose(self, hashes, loads):
        allowed = [i for i in loads if loads[i] <= min(loads.values()) + 8]
        return max(allowed, key=lambda i: (self.matched(i, hashes), -loads[i]))


class RemembersTheLastOnly(MyRouter):
    def sent(self, replica, hashes):
        self.known[replica] = set(hashes)


class WeighsNoBlocks(MyRouter):

    def choose(self, hashes, loads):
        return min(loads, key=lambda i: len(hashes) * self.block_ms + loads[i] * self.wait_ms)


class LoadFirst(MyRouter):
    def choose(self, hashes, loads):
        return min(loads, key=lambda i: (loads[i], -self.matched(i, hashes)))


class LastOfEquals(MyRouter):
    def choose(self, hashes, loads):
        return super().choose(hashes, dict(reversed(loads.items())))


class ReturnsALoad(MyRouter):
    def choose(self, hashes, loads):
        return -1


def tries_them_all(is_good, highest):
    rate = 0
    while rate < highest and is_good(rate + 1):
        rate += 1
    return rate


def first_bad_one(is_good, highest):
    good, bad = 0, highest + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if is_good(middle) else (good, middle)
    return bad


def doubles_only(is_good, highest):
    rate = 1
    while rate * 2 <= highest and is_good(rate * 2):
        rate *= 2
    return rate


WRONG = {
    "check_engines_for": [keeps_them_busy, rounds_down, half_an_engine],
    "check_router": [TakesTurns, RemembersTheLastOnly, NeverForgets, WeighsNoBlocks, LoadFirst, LastOfEquals, ReturnsALoad,
                     RouterOfTheChapter],
    "check_highest_rate": [tries_them_all, first_bad_one, doubles_only],
}

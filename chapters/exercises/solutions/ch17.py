"""Solutions of chapter 17."""

import math


def engines_for(rate, seconds_each, utilisation):
    return max(1, math.ceil(rate * seconds_each / utilisation - 1e-9))  # 1e-9: 4.0000000001 engines are four


class MyRouter:
    def __init__(self, block_ms, wait_ms):
        self.block_ms, self.wait_ms, self.known = block_ms, wait_ms, {}

    def choose(self, hashes, loads):
        return min(loads, key=lambda i: (len(hashes) - self.matched(i, hashes)) * self.block_ms + loads[i] * self.wait_ms)

    def matched(self, replica, hashes):
        known = self.known.get(replica, ())
        return next((n for n, block in enumerate(hashes) if block not in known), len(hashes))

    def sent(self, replica, hashes):
        self.known.setdefault(replica, set()).update(hashes)

    def restarted(self, replica):
        self.known.pop(replica, None)


def highest_rate(is_good, highest):
    good, bad = 0, highest + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        if is_good(middle):
            good = middle
        else:
            bad = middle
    return good

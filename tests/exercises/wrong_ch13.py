"""Plausible wrong answers to chapter 13: name of the check -> answers that must fail it, each with a hint of its own."""


def forgets_the_embedding(num_tokens, hidden_size, num_layers, bytes_per_number):
    return 2 * num_layers * num_tokens * hidden_size * bytes_per_number


def one_sum_a_layer(num_tokens, hidden_size, num_layers, bytes_per_number):
    return (num_layers + 1) * num_tokens * hidden_size * bytes_per_number


class BiasOnEveryRank:
    def __init__(self, weight, bias, tp):
        share = weight.shape[1] // tp.size
        self.weight, self.bias, self.tp = weight[:, tp.rank * share:(tp.rank + 1) * share], bias, tp

    def __call__(self, x):
        return self.tp.all_reduce(x @ self.weight.T + self.bias)


class NoBias(BiasOnEveryRank):
    def __call__(self, x):
        return self.tp.all_reduce(x @ self.weight.T)


class NoSum(BiasOnEveryRank):
    def __call__(self, x):
        return x @ self.weight.T + self.bias


class OnlyTheFirstRankSums(BiasOnEveryRank):
    def __call__(self, x):
        y = x @ self.weight.T
        return self.tp.all_reduce(y) + self.bias if self.tp.rank == 0 else y


class AsksForTheSumTwice(BiasOnEveryRank):
    def __call__(self, x):
        return self.tp.all_reduce(self.tp.all_reduce(x @ self.weight.T)) + self.bias


def divides_kv_heads(rank, size, num_heads, num_kv_heads):
    per_rank, kv = num_heads // size, num_kv_heads // size
    return list(range(rank * per_rank, (rank + 1) * per_rank)), list(range(rank * kv, (rank + 1) * kv))


def everybody_holds_all_kv_heads(rank, size, num_heads, num_kv_heads):
    per_rank = num_heads // size
    return list(range(rank * per_rank, (rank + 1) * per_rank)), list(range(num_kv_heads))


WRONG = {
    "check_step_bytes": [forgets_the_embedding, one_sum_a_layer],
    "check_row_linear": [BiasOnEveryRank, NoBias, NoSum, OnlyTheFirstRankSums, AsksForTheSumTwice],
    "check_heads_of": [divides_kv_heads, everybody_holds_all_kv_heads],
}

"""Plausible wrong answers to chapter 06: name of the check -> answers that must fail it, each with a hint of its own."""

import torch

from chapters.exercises.ch06 import LeanNorm, parameters_by_kind
from chapters.exercises.solutions.ch06 import MyNorm, num_parameters


def built_and_counted(config):
    return sum(parameters_by_kind(config).values())


def heads_share_the_hidden_size(config):
    hidden = config.hidden_size
    attention = 2 * hidden * hidden + 2 * hidden * hidden * config.num_key_value_heads // config.num_attention_heads
    layer = attention + 3 * hidden * config.intermediate_size + 2 * hidden + 2 * hidden // config.num_attention_heads
    return config.num_hidden_layers * layer + hidden + (2 - config.tie_word_embeddings) * config.vocab_size * hidden


def always_two_tables(config):
    return num_parameters(config) + config.tie_word_embeddings * config.vocab_size * config.hidden_size


def without_head_norms(config):
    return num_parameters(config) - config.num_hidden_layers * 2 * config.head_dim


class CopiesTooEarly(MyNorm):
    """x is safe, and the sum is still written to after it was made."""

    def __call__(self, x, residual=None):
        wide = x.float().clone()
        if residual is not None:
            wide += residual
        total = wide.to(x.dtype)
        wide *= torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        normed = wide.to(x.dtype) * self.weight
        return normed if residual is None else (normed, total)


class NeverWidens(MyNorm):
    def __call__(self, x, residual=None):
        total = x if residual is None else x + residual
        normed = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + self.eps) * self.weight
        return normed if residual is None else (normed, total)


class StaysWide(MyNorm):
    def __call__(self, x, residual=None):
        total = x if residual is None else x + residual
        wide = total.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight.float()
        return normed if residual is None else (normed, total)


def the_way_back(weight, head_dim):
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def heads_forgotten(weight, head_dim):
    return torch.cat((weight[0::2], weight[1::2]))


def columns(weight, head_dim):
    return torch.cat((weight[:, 0::2], weight[:, 1::2]), 1)


def untouched(weight, head_dim):
    return weight


WRONG = {
    "check_num_parameters": (built_and_counted, heads_share_the_hidden_size, always_two_tables, without_head_norms),
    "check_norm": (LeanNorm, CopiesTooEarly, NeverWidens, StaysWide),
    "check_to_halves": (the_way_back, heads_forgotten, columns, untouched),
}

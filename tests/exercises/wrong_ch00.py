"""Plausible wrong answers to chapter 00: name of the check -> answers that must fail it, each with a hint of its own."""

from chapters.exercises.solutions.ch00 import next_step


def keys_only(num_layers, num_kv_heads, head_dim, bytes_per_number):
    return num_layers * num_kv_heads * head_dim * bytes_per_number


def one_layer(num_layers, num_kv_heads, head_dim, bytes_per_number):
    return 2 * num_kv_heads * head_dim * bytes_per_number


def prompts_first(running, waiting, budget):
    tokens = {}
    for name, left in sorted((running | waiting).items(), key=lambda item: item[1] == 1):
        if count := min(left, budget):
            tokens[name], budget = count, budget - count
    return tokens, {name for name, count in tokens.items() if count == (running | waiting)[name]}


def everybody_draws(running, waiting, budget):
    tokens, _ = next_step(running, waiting, budget)
    return tokens, set(tokens)


def no_budget(running, waiting, budget):
    return running | waiting, set(running | waiting)


def first_chunk_is_first_token(trace):
    began = {}
    for record in trace:
        for item in record.scheduled:
            began.setdefault(item["seq_id"], record.step)
    return {seq_id: (step, step) for seq_id, step in began.items()}


def the_last_time(trace):
    began, drawn = {}, {}
    for record in trace:
        for item in record.scheduled:
            began[item["seq_id"]] = record.step
        for seq_id in record.tokens:
            drawn[seq_id] = record.step
    return {seq_id: (began[seq_id], drawn[seq_id]) for seq_id in began}


WRONG = {
    "check_bytes_per_token": [keys_only, one_layer],
    "check_next_step": [prompts_first, everybody_draws, no_budget],
    "check_first_token_steps": [first_chunk_is_first_token, the_last_time],
}

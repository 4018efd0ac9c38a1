"""Plausible wrong answers to chapter 00: name of the check -> answers that must fail it, each with a hint of its own."""

from chapters.exercises.solutions.ch00 import next_step


def shares_nothing(num_blocks, block_size, num_system, num_own, num_output):
    return num_blocks // -(-(num_system + num_own + num_output - 1) // block_size)


def stores_the_last_token(num_blocks, block_size, num_system, num_own, num_output):
    shared = num_system // block_size
    return (num_blocks - shared) // (-(-(num_system + num_own + num_output) // block_size) - shared)


def counts_tokens_and_no_blocks(num_blocks, block_size, num_system, num_own, num_output):
    return (num_blocks * block_size - num_system) // (num_own + num_output - 1 or 1)


def shares_a_block_that_is_not_full(num_blocks, block_size, num_system, num_own, num_output):
    shared = -(-num_system // block_size)
    return (num_blocks - shared) // max(1, -(-(num_system + num_own + num_output - 1) // block_size) - shared)


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
    "check_chats_that_fit": [shares_nothing, stores_the_last_token, counts_tokens_and_no_blocks,
                             shares_a_block_that_is_not_full],
    "check_next_step": [prompts_first, everybody_draws, no_budget],
    "check_first_token_steps": [first_chunk_is_first_token, the_last_time],
}

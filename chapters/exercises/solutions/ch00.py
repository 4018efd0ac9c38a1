"""Solutions of chapter 00."""


def chats_that_fit(num_blocks, block_size, num_system, num_own, num_output):
    shared = num_system // block_size  # full blocks, stored once
    stored = num_system + num_own + num_output - 1  # the last token is drawn, and never fed
    return (num_blocks - shared) // (-(-stored // block_size) - shared)


def next_step(running, waiting, budget):
    decoding = {name: left for name, left in running.items() if left == 1}
    tokens = {}
    for name, left in (decoding | running | waiting).items():  # who decodes first, then the rest, each in order
        if count := min(left, budget):
            tokens[name] = count
            budget -= count
    return tokens, {name for name, count in tokens.items() if count == (running | waiting)[name]}


def first_token_steps(trace):
    began, drawn = {}, {}
    for record in trace:
        for item in record.scheduled:
            began.setdefault(item["seq_id"], record.step)
        for seq_id in record.tokens:
            drawn.setdefault(seq_id, record.step)
    return {seq_id: (began[seq_id], drawn[seq_id]) for seq_id in began}

"""Solutions of chapter 00."""


def bytes_per_token(num_layers, num_kv_heads, head_dim, bytes_per_number):
    return num_layers * 2 * num_kv_heads * head_dim * bytes_per_number


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

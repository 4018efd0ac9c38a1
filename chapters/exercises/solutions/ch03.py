"""Solutions of chapter 03."""

from hashlib import blake2b


def block_names(tokens, block_size, salt):
    names, parent = [], blake2b(salt.encode(), digest_size=16).digest()
    for start in range(0, len(tokens) - block_size + 1, block_size):
        block = tokens[start:start + block_size]
        parent = blake2b(parent + repr(block).encode(), digest_size=16).digest()
        names.append(parent)
    return names


def admission_order(waiting):
    """What is found counts in tokens, a step of waiting like one more of them: who has waited long enough comes first."""
    return sorted(waiting, key=lambda request: -(request.num_found + request.waited))


def choose_victim(blocks):
    """LRU among the leaves, where each time a block was found counts like ten more recent uses."""
    leaves = [b for b in blocks if b.children == 0]
    return min(leaves, key=lambda b: b.last_used + 10 * b.uses)

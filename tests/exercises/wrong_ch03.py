"""Plausible wrong answers to chapter 03: name of the check -> answers that must fail it, each with a hint of its own."""

from chapters.exercises.solutions.ch03 import block_names


def names_without_a_past(tokens, block_size, salt):
    return [(salt, *tokens[i:i + block_size]) for i in range(0, len(tokens) - block_size + 1, block_size)]


def names_the_last_piece_too(tokens, block_size, salt):
    return [(salt, *tokens[:i + block_size]) for i in range(0, len(tokens), block_size)]


def sums_the_past(tokens, block_size, salt):
    return [(salt, sum(tokens[:i + block_size])) for i in range(0, len(tokens) - block_size + 1, block_size)]


def names_by_pythons_hash(tokens, block_size, salt):
    return [hash((salt, *tokens[:i + block_size])) for i in range(0, len(tokens) - block_size + 1, block_size)]


def joins_without_a_mark(tokens, block_size, salt):
    return [salt + "".join(map(str, tokens[:i + block_size])) for i in range(0, len(tokens) - block_size + 1, block_size)]


def salts_the_first_block_only(tokens, block_size, salt):
    return [(salt if i == 0 else "", *tokens[:i + block_size]) for i in range(0, len(tokens) - block_size + 1, block_size)]


def chain_of_the_chapter(tokens, block_size, salt):
    return block_names(tokens, block_size, "")


def first_come_first_served(waiting):
    return waiting


def most_found_first(waiting):
    return sorted(waiting, key=lambda request: -request.num_found)


def last_come_first_served(waiting):
    return waiting[::-1]


def leaves_out_who_finds_nothing(waiting):
    return [request for request in waiting if request.num_found]


def patience_of_ten_steps(waiting):
    return sorted(waiting, key=lambda request: (request.waited < 10, -request.num_found if request.waited < 10 else 0))


def evicts_the_oldest_of_all(blocks):
    return max(blocks, key=lambda b: b.children)


def evicts_the_newest(blocks):
    return max((b for b in blocks if b.children == 0), key=lambda b: b.last_used)


def takes_the_first(blocks):
    return blocks[0]


def is_no_better_than_lru(blocks):
    return min((b for b in blocks if b.children == 0), key=lambda b: b.last_used)


def forgets_when(blocks):
    return min((b for b in blocks if b.children == 0), key=lambda b: b.uses)


def returns_an_index(blocks):
    return 1000 + min(range(len(blocks)), key=lambda i: blocks[i].last_used)


WRONG = {
    "check_block_names": (names_without_a_past, names_the_last_piece_too, sums_the_past, names_by_pythons_hash,
                          joins_without_a_mark, salts_the_first_block_only, chain_of_the_chapter),
    "check_admission_order": (first_come_first_served, most_found_first, last_come_first_served,
                              leaves_out_who_finds_nothing, patience_of_ten_steps),
    "check_choose_victim": (evicts_the_oldest_of_all, evicts_the_newest, takes_the_first, is_no_better_than_lru,
                            forgets_when, returns_an_index),
}

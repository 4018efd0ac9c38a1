"""Plausible wrong answers to chapter 02: name of the check -> answers that must fail it, each with a hint of its own."""

from chapters.exercises.solutions.ch02 import MyBlocks, slot_runs


def looks_up_one_block(block_table, start, end, block_size):
    return [(block_table[0] * block_size + start, end - start)]


def forgets_the_last(block_table, start, end, block_size):
    return slot_runs(block_table, start, end - 1, block_size)


def slots_of_the_chapter(block_table, start, end, block_size):
    return [block_table[p // block_size] * block_size + p % block_size for p in range(start, end)]


def a_run_for_each_block(block_table, start, end, block_size):
    return [run for at in range(start, end) if at == start or at % block_size == 0
            for run in slot_runs(block_table, at, min(end, at - at % block_size + block_size), block_size)]


class TakesBeforeItChecks(MyBlocks):
    def append(self, seq, num_tokens):
        for _ in range(self.num_new_blocks(seq, num_tokens)):
            if not self.unreferenced:
                raise RuntimeError("no block is free")
            seq.block_table.append(self.unreferenced.pop())


class CountsFromNothing(MyBlocks):
    def num_new_blocks(self, seq, num_tokens):
        return -(-num_tokens // self.block_size)


class NeverGivesBack(MyBlocks):
    def free(self, seq):
        seq.block_table = []


class ShrinksTooFar(MyBlocks):
    def shrink(self, seq, num_tokens):
        keep = num_tokens // self.block_size
        self.unreferenced.extend(seq.block_table[keep:])
        seq.block_table = seq.block_table[:keep]


class ShrinksTheTableOnly(MyBlocks):
    def shrink(self, seq, num_tokens):
        seq.block_table = seq.block_table[:-(-num_tokens // self.block_size)]


class BlocksOfTheChapter:
    """What stands in the text, and the two questions of the scheduler."""

    def __init__(self, num_blocks, block_size):
        self.num_blocks, self.block_size = num_blocks, block_size
        self.unreferenced = list(range(num_blocks))

    @property
    def num_free_blocks(self):
        return len(self.unreferenced)

    def num_new_blocks(self, seq, num_tokens):
        return max(0, -(-num_tokens // self.block_size) - len(seq.block_table))

    def append(self, seq, num_tokens):
        missing = -(-num_tokens // self.block_size) - len(seq.block_table)
        if missing > len(self.unreferenced):
            raise RuntimeError(f"{missing} more blocks needed, {len(self.unreferenced)} are free")
        for _ in range(missing):
            seq.block_table.append(self.unreferenced.pop(0))

    def free(self, seq):
        self.unreferenced.extend(seq.block_table)
        seq.block_table = []


class RoundsDown(MyBlocks):
    def num_new_blocks(self, seq, num_tokens):
        return max(0, num_tokens // self.block_size - len(seq.block_table))


def shares_the_last_block_too(manager, parent, child):
    child.block_table = list(parent.block_table)
    for block in child.block_table:
        manager.ref_counts[block] += 1
    child.num_computed_tokens = parent.num_computed_tokens
    return []


def counts_no_reference(manager, parent, child):
    full = parent.num_computed_tokens // manager.block_size
    child.block_table = parent.block_table[:full]
    manager.append(child, parent.num_computed_tokens)
    child.num_computed_tokens = parent.num_computed_tokens
    return list(zip(parent.block_table[full:], child.block_table[full:]))


def copies_everything(manager, parent, child):
    manager.append(child, parent.num_computed_tokens)
    child.num_computed_tokens = parent.num_computed_tokens
    return list(zip(parent.block_table, child.block_table))


WRONG = {
    "check_slot_runs": (looks_up_one_block, forgets_the_last, slots_of_the_chapter, a_run_for_each_block),
    "check_manager": (TakesBeforeItChecks, CountsFromNothing, NeverGivesBack, RoundsDown, ShrinksTooFar,
                      ShrinksTheTableOnly, BlocksOfTheChapter),
    "check_fork": (shares_the_last_block_too, counts_no_reference, copies_everything),
}

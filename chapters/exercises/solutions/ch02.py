"""Solutions of chapter 02."""


def slot_runs(block_table, start, end, block_size):
    runs = []
    for position in range(start, end):
        slot = block_table[position // block_size] * block_size + position % block_size
        if runs and slot == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((slot, 1))
    return runs


class MyBlocks:
    def __init__(self, num_blocks, block_size):
        self.block_size = block_size
        self.unreferenced = list(range(num_blocks))

    @property
    def num_free_blocks(self):
        return len(self.unreferenced)

    def num_new_blocks(self, seq, num_tokens):
        return max(0, -(-num_tokens // self.block_size) - len(seq.block_table))

    def append(self, seq, num_tokens):
        missing = self.num_new_blocks(seq, num_tokens)
        if missing > self.num_free_blocks:
            raise RuntimeError(f"{missing} more blocks needed, {self.num_free_blocks} are free")
        for _ in range(missing):
            seq.block_table.append(self.unreferenced.pop())

    def shrink(self, seq, num_tokens):
        keep = -(-num_tokens // self.block_size)
        self.unreferenced.extend(seq.block_table[keep:])
        del seq.block_table[keep:]

    def free(self, seq):
        self.unreferenced.extend(seq.block_table)
        seq.block_table = []


def fork(manager, parent, child):
    full = parent.num_computed_tokens // manager.block_size
    child.block_table = parent.block_table[:full]
    for block in child.block_table:
        manager.ref_counts[block] += 1
    manager.append(child, parent.num_computed_tokens)
    child.num_computed_tokens = parent.num_computed_tokens
    return list(zip(parent.block_table[full:], child.block_table[full:]))

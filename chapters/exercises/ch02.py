"""Chapter 02: slots, a block manager that the real engine can use, and forking a sequence."""

import random

from nanovllm import LLM, SamplingParams
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.sequence import Sequence

from .verdict import check, require


@check("slots")
def check_slot_runs(slot_runs):
    """slot_runs(block_table, start, end, block_size) -> [(first slot, how many), ...], in the order of the positions."""
    draw = random.Random(0)
    for number in range(60):
        size = draw.choice([1, 4, 16])
        first = draw.randrange(30)
        table = draw.sample(range(40), 6) if number % 3 else [first, first + 1, first + 2, 39, 38, first + 3]
        start = draw.randrange(6 * size)
        end = draw.randrange(start, 6 * size) + 1
        slots = [table[p // size] * size + p % size for p in range(start, end)]
        begins = [i for i, slot in enumerate(slots) if i == 0 or slot != slots[i - 1] + 1]
        right = [(slots[i], then - i) for i, then in zip(begins, [*begins[1:], len(slots)], strict=True)]
        got = slot_runs(list(table), start, end, size)
        hint = f"table {table}, positions {start} to {end - 1}, blocks of {size}: {right}, not {got}."
        try:
            covered = [slot + i for slot, length in got for i in range(length)]
        except (TypeError, ValueError):
            covered = []
            hint += " Pairs are wanted: the first slot of a run, and how many slots it has."
        if covered == [table[0] * size + p for p in range(start, end)] != slots:
            hint += " Only the first block's place was looked up; its neighbours lie elsewhere."
        elif covered and covered == slots[:-1]:
            hint += " The last position is missing: `end` is not included, end - 1 is."
        elif covered == slots and list(map(tuple, got)) != right:
            hint += " The slots are right, but two of these runs are neighbours: one copy would do for both."
        require(list(map(tuple, got)) == right if covered else False, hint)
    return "60 tables, with blocks of 1, 4 and 16"


def _books(manager, seqs, held_before=None) -> str | None:
    """What is wrong with the books, from the tables and the number of free blocks; None when nothing is."""
    held = [b for seq in seqs for b in seq.block_table]
    twice = sorted({b for b in held if held.count(b) > 1})
    if twice:
        return f"block {twice[0]} stands in two tables"
    if any(not 0 <= b < 12 for b in held):
        return f"a table holds {[b for b in held if not 0 <= b < 12]}, and blocks are numbered 0 to 11"
    if manager.num_free_blocks + len(held) != 12:
        return f"{len(held)} of 12 blocks are in tables, yet num_free_blocks is {manager.num_free_blocks}"
    return None


@check("the manager")
def check_manager(MyBlocks):
    """MyBlocks(num_blocks, block_size) with num_free_blocks, num_new_blocks, append, shrink and free."""
    moves = 0
    for game in range(40):
        draw = random.Random(game)
        size = draw.choice([1, 4])
        manager, seqs = MyBlocks(12, size), [Sequence(i, [0] * 100) for i in range(4)]
        story = []
        for _ in range(40):
            seq, moves = draw.choice(seqs), moves + 1
            if draw.random() < 0.3:
                story.append(f"free({seq.seq_id})")
                manager.free(seq)
                require(seq.block_table == [], f"{'; '.join(story[-6:])}: sequence {seq.seq_id} still holds {seq.block_table}.")
            elif seq.block_table and draw.random() < 0.3:
                keep = draw.randrange(0, (len(seq.block_table) + 1) * size)
                before, needed = list(seq.block_table), -(-keep // size)
                story.append(f"shrink({seq.seq_id}, {keep})")
                manager.shrink(seq, keep)
                require(seq.block_table == before[:needed],
                        f"blocks of {size}, {'; '.join(story[-6:])}: {keep} tokens need the first "
                        f"{min(needed, len(before))} of {before}; the table is {seq.block_table}.")
            else:
                wanted = draw.randrange(1, 8 * size)
                story.append(f"append({seq.seq_id}, {wanted})")
                missing = max(0, -(-wanted // size) - len(seq.block_table))
                told = manager.num_new_blocks(seq, wanted)
                where = f"blocks of {size}, {'; '.join(story[-6:])}"
                require(told == missing, f"{where}: num_new_blocks should be {missing}, not {told}; the table holds "
                                         f"{len(seq.block_table)} blocks already.")
                before, free = list(seq.block_table), 12 - sum(len(s.block_table) for s in seqs)
                try:
                    manager.append(seq, wanted)
                    refused = False
                except RuntimeError:
                    refused = True
                require(refused == (missing > free), f"{where}: {missing} blocks needed, {free} free; append should "
                        f"{'raise RuntimeError' if missing > free else 'succeed'}.")
                if refused:
                    require(seq.block_table == before, f"{where}: append raised, and yet the table went from {before} to "
                                                       f"{seq.block_table}. Check before you take the first block.")
                else:
                    require(seq.block_table[:len(before)] == before,
                            f"{where}: the table was {before} and is {seq.block_table}; what is there must stay.")
                    require(len(seq.block_table) == len(before) + missing,
                            f"{where}: {missing} blocks should be added to {before}; the table is {seq.block_table}.")
            trouble = _books(manager, seqs)
            require(trouble is None, f"blocks of {size}, after {'; '.join(story[-6:])}: {trouble}.")
    return f"40 games, {moves} moves, books balanced after each"


def as_block_manager(reader_class) -> type:
    """The reader's class where the engine expects a BlockManager without prefix caching."""

    class Adapted(BlockManager):
        """Allocation by the reader's class; the questions the trace and the integrity check ask are answered from it."""

        def __init__(self, num_blocks, block_size, enable_prefix_caching=False):
            super().__init__(num_blocks, block_size, enable_prefix_caching=False)
            self.reader = reader_class(num_blocks, block_size)

        num_free_blocks = property(lambda self: self.reader.num_free_blocks)

        def num_new_blocks(self, seq, num_tokens, prefix=()):
            return self.reader.num_new_blocks(seq, num_tokens)

        def append(self, seq, num_tokens):
            before = len(seq.block_table)
            self.reader.append(seq, num_tokens)
            for block in seq.block_table[before:]:
                self.ref_counts[block] += 1
                self._unreferenced.pop(block, None)

        def trim(self, seq, num_tokens):
            before = list(seq.block_table)
            self.reader.shrink(seq, num_tokens)
            self._given_back(before[len(seq.block_table):])

        def free(self, seq):
            self._given_back(seq.block_table)
            self.reader.free(seq)
            seq.num_computed_tokens = 0

        def _given_back(self, blocks):
            for block in blocks:
                self.ref_counts[block] -= 1
                self._unreferenced[block] = None

        def check_integrity(self, sequences):
            super().check_integrity(sequences)
            if self.reader.num_free_blocks != len(self._unreferenced):
                raise RuntimeError(f"{len(self._unreferenced)} blocks have no owner, and your class says that "
                                   f"{self.reader.num_free_blocks} are free")

    return Adapted


def serve_with(block_manager_cls, prompts, num_blocks: int = 14) -> str:
    """Serve `prompts` under pressure with the reader's manager, checking after each step; compare with ours."""
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    texts = []
    for cls in (BlockManager, block_manager_cls):
        with LLM(kvcache_block_size=8, num_kvcache_blocks=num_blocks, enable_prefix_caching=False,
                 block_manager_cls=cls) as llm:
            seqs = [llm.engine.add_request(prompt, params) for prompt in prompts]
            while llm.engine.has_unfinished:
                llm.engine.step()
                llm.engine.check_integrity()
            texts.append([seq.output_token_ids for seq in seqs])
    if texts[0] != texts[1]:
        raise RuntimeError("the engine served other texts with your manager than with the finished one")
    return (f"{len(prompts)} requests served by your manager in {num_blocks} blocks: the same texts, "
            "books balanced after each step")


@check("fork")
def check_fork(fork):
    """fork(manager, parent, child) -> [(source block, new block)]: full blocks shared, the partly full one to be copied."""
    for num_tokens in (4, 6, 8, 11, 1):
        manager = BlockManager(10, 4, enable_prefix_caching=False)
        other, parent, child = (Sequence(i, list(range(num_tokens))) for i in range(3))
        manager.append(other, 3)
        manager.append(parent, num_tokens)
        parent.num_computed_tokens = num_tokens
        before = list(parent.block_table)
        copies = fork(manager, parent, child)
        full, partly = num_tokens // 4, num_tokens % 4
        where = f"a parent of {num_tokens} tokens in blocks {before} of 4"
        require(parent.block_table == before, f"{where}: the parent's own table changed to {parent.block_table}.")
        require(child.block_table[:full] == before[:full],
                f"{where}: the {full} full blocks should be shared; the child holds {child.block_table}.")
        require(len(child.block_table) == len(before), f"{where}: the child needs {len(before)} blocks and holds "
                                                       f"{child.block_table}.")
        if partly:
            require(child.block_table[-1] != before[-1], f"{where}: block {before[-1]} is only partly full, and both would "
                    "write their next token into the same slot of it. The child needs a block of its own there.")
        right = [(before[-1], child.block_table[-1])] if partly else []
        require(list(copies or []) == right, f"{where}: the copies to make are {right}, not {copies}.")
        try:
            manager.check_integrity([other, parent, child])
        except RuntimeError as error:
            require(False, f"{where}: {error}. A shared block is referenced once for each table it stands in.")
        require(child.num_computed_tokens == num_tokens, f"{where}: the child's keys and values are all there (after the "
                f"copy), so its num_computed_tokens is {num_tokens}, not {child.num_computed_tokens}.")
        manager.free(parent)
        manager.check_integrity([other, child])
    return "5 forks: shared, copied, and freed again"


def check_same_as_block_manager(blocks_class, games: int = 100) -> str:
    """The chapter's own manager beside the package's, on the same random requests. Raises when they part."""
    for game in range(games):
        draw = random.Random(game)
        mine, theirs = blocks_class(16, 4), BlockManager(16, 4, enable_prefix_caching=False)
        pairs = [(Sequence(i, [0] * 80), Sequence(i, [0] * 80)) for i in range(4)]
        for _ in range(40):
            a, b = draw.choice(pairs)
            if draw.random() < 0.3:
                mine.free(a)
                theirs.free(b)
            else:
                outcomes = []
                wanted = draw.randrange(1, 30)
                for manager, seq in ((mine, a), (theirs, b)):
                    try:
                        manager.append(seq, wanted)
                        outcomes.append(len(seq.block_table))
                    except RuntimeError:
                        outcomes.append("refused")
                if outcomes[0] != outcomes[1]:
                    raise ValueError(f"game {game}: append({wanted}) gives {outcomes[0]} here, {outcomes[1]} in BlockManager")
            if len(mine.unreferenced) != theirs.num_free_blocks:
                raise ValueError(f"game {game}: {len(mine.unreferenced)} free here, {theirs.num_free_blocks} in BlockManager")
    return f"{games} random games: the same numbers of blocks taken, refused and given back"

"""Chapter 03: chained names with a salt, who is admitted next, and whom to evict."""

import random
from collections import Counter
from dataclasses import dataclass

from nanovllm import LLM, SamplingParams
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.fleet.simulation import Simulation

from .verdict import check, require


@check("the chain")
def check_block_names(block_names):
    """block_names(tokens, block_size, salt) -> one name per full block, equal exactly when the salt and everything up to its
    end are."""
    seen: dict = {}
    draw = random.Random(0)
    for _ in range(400):
        size, salt = 4, draw.choice(("", "", "1", "a", "a1"))
        tokens = draw.choices((1, 11, 111), k=draw.randrange(18))  # written without a mark between them, they are confused
        names = list(block_names(list(tokens), size, salt))
        require(not any(isinstance(name, int) for name in names), f"{names[:1]}: a number of 64 bits, such as Python's `hash`, "
                "is no safe name: two prompts that meet in it can be looked for, and found. Use blake2b.")
        require(len(names) == len(tokens) // size, f"{len(tokens)} tokens in blocks of {size}: {len(tokens) // size} full "
                                                   f"blocks, but {len(names)} names. Only full blocks have one.")
        for i, name in enumerate(names):
            past = (salt, tuple(tokens[:(i + 1) * size]))
            other = seen.setdefault(name, past)
            hint = f"{list(other[1])} and {list(past[1])} got the same name for their last block."
            if other[0] != past[0]:
                hint += f" The first has the salt {other[0]!r}, the second {past[0]!r}: they must not meet, in no block."
            elif other[1][-size:] == past[1][-size:]:
                hint += " Its tokens agree, what comes before does not."
            require(other == past, hint)
    names = {past: name for name, past in seen.items()}
    require(len(names) == len(seen), "the same prompt got two different names in two calls.")
    return f"400 prompts, {len(seen)} different blocks, no two confused"


@dataclass(frozen=True)
class Waiting:
    """A waiting request. num_found: how many of its num_tokens tokens are in the cache now; waited: for how many steps."""

    seq_id: int
    num_tokens: int
    num_found: int
    waited: int


class InOrderOf(Scheduler):
    """The finished scheduler, with the order of its queue handed to the reader before each step."""

    admission_order = None

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.since: dict[int, int] = {}
        self.waited: dict[int, int] = {}  # of those admitted

    def schedule(self):
        now, manager = self.num_scheduled_steps, self.block_manager
        by_id = {seq.seq_id: seq for seq in self.waiting}
        seen = [Waiting(i, len(seq), len(manager.find_cached_prefix(seq)) * manager.block_size,
                        now - self.since.setdefault(i, now)) for i, seq in by_id.items()]
        order = list(type(self).admission_order(list(seen)))
        ids = [getattr(one, "seq_id", one) for one in order]
        require(sorted(map(str, ids)) == sorted(map(str, by_id)), f"{len(seen)} requests waited, {sorted(by_id)}, and your "
                f"order names {ids}: return all of them, each once.")
        self.waiting[:] = [by_id[i] for i in ids]
        batch = super().schedule()
        self.waited |= {seq.seq_id: now - self.since[seq.seq_id] for seq in batch.admitted}
        return batch


MORE, LONGEST_WAIT = 1.3, 60


def _rush(admission_order) -> tuple[int, int, int, float]:
    """(prompt tokens found, in all, the longest wait, the mean one, in steps) of two rushes of requests by six applications."""
    found = total = 0
    waits: list[int] = []
    for seed in (0, 1):
        draw = random.Random(seed)
        simulation = Simulation(num_blocks=40, block_size=4, max_num_batched_tokens=64, max_num_seqs=4,
                                scheduler_cls=type("Yours", (InOrderOf,), {"admission_order": staticmethod(admission_order)}))
        systems = [[1000 + 50 * application + i for i in range(28)] for application in range(6)]
        for at in range(120):
            stranger = draw.random() < 0.12
            tokens = [] if stranger else list(draw.choice(systems))
            tokens += [draw.randrange(900) for _ in range(36 if stranger else 8)]
            total += len(tokens)
            simulation.add(tokens, max_tokens=draw.randrange(3, 8), at=at)
        found += sum(sum(record.hit_tokens.values()) for record in simulation.run())
        waits += simulation.scheduler.waited.values()
    return found, total, max(waits), sum(waits) / len(waits)


@check("who is admitted next")
def check_admission_order(admission_order):
    """admission_order(waiting) -> the same requests, in the order in which to admit them; asked before each step."""
    usual, _, _, usual_mean = _rush(lambda waiting: waiting)
    found, total, longest, mean = _rush(admission_order)
    here = (f"two rushes of 120 requests: your order finds {found:,} of {total:,} prompt tokens in the cache, first come, "
            f"first served finds {usual:,}")
    require(found >= MORE * usual, f"{here}; {MORE * usual:,.0f} are wanted. Each system prompt that leaves the cache must be "
                                   "computed again: let those go together that need the same one.")
    require(longest <= LONGEST_WAIT, f"{here}; but somebody waited {longest} steps to be admitted, and {LONGEST_WAIT} are "
                                     "allowed. Whoever finds nothing is passed by all who come: does `waited` count?")
    return f"{here}. The mean wait is {mean:.0f} steps instead of {usual_mean:.0f}, the longest {longest}"


DAYS = (0, 1)
BETTER = 1.02  # times what LRU finds


@dataclass(frozen=True)
class CachedBlock:
    """A cached block nobody references. children: cached blocks that continue it; uses: how often it was found."""

    block: int
    last_used: int
    uses: int
    children: int


class Evicting(BlockManager):
    """The finished manager, with the choice of the block to evict handed to the reader."""

    choose_victim = None

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.shuffle = random.Random(0)
        self.clock, self.last_used, self.uses, self.parents = 0, Counter(), Counter(), {}

    def allocate(self, seq, prefix):
        super().allocate(seq, prefix)
        self.uses.update(prefix)

    def commit(self, seq, start):
        super().commit(seq, start)
        hashes = seq.block_hashes(self.block_size)
        for i in range(len(seq.block_table)):
            if i < len(hashes) and self.hashes[seq.block_table[i]] == hashes[i]:
                self.parents[seq.block_table[i]] = hashes[i - 1] if i else None

    def free(self, seq):
        for block in reversed(seq.block_table):
            self.clock += 1
            self.last_used[block] = self.clock
        super().free(seq)

    def append(self, seq, num_tokens):
        for _ in range(self.num_new_blocks(seq, num_tokens)):
            if self._unreferenced and self.hashes[next(iter(self._unreferenced))] is not None:
                block = self._victim()
                self._unreferenced.move_to_end(block, last=False)
                self.uses[block] = 0
            super().append(seq, (len(seq.block_table) + 1) * self.block_size)

    def _victim(self) -> int:
        children = Counter(self.parents.get(b) for b, name in enumerate(self.hashes) if name is not None)
        cached = [CachedBlock(b, self.last_used[b], self.uses[b], children[self.hashes[b]]) for b in self._unreferenced]
        self.shuffle.shuffle(cached)  # their order should not give away who is the oldest
        chosen = type(self).choose_victim(list(cached))
        block = getattr(chosen, "block", chosen)
        found = next((c for c in cached if c.block == block), None)
        require(found is not None, f"{chosen!r} is not one of the {len(cached)} blocks you were given; return one of them.")
        require(found.children == 0, f"block {block} is continued by {found.children} cached block(s): without it they can "
                                     "never be found again. Evict a block that has no children.")
        return block


def _day_of_chats(manager_cls, seed: int = 0) -> tuple[int, int]:
    """(prompt tokens found, prompt tokens in all) of chats with a few system prompts, some popular, served one by one."""
    draw = random.Random(seed)
    systems = [[1000 + s] * 24 for s in range(8)]
    histories: list[list[int]] = []
    manager = manager_cls(40, 4)
    scheduler = Scheduler(manager, max_num_seqs=4, max_num_batched_tokens=256)
    found = total = 0
    for seq_id in range(300):
        if histories and draw.random() < 0.4:
            lately = min(int(draw.expovariate(0.5)), len(histories) - 1)
            tokens = histories[-1 - lately] + [draw.randrange(900) for _ in range(4)]
        else:
            tokens = systems[min(int(draw.expovariate(0.7)), 7)] + [draw.randrange(900) for _ in range(12)]
        tokens = tokens[:80]
        seq = Sequence(seq_id, tokens, SamplingParams(max_tokens=4))
        scheduler.add(seq)
        while not seq.is_finished:
            batch = scheduler.schedule()
            found += sum(s.num_cached_tokens for s in batch.admitted)
            scheduler.update(batch, [draw.randrange(900) for item in batch.items if item.samples])
            scheduler.check_integrity()
        total += len(tokens)
        histories.append(list(seq.token_ids))
    return found, total


@check("whom to evict")
def check_choose_victim(choose_victim):
    """choose_victim(blocks) -> the one to reuse; a leaf, and over two days of chats clearly better than LRU."""
    yours = type("Yours", (Evicting,), {"choose_victim": staticmethod(choose_victim)})
    found, total = map(sum, zip(*(_day_of_chats(yours, seed) for seed in DAYS)))
    usual = sum(_day_of_chats(BlockManager, seed)[0] for seed in DAYS)
    days = f"two days of 300 chats: your policy finds {found:,} of {total:,} prompt tokens in the cache, LRU finds {usual:,}"
    if found < usual:
        require(False, f"{days}. What was used lately is likely to be used again.")
    require(found >= BETTER * usual, f"{days}; {BETTER * usual:,.0f} are wanted. Some beginnings come back all day, and a "
                                     "moment without them should not cost them: what else does a block tell you?")
    return days


def serve_with(choose_victim, prompts) -> str:
    """Serve `prompts` twice in a small cache with the reader's policy; the texts must be those without any cache."""
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    yours = type("Yours", (Evicting,), {"choose_victim": staticmethod(choose_victim)})
    texts = []
    for cls, caching in ((BlockManager, False), (yours, True)):
        with LLM(kvcache_block_size=4, num_kvcache_blocks=20, enable_prefix_caching=caching, block_manager_cls=cls) as llm:
            outputs = []
            for _ in range(2):
                seqs = [llm.engine.add_request(prompt, params) for prompt in prompts]
                while llm.engine.has_unfinished:
                    llm.engine.step()
                    llm.engine.check_integrity()
                outputs += [seq.output_token_ids for seq in seqs]
            texts.append(outputs)
            evictions = llm.engine.block_manager.num_evictions
    if texts[0] != texts[1]:
        raise RuntimeError("the texts differ from those without a prefix cache")
    return f"{2 * len(prompts)} requests, {evictions} evictions by your policy, the texts of an engine without a cache"


def check_same_as_block_manager(cache_class, chain, games: int = 100) -> str:
    """The chapter's cache beside the package's: the same requests, in a cache that must evict, get the same blocks."""
    hits = evictions = 0
    for game in range(games):
        draw = random.Random(game)
        mine, theirs = cache_class(8), BlockManager(8, 4)
        for request in range(30):
            tokens = [draw.randrange(2) for _ in range(draw.choice([4, 8, 12, 14]))]
            names = chain(tokens, 4)
            found = mine.find(names)
            for block in found:
                mine.share(block)
            table = found + [mine.take() for _ in range(-(-len(tokens) // 4) - len(found))]
            for block, name in zip(table, names):
                mine.name(block, name)
            for block in reversed(table):
                mine.release(block)
            seq = Sequence(request, tokens)
            theirs.allocate(seq, theirs.find_cached_prefix(seq))
            theirs.append(seq, len(tokens))
            seq.num_computed_tokens = len(tokens)
            theirs.commit(seq, 0)
            if table != seq.block_table:
                raise ValueError(f"game {game}, request {request}, {tokens}: blocks {table} here, {seq.block_table} there")
            hits += seq.num_cached_tokens
            theirs.free(seq)
            theirs.check_integrity([])
        evictions += theirs.num_evictions
    return f"{games} random games, {hits:,} tokens found, {evictions:,} evictions: block for block the same"

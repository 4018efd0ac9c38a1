"""Chapter 00: how many chats fit, the next step foretold, and a trace read."""

import itertools
import random

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.fleet.simulation import Simulation
from nanovllm.sampling_params import SamplingParams

from .verdict import check, require


@check("how many chats fit")
def check_chats_that_fit(chats_that_fit):
    """chats_that_fit(num_blocks, block_size, num_system, num_own, num_output) -> how many chats the cache can hold at once."""
    draw = random.Random(0)
    cases = [(40, 16, 30, 24, 36), (10, 4, 8, 4, 1), (10, 4, 8, 3, 2), (12, 4, 0, 5, 4)]
    cases += [(draw.randrange(40, 200), draw.choice((1, 4, 16)), draw.randrange(40), draw.randrange(1, 20),
               draw.randrange(1, 20)) for _ in range(60)]
    for num_blocks, size, num_system, num_own, num_output in cases:
        manager, right = BlockManager(num_blocks, size), 0
        while True:  # the real books, until they are full
            prompt = [*range(num_system), *(1000 * (right + 1) + i for i in range(num_own))]
            seq = Sequence(right, prompt + [7] * (num_output - 1))
            prefix = manager.find_cached_prefix(seq)
            if manager.num_new_blocks(seq, len(seq), prefix) > manager.num_free_blocks:
                break
            manager.allocate(seq, prefix)
            manager.append(seq, len(seq))
            seq.num_computed_tokens = len(seq)
            manager.commit(seq, 0)
            right += 1
        got = chats_that_fit(num_blocks, size, num_system, num_own, num_output)
        hint = (f"{num_blocks} blocks of {size}, a system prompt of {num_system} tokens, {num_own} of each user, answers of "
                f"{num_output}: {right} chats, not {got}.")
        tokens = num_system + num_own + num_output
        alone, full = -(-(tokens - 1) // size), num_system // size
        if got == num_blocks // alone != right:
            hint += " The full blocks of the system prompt are stored once for all of them."
        elif num_system % size and got == (num_blocks - full - 1) // max(1, alone - full - 1):
            hint += " A block that holds tokens of one chat alone cannot be shared: only full blocks of the system prompt are."
        elif got == (num_blocks - full) // (-(-tokens // size) - full):
            hint += " The token drawn last is never fed, and leaves no key behind."
        elif got == (num_blocks * size - num_system) // (tokens - 1 - num_system):
            hint += " A block belongs to a chat as a whole, also where it is not full."
        require(got == right, hint)
    return f"{len(cases)} caches, filled by the real block manager"


@check("the next step foretold")
def check_next_step(next_step):
    """next_step(running, waiting, budget) -> (tokens, draws), each {name: ...}, as the real scheduler will have it.

    running, waiting: {name: tokens it still has to compute}, in order. tokens: how many each computes in the next step,
    without those that compute none. draws: the set of names that get a token drawn.
    """
    asked, ids = 0, itertools.count()
    for seed in range(12):
        draw = random.Random(seed)
        budget = draw.choice((12, 16, 24))
        scheduler = Scheduler(BlockManager(1000, 4, False), max_num_batched_tokens=budget, max_num_seqs=budget)
        for _ in range(40):
            queues = scheduler.running, scheduler.waiting
            if draw.random() < 0.4 and sum(map(len, queues)) < budget:  # with more, some would find no place: chapter 04
                params = SamplingParams(max_tokens=draw.randrange(2, 6), ignore_eos=True)
                scheduler.add(Sequence(next(ids), [1] * draw.randrange(1, 60), params))
            before = [{f"s{seq.seq_id}": seq.num_uncomputed_tokens for seq in queue} for queue in queues]
            batch = scheduler.schedule()
            right = ({f"s{item.seq.seq_id}": item.num_tokens for item in batch.items},
                     {f"s{item.seq.seq_id}" for item in batch.items if item.samples})
            if any(before):
                tokens, draws = next_step(*(dict(queue) for queue in before), budget)
                case = f"running {before[0]}, waiting {before[1]}, budget {budget}: "
                hint = f"{case}tokens {right[0]}, not {tokens}."
                if sum(tokens.values()) > budget:
                    hint += f" These are {sum(tokens.values())} tokens, more than the budget."
                elif any(n == 1 and tokens.get(name) != 1 for name, n in before[0].items()):
                    hint += " Who is decoding takes its one token before any prompt gets some."
                elif sum(tokens.values()) < sum(right[0].values()):
                    hint += " Budget is left and work is left; a prompt may be cut."
                require(tokens == right[0], hint)
                hint = f"{case}drawn for {sorted(right[1])}, not for {sorted(draws)}."
                require(set(draws) == right[1], hint + " A token is drawn where a sequence's last token so far was computed.")
                asked += 1
            scheduler.update(batch, [7] * len(right[1]))
    return f"{asked} steps of the real scheduler, each foretold."


@check("a trace read")
def check_first_token_steps(first_token_steps):
    """first_token_steps(trace) -> {seq_id: (step in which it first computed anything, step in which its first token came)}."""
    for budget, num_blocks, prompts in ((8, 64, (6, 20, 3)), (4, 64, (9, 9, 9)), (16, 12, (12, 14, 10, 8))):
        simulation = Simulation(num_blocks=num_blocks, block_size=4, max_num_batched_tokens=budget, enable_prefix_caching=False)
        for i, num_prompt in enumerate(prompts):
            simulation.add(num_prompt, 12, at=i)
        trace = simulation.run()
        right = {}
        for seq_id in range(len(prompts)):
            began = next(r.step for r in trace if any(s["seq_id"] == seq_id for s in r.scheduled))
            right[seq_id] = (began, next(r.step for r in trace if seq_id in r.tokens))
        got = {seq_id: tuple(steps) for seq_id, steps in first_token_steps(trace).items()}
        case = f"prompts of {prompts} tokens, budget {budget}, {num_blocks} blocks"
        require(set(got) == set(right), f"{case}: sequences {sorted(right)} ran, not {sorted(got)}.")
        for seq_id, steps in right.items():
            hint = f"{case}: sequence {seq_id} began in step {steps[0]} and had its first token in step {steps[1]}, "
            hint += f"not {got[seq_id]}."
            if got[seq_id] == (steps[0], steps[0]):
                hint += " Its prompt took several steps; only the last of them drew a token."
            elif got[seq_id] > steps:
                hint += " It ran more than once; the first time counts."
            require(got[seq_id] == steps, hint)
    return "three runs, with chunked prompts and a preemption among them."

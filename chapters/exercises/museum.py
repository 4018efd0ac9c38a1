"""Appendix A: ten bugs that users of small engines met, and one that is none. A check is the failing test, the repair the
reader's."""

import atexit
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from nanovllm import LLM, SamplingParams
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.fleet.simulation import Simulation
from nanovllm.utils.counted import counted

from .verdict import check, require

PATIENCE = 200  # steps; an honest engine needs a tenth of that


@contextmanager
def interrupted(engine, at_step: int):
    """Somebody presses the stop button: `engine.step` raises KeyboardInterrupt the `at_step`-th time, which ends the block."""
    step, calls = engine.step, []

    def impatient():
        calls.append(None)
        if len(calls) == at_step:
            raise KeyboardInterrupt
        return step()

    engine.step = impatient
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        engine.step = step


@contextmanager
def quits() -> Iterator[None]:
    """Python quits at the end of the block, as far as what was made inside it asked to be told."""
    register, asked, before = atexit.register, [], set(weakref.finalize._registry)

    def note(function, *arguments, **keywords):
        asked.append(lambda: function(*arguments, **keywords))
        return function

    atexit.register = note
    try:
        yield
    finally:
        atexit.register = register
    for finalizer in [f for f in weakref.finalize._registry if f not in before and f.atexit]:
        finalizer()
    for function in reversed(asked):
        function()


@check("01 the engine that would not go")
def check_engine(Engine):
    """Engine(weights): freed when the last reference goes, and when Python quits; close() frees at once, once or twice."""
    class Weights:
        pass

    weights = Weights()
    alive = weakref.ref(weights)
    engine = Engine(weights)
    require(getattr(engine, "weights", None) is weights, "an engine that is open has its weights: `Engine(weights).weights` is "
            "the object that it was given.")
    del weights, engine
    gc.collect()
    require(alive() is None, "`engine = Engine(weights); del engine` leaves the weights in memory: somebody still holds it.")
    engine = Engine(Weights())
    alive = weakref.ref(engine.weights)
    engine.close()
    gc.collect()
    require(alive() is None, "after close() the weights are still in memory.")
    engine.close()  # whatever it raises becomes the hint
    with quits():
        engine = Engine(Weights())
        alive = weakref.ref(engine.weights)
    gc.collect()
    require(alive() is None, "Python quits while an engine is alive, and nothing frees its weights. The intention was right, "
                             "and `__del__` is not promised at exit: what can watch an object without holding it?")
    return "`del`, close() and the end of the program all free the weights, and close() may be called twice."


@check("02 three answers to one prompt")
def check_server(Server):
    """Server(engine).generate(prompts, params): one's own answers only, whatever happened to the call before."""
    with LLM(num_kvcache_blocks=32) as llm:
        first, second = llm.tokenizer.encode("Once upon a time"), llm.tokenizer.encode("A fox found a lantern")
        params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
        [alone] = llm.generate([second], params, use_tqdm=False)
        server = Server(llm.engine)
        with interrupted(llm.engine, at_step=3):
            server.generate([first, first], params)
        answers = server.generate([second], params)
        require(len(answers) == 1, f"two prompts, interrupted; then one prompt: {len(answers)} answers came.")
        require(answers[0] == alone.token_ids, "the one answer that came is somebody else's.")
        require(not llm.engine.has_unfinished, "requests of the interrupted call still stand in the engine.")
    return "after an interrupted call of two prompts, one prompt has one answer, its own, and nothing is left behind."


@check("03 for ever and ever")
def check_doorman(Doorman):
    """Doorman: a Scheduler whose validate refuses what could never end, and nothing else."""
    for num_prompt, max_tokens, fits in ((10, 7, True), (10, 8, False), (16, 1, True), (17, 1, False), (4, 400, False)):
        scheduler = Doorman(BlockManager(4, 4), max_model_len=64)
        seq = Sequence(0, list(range(num_prompt)), SamplingParams(max_tokens=max_tokens, ignore_eos=True))
        case = f"4 blocks of 4, a prompt of {num_prompt}, max_tokens={max_tokens}"
        try:
            scheduler.add(seq)
        except ValueError as error:
            require(not fits, f"{case}: refused, although the last token is never fed back and the rest fits.")
            require(any(c.isdigit() for c in str(error)), f"{case}: the message names no number; what is the reader to do?")
            continue
        for _ in range(PATIENCE):
            if not scheduler.has_unfinished:
                break
            batch = scheduler.schedule()
            scheduler.update(batch, [7] * sum(item.samples for item in batch.items))
        else:
            require(False, f"{case}: after {PATIENCE} steps it is still there, preempted "
                           f"{counted(scheduler.num_preemptions, 'time')}.")
        require(fits, f"{case}: it was admitted, and its last token was computed in a slot that does not exist.")
    return "five requests around the edge: what can end is served, what cannot is refused with the numbers."


@check("04 one token too many")
def check_table_width(table_width):
    """table_width(max_model_len, block_size) -> entries a row of the captured block table must have."""
    for max_model_len in (1, 15, 16, 17, 4095, 4096, 4097):
        for block_size in (1, 16, 256):
            need = len(range(0, max_model_len, block_size))
            width = table_width(max_model_len, block_size)
            case = f"max_model_len={max_model_len}, block_size={block_size}"
            require(width >= need, f"{case}: a row of {width}, and the longest sequence has "
                                    f"{counted(need, 'block')}.")
            require(width <= need, f"{case}: a row of {width}; {need} are enough.")
    return "rows fit the longest sequence and no longer, over 21 sizes."


@check("05 the optimised check")
def check_temperature(check_temperature):
    """check_temperature(value): ValueError unless it is a number from 0 up, not infinite; the message names the value."""
    for good in (0, 0.0, 0.7, 2):
        check_temperature(good)
    for bad in (-1, -0.01, float("nan"), float("inf"), "warm", None):
        try:
            check_temperature(bad)
        except AssertionError:
            require(False, f"temperature {bad!r} is caught by `assert`, which `python -O` leaves out.")
        except ValueError as error:
            require(repr(bad) in str(error) or str(bad) in str(error), f"temperature {bad!r}: the message does not name it.")
        except TypeError as error:
            require(False, f"temperature {bad!r}: TypeError ({error}), which says nothing about what is allowed.")
        else:
            require(False, f"temperature {bad!r} is accepted.")
    return "four good values pass, six bad ones are refused by name."


@check("06 five prompts for a word")
def check_pair_up(pair_up):
    """pair_up(prompts, params) -> [(prompt, params), ...]; ValueError for whatever leaves a prompt without its params."""
    a, b = SamplingParams(max_tokens=1), SamplingParams(max_tokens=2)
    for prompts, params, right in (("hello", a, [("hello", a)]), (["x", "y"], a, [("x", a), ("y", a)]),
                                   (["x", "y"], [a, b], [("x", a), ("y", b)]), ([[1, 2]], a, [([1, 2], a)]), ([], a, [])):
        got = list(pair_up(prompts, params))
        require(got == right, f"prompts {prompts!r}: {len(got)} requests were made of it, not {len(right)}."
                              + (f" The first prompt is {got[0][0]!r}." if got and right and got[0] != right[0] else ""))
    for prompts, params, why in ((["x", "y"], [a], "the second prompt has no parameters and would vanish"),
                                 ([1, 2, 3], a, "these are one prompt's token ids, not three prompts"),
                                 ([""], a, "an empty prompt has no last token to go on from")):
        try:
            got = list(pair_up(prompts, params))
        except ValueError:
            continue
        require(False, f"prompts {prompts!r} with {'a list of ' + str(len(params)) if isinstance(params, list) else 'one'} "
                       f"params gave {len(got)} requests without an error: {why}.")
    return "five good calls pair up, three bad ones are refused."


@check("07 a cap that is none")
def check_crowd(Crowd):
    """Crowd: a chapter 04 Workbench whose plan admits; never more than max_num_seqs may run."""
    simulation = Simulation(num_blocks=64, block_size=4, max_num_batched_tokens=64, max_num_seqs=2, scheduler_cls=Crowd)
    for _ in range(5):
        simulation.add(6, 4)
    most = 0
    for _ in range(PATIENCE):
        if not simulation.has_unfinished:
            break
        simulation.step()
        most = max(most, len(simulation.trace[-1].scheduled))
        require(most <= 2, f"max_num_seqs=2, five requests arrive at once: {most} ran in step {len(simulation.trace) - 1}.")
    require(not simulation.has_unfinished, f"five short requests, and somebody still waits after {PATIENCE} steps.")
    require(most == 2, "only one ran at a time although there are two places.")
    return "five requests, two places: never more than two ran, and all ended."


@check("08 the same prompt twice")
def check_twin(Twin):
    """Twin: a Scheduler that stores a prefix once, also when two requests bring it in the same step."""
    scheduler = Twin(BlockManager(16, 4), max_num_batched_tokens=64)
    for i in range(2):
        scheduler.add(Sequence(i, list(range(12)), SamplingParams(max_tokens=4, ignore_eos=True)))
    for _ in range(3):
        batch = scheduler.schedule()
        scheduler.update(batch, [7 for item in batch.items if item.samples])
    first, second = (seq.block_table[:2] for seq in sorted(scheduler.running, key=lambda seq: seq.seq_id))
    require(first == second, f"two requests with the same 12 tokens: blocks {first} and {second} hold the same, twice.")
    return f"two equal prompts that arrive together share blocks {first}."


@check("09 a token out of nowhere")
def check_rows(rows_to_sample):
    """rows_to_sample(items) -> rows of the step's hidden states from which a token is drawn, in order."""
    def item(start, num_tokens, length):
        return SimpleNamespace(start=start, num_tokens=num_tokens, length=length)

    for items, right in (([item(0, 5, 5)], [4]), ([item(9, 1, 10), item(0, 5, 5)], [0, 5]), ([item(0, 8, 20)], []),
                         ([item(3, 1, 4), item(0, 8, 20), item(8, 4, 12)], [0, 12])):
        got = list(rows_to_sample(items))
        shown = ", ".join(f"{i.start}..{i.start + i.num_tokens - 1} of {i.length}" for i in items)
        require(got == right, f"tokens {shown}: rows {right}, not {got}."
                + (" A chunk that does not reach its prompt's end has no next token yet." if len(got) > len(right) else ""))
    return "four batches, chunks among them: a token is drawn only where a sequence reaches its end."


@check("10 a setting for everybody")
def check_table(Table):
    """Table(num_tokens, block_size=None): each with its own block size, 256 unless told."""
    first = Table(1000)
    before = first.num_blocks()
    second = Table(1000, block_size=16)
    require(before == 4, f"1000 tokens in blocks of 256: 4 blocks, not {before}.")
    require(second.num_blocks() == 63, f"1000 tokens in blocks of 16: 63 blocks, not {second.num_blocks()}.")
    require(first.num_blocks() == 4, f"a second engine with blocks of 16 was made, and now the first counts "
                                     f"{first.num_blocks()} blocks instead of 4.")
    require(Table(1000).num_blocks() == 4, "a third one, made with the default, took the second one's setting.")
    return "three tables, two settings, and each keeps its own."


@check("11 the off-by-one that is none")
def check_needs_block(needs_block):
    """needs_block(length, block_size) -> bool: before a step that decodes, does a sequence of `length` tokens need a block?"""
    for block_size in (4, 16, 256):
        manager = BlockManager(8, block_size, enable_prefix_caching=False)
        scheduler = Scheduler(manager, max_num_batched_tokens=2048, max_model_len=2048)
        seq = Sequence(0, [1], SamplingParams(max_tokens=3 * block_size, ignore_eos=True))
        scheduler.add(seq)
        scheduler.update(scheduler.schedule(), [7])
        while not seq.is_finished:
            told, before, length = needs_block(len(seq), block_size), len(seq.block_table), len(seq)
            batch = scheduler.schedule()
            took = len(seq.block_table) > before
            hint = f"blocks of {block_size}, {length} tokens, of which {length - 1} are in the cache: "
            hint += (f"the step stores token {length - 1}, counted from 0, which begins a new block; you say none is needed."
                     if took else f"there is room for token {length - 1} in the last block; you ask for one that stays empty.")
            require(bool(told) == took, hint)
            scheduler.update(batch, [7])
    return "three block sizes, every length up to three blocks: a block is asked for exactly when the real scheduler takes one."

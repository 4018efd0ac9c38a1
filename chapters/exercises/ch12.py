"""Chapter 12: host and device in time, a stop string across token boundaries, and a loop that survives a fault."""

import random
from unittest import mock

from nanovllm import LLM, SamplingParams
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.serving import request
from nanovllm.serving.detokenizer import IncrementalDetokenizer
from nanovllm.serving.stop_strings import StopStrings

from .made_up_device import Device, Fault, made_up_token
from .verdict import check, require


class MadeUpClock:
    """In front of a model runner that really runs, a clock that says how long it would take with round numbers.

    prepare: milliseconds of the host for a step before the device may begin. device: of the device. finish: of the host
    once the tokens are there. spans: (lane, step, start, end), as `viz.plot_overlap` takes them. batches: of each step the
    seq_ids of the rows that the device computed.
    """

    def __init__(self, runner, prepare: float = 3.0, device: float = 8.0, finish: float = 1.0):
        self._runner, self._costs = runner, (prepare, device, finish)
        self._now = self._device_free = 0.0
        self.spans: list[tuple[str, int, float, float]] = []
        self.batches: list[list[int]] = []

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def launch(self, batch: ScheduledBatch):
        step = len(self.batches)
        self._host(step, self._costs[0])
        start = max(self._now, self._device_free)
        self._device_free = start + self._costs[1]
        self.spans.append(("device", step, start, self._device_free))
        self.batches.append([item.seq.seq_id for item in batch.items])
        return step, self._device_free, self._runner.launch(batch)

    def collect(self, launched) -> list[int]:
        step, done, inner = launched
        self._now = max(self._now, done)
        self._host(step, self._costs[2])
        return self._runner.collect(inner)

    def _host(self, step: int, milliseconds: float) -> None:
        self.spans.append(("host", step, self._now, self._now + milliseconds))
        self._now += milliseconds


@check("host and device in time")
def check_total_ms(total_ms):
    """total_ms(num_steps, host, device, looks_ahead) -> milliseconds until the last step is done."""
    for steps, host, device in ((1, 3, 8), (4, 3, 8), (10, 3, 8), (10, 8, 3), (5, 4, 4), (100, 1, 30)):
        for ahead in (False, True):
            right = host + device + (steps - 1) * (max(host, device) if ahead else host + device)
            got = total_ms(steps, host, device, ahead)
            hint = f"num_steps={steps}, host {host} ms, device {device} ms, looks_ahead={ahead}: {right} ms, not {got}."
            if ahead and got == steps * max(host, device):
                hint += " While the host prepares the first step the device has nothing to do."
            elif ahead and got == host + steps * device:
                hint += " Which of the two is the slower?"
            elif ahead and got == steps * (host + device):
                hint += " While the device runs a step, the host prepares the next."
            elif not ahead and got == host + steps * device:
                hint += " In turn means that the host prepares every step while the device waits."
            require(abs(got - right) < 1e-9, hint)
    return "12 runs, host or device the slower, in turn and ahead"


def _held(text: str, stops) -> int:
    """How many characters at the end of `text` might begin a stop string."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


CUTS = (  # stop strings, pieces
    (["###"], ["one#", "##", "two"]),                   # over a boundary, with text before it in the same piece
    (["stop"], ["a st", "op b"]),
    (["stop"], ["a st", "ill", " here"]),               # a beginning that came to nothing
    (["aab"], ["aa", "ab"]),                            # the beginning begins again inside itself
    (["\n\n", "."], ["end", ".", "\n"]),
    (["ab", "b"], ["xa", "b"]),                         # complete together: the longer
    (["bcd", "c"], ["ab", "c", "d"]),                   # c is complete first, though bcd begins before it
    (["END"], ["the E", "N"]),                          # over before it is complete
)


def _check_found(mine, stops, pieces, where) -> None:
    """That the reader's object finds what is there, when it is there."""
    ours, given = StopStrings(tuple(stops)), ""
    for i, piece in enumerate(pieces):
        out = mine.push(piece)
        ours.push(piece)
        given += piece
        at = f"{where}: after piece {i} the text is {given!r}"
        require(isinstance(out, str), f"{at}: push should return a text, not {out!r}.")
        if not ours.found:
            require(not mine.found, f"{at}: found is {mine.found!r}, which is not in it.")
            continue
        begun = " It began in an earlier piece; keep what might be a beginning." if ours.found not in piece else ""
        require(mine.found, f"{at}: {ours.found!r} is complete, and found is still None.{begun}")
        require(mine.found == ours.found, f"{at}: {ours.found!r} is complete first, and longest of those complete together; "
                                          f"found is {mine.found!r}.")
        return


@check("a stop string across a token boundary")
def check_stop(MyStop):
    """MyStop(stops) with push(piece) -> text that may go out, flush() -> the rest, found: the stop string or None."""
    cases = [*CUTS]
    for game in range(300):
        draw = random.Random(game)
        stops = ["".join(draw.choices("ab.", k=draw.randrange(1, 5))) for _ in range(draw.randrange(1, 4))]
        cases.append((stops, ["".join(draw.choices("ab.", k=draw.randrange(1, 4))) for _ in range(8)]))
    for stops, pieces in cases:
        where = f"stop strings {stops}, pieces {pieces}"
        _check_found(MyStop(list(stops)), stops, pieces, where)
        mine, ours, given = MyStop(list(stops)), StopStrings(tuple(stops)), ""
        for i, piece in enumerate(pieces):
            out, right = mine.push(piece), ours.push(piece)
            given += piece
            hint = f"{where}: after piece {i}, {piece!r}, {right!r} may go out, and {out!r} did."
            if ours.found:
                hint += " What stands before the stop string is still the reader's, and nothing else."
            elif len(str(out)) > len(right):
                hint += (f" {given[len(given) - _held(given, stops):]!r} may yet become a stop string, and what was shown "
                         "cannot be taken back.")
            else:
                hint += f" Only the last {_held(given, stops)} characters can begin a stop string; the rest need not wait."
            require(out == right, hint)
            if ours.found:
                break
        else:
            right, out = ours.flush(), mine.flush()
            require(out == right, f"{where}: the text is over, no stop string came, and flush() should let {right!r} go, "
                                  f"not {out!r}.")
    return f"{len(CUTS)} cuts made to hurt, and 300 random ones"


def serve_with(stop_class, llm: LLM, prompts) -> str:
    """Stream `prompts` with the reader's class where the engine has StopStrings; the texts must be the same."""

    class Adapted:
        def __init__(self, stops, include=False):
            self._reader = stop_class(list(stops))

        found = property(lambda self: self._reader.found)

        def push(self, piece, search=True):
            return self._reader.push(piece)

        def flush(self):
            return self._reader.flush()

    params = SamplingParams(temperature=0, max_tokens=60, stop=["d t", ". ", "ed a", "\n"])
    texts = []
    for cls in (StopStrings, Adapted):
        with mock.patch.object(request, "StopStrings", cls):
            shown = [""] * len(prompts)
            for index, piece in llm.stream(prompts, params):
                shown[index] += piece
        texts.append(shown)
    if texts[0] != texts[1]:
        raise RuntimeError(f"with your class the readers saw {texts[1]}, with the finished one {texts[0]}")
    return f"{len(prompts)} chats streamed with your class, the same texts: {[text[-24:] for text in texts[0]]}"


def _requests() -> list[Sequence]:
    draw = random.Random(4)
    return [Sequence(i, [draw.randrange(1000) for _ in range(draw.randrange(1, 9))],
                     SamplingParams(max_tokens=draw.randrange(3, 9), ignore_eos=True)) for i in range(4)]


def _alone(seq: Sequence) -> list[int]:
    tokens = list(seq.prompt_token_ids)
    for _ in range(seq.sampling_params.max_tokens):
        tokens.append(made_up_token(tokens))
    return tokens[seq.num_prompt_tokens:]


@check("a loop that survives")
def check_loop(MyLoop):
    """MyLoop(scheduler, runner) with step(): looks one step ahead; after an exception in a step, all goes on as before."""
    plans = [(), *([f"{what} {n}"] for n in range(5) for what in ("launch", "collect")), ("launch 2", "collect 2", "launch 5")]
    for faults in plans:
        scheduler = Scheduler(BlockManager(24, 4), max_num_seqs=8, max_num_batched_tokens=16)
        device = Device(4, faults)
        loop, seqs, seen, ended = MyLoop(scheduler, device), _requests(), [], []
        where = f"a fault in {' and '.join(faults)}" if faults else "no fault"
        for seq in seqs:
            scheduler.add(seq)
        for _ in range(60):
            if not scheduler.has_unfinished:
                break
            try:
                ended += loop.step()
            except Fault as fault:
                seen.append(str(fault))
            except LookupError as error:
                require(False, f"{where}: {error}.")
            scheduler.check_integrity()
        require(sorted(seen) == sorted(faults), f"{where}: the caller of step saw {seen or 'no exception'}. Whoever called "
                                                "must learn of it: raise again when you have cleaned up.")
        require(not scheduler.has_unfinished, f"{where}: after 60 calls of step {scheduler!r}; nothing moves any more.")
        for seq in seqs:
            right = _alone(seq)
            count = next((i for i, pair in enumerate(zip(seq.output_token_ids, right)) if pair[0] != pair[1]), None)
            require(seq.output_token_ids == right, f"{where}: sequence {seq.seq_id} should get {right} and got "
                    f"{seq.output_token_ids}" + (f"; token {count} is the first that is wrong" if count is not None else "")
                    + (". What the steps in flight had counted as computed was not taken back." if faults else "."))
        require(sorted(s.seq_id for s in ended) == [s.seq_id for s in seqs], f"{where}: step told of "
                f"{sorted(s.seq_id for s in ended)} as finished; each of {[s.seq_id for s in seqs]} ends once.")
        require(faults or device.told[:3] == ["launch", "launch", "collect"], "the device was told "
                f"{', '.join(device.told[:4])}, ...: it waits while the host thinks. Launch the next step before you collect.")
    return f"{len(plans)} runs, a fault in each launch and collect, the same tokens as without"


def check_same_as_engine(in_turn, ahead) -> str:
    """The chapter's two loops beside `LLMEngine.step`, on the same requests. Raises when tokens or step counts differ."""
    draw = random.Random(0)
    work = [([draw.randrange(300) for _ in range(draw.randrange(1, 40))], draw.randrange(1, 14)) for _ in range(12)]
    counts = []
    for loop_class, looks_ahead in ((in_turn, False), (ahead, True)):
        results = []
        for theirs in (False, True):
            with LLM(device="cpu", kvcache_block_size=4, num_kvcache_blocks=80, max_num_batched_tokens=32,
                     async_scheduling=looks_ahead) as llm:
                step = llm.engine.step if theirs else loop_class(llm.engine.scheduler, llm.engine.model_runner).step
                seqs = [llm.engine.add_request(prompt, SamplingParams(temperature=1, seed=i, max_tokens=n, ignore_eos=True))
                        for i, (prompt, n) in enumerate(work)]
                steps = 0
                while llm.engine.has_unfinished:
                    step()
                    llm.engine.check_integrity()
                    steps += 1
                results.append(([seq.output_token_ids for seq in seqs], steps))
        if results[0] != results[1]:
            raise ValueError(f"looks_ahead={looks_ahead}: {results[0]} here, {results[1]} in LLMEngine")
        counts.append(steps)
    return f"{len(work)} requests in {counts[0]} steps in turn and {counts[1]} ahead: the same tokens as LLMEngine"


def check_same_as_detokenizer(text_class, tokenizer) -> str:
    """The chapter's text beside the package's, a token at a time. Raises when the text differs or a character is split."""
    texts = ("The fox said: hello!", "naïve café, déjà vu", "狐狸和灯笼", "🦊🏮 a fox, a lantern 🎈", "tabs\tand\n\nlines ",
             "ß→∞≈")
    count = 0
    for text in texts:
        mine, theirs = text_class(), IncrementalDetokenizer(tokenizer)
        for token in tokenizer.encode(text):
            a, b = mine.push(token), theirs.push([token])
            if a != b or "\ufffd" in a:
                raise ValueError(f"{text!r}, token {token}: {a!r} here, {b!r} in IncrementalDetokenizer")
            count += 1
        if theirs.text != text:
            raise ValueError(f"{text!r} came back as {theirs.text!r}")
    return f"{len(texts)} texts, {count} tokens: the same pieces, and no character split"

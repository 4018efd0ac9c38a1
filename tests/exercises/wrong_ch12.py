"""Plausible wrong answers to chapter 12: name of the check -> answers that must fail it, each with a hint of its own."""

from chapters.exercises.solutions.ch12 import MyLoop, MyStop


def never_ahead(num_steps, host, device, looks_ahead):
    return num_steps * (host + device)


def no_first_and_no_last(num_steps, host, device, looks_ahead):
    return num_steps * (max(host, device) if looks_ahead else host + device)


def the_device_is_the_slower(num_steps, host, device, looks_ahead):
    return host + num_steps * device if looks_ahead else num_steps * (host + device)


def always_ahead(num_steps, host, device, looks_ahead):
    return host + num_steps * device


class LooksAtPieces(MyStop):
    def push(self, piece):
        for stop in self.stops:
            if stop in piece:
                self.found = stop
                return piece[:piece.index(stop)]
        return piece


class ShowsTheBeginning(MyStop):
    def push(self, piece):
        before = self.held
        self.held += piece
        for stop in self.stops:
            if stop in self.held:
                self.found = stop
                return self.held[len(before):self.held.index(stop)]
        return piece


class HoldsTooMuch(MyStop):
    def push(self, piece):
        out = super().push(piece)
        if self.found:
            return out
        text = out + self.held
        keep = min(max(map(len, self.stops)) - 1, len(text))
        self.held = text[len(text) - keep:]
        return text[:len(text) - keep]


class NeverFlushes(MyStop):
    def flush(self):
        return ""


class TakesTheFirstInTheList(MyStop):
    def push(self, piece):
        text = self.held + piece
        for stop in self.stops:
            if stop in text:
                self.found = stop
                return text[:text.index(stop)]
        return super().push(piece)


class TakesNothingBack(MyLoop):
    def clean_up(self):
        pass


class ForgetsWithoutUndoing(MyLoop):
    def clean_up(self):
        self.in_flight.clear()
        self.runner.reset()


class SaysNothing(MyLoop):
    def step(self):
        try:
            return self.risky_step()
        except Exception:
            self.clean_up()
            return []


class InTurn(MyLoop):
    def step(self):
        batch = self.scheduler.schedule()
        return self.scheduler.update(batch, self.runner.collect(self.runner.launch(batch)))


WRONG = {
    "check_total_ms": (never_ahead, no_first_and_no_last, the_device_is_the_slower, always_ahead),
    "check_stop": (LooksAtPieces, ShowsTheBeginning, HoldsTooMuch, NeverFlushes, TakesTheFirstInTheList),
    "check_loop": (TakesNothingBack, ForgetsWithoutUndoing, SaysNothing, InTurn),
}

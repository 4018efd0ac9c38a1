"""Solutions of chapter 12."""

from collections import deque


def total_ms(num_steps, host, device, looks_ahead):
    pace = max(host, device) if looks_ahead else host + device
    return host + device + (num_steps - 1) * pace


class MyStop:
    def __init__(self, stops):
        self.stops, self.held, self.found = stops, "", None

    def push(self, piece):
        text, old = self.held + piece, len(self.held)
        matches = []
        for stop in self.stops:
            start = text.find(stop, max(0, old + 1 - len(stop)))
            if start >= 0:
                matches.append((start + len(stop), start, stop))
        if matches:
            _, start, self.found = min(matches)
            self.held = ""
            return text[:start]
        keep = max((n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self.held = text[len(text) - keep:]
        return text[:len(text) - keep]

    def flush(self):
        held, self.held = self.held, ""
        return held


class MyLoop:
    def __init__(self, scheduler, runner):
        self.scheduler, self.runner = scheduler, runner
        self.in_flight = deque()

    def step(self):
        try:
            return self.risky_step()
        except BaseException:
            self.clean_up()
            raise

    def risky_step(self):
        while len(self.in_flight) < 2:
            for batch, _ in self.in_flight:
                self.scheduler.advance(batch)
            batch = self.scheduler.schedule()
            if not batch.items:
                break
            self.in_flight.append((batch, self.runner.launch(batch)))
        if not self.in_flight:
            return []
        batch, launched = self.in_flight[0]
        token_ids = self.runner.collect(launched)
        self.in_flight.popleft()
        return self.scheduler.update(batch, token_ids)

    def clean_up(self):
        for batch, _ in reversed(self.in_flight):
            if batch.is_advanced:
                self.scheduler.roll_back(batch)
        self.in_flight.clear()
        self.runner.reset()

"""A step in flight: what the device still does, and what it brings."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nanovllm.engine.logprobs import LogprobReport
from nanovllm.engine.scheduled_batch import ScheduledBatch


class Drawn(NamedTuple):
    """What a step draws. token_ids: [num_rows] int64, on the device. reports: log-probabilities that sequences asked for.

    rows: where each token of the batch stands among them, in the batch's order; None when they stand in it.
    """

    token_ids: Tensor
    reports: list[LogprobReport]
    rows: np.ndarray | None = None


class Launched:
    """A step in flight. Its results are on their way to the host from the moment they exist, behind nothing later.

    batch: what runs. draw: enqueues the draws, behind the forward pass, which is enqueued already.
    """

    def __init__(self, batch: ScheduledBatch, draw: Callable[[], Drawn]):
        self.batch = batch
        self._draw: Callable[[], Drawn] | None = draw
        self._drawn: Drawn | None = None
        self._arrived: torch.cuda.Event | None = None

    def draw(self) -> None:
        """Enqueue the draws and the way to the host, once."""
        if self._draw is None:
            raise RuntimeError("a step is to draw twice; this is a bug in the engine.")
        draw, self._draw = self._draw, None
        on_device, reports, rows = draw()
        token_ids = on_device.to("cpu", non_blocking=True, copy=True) if on_device.is_cuda else on_device.clone()
        self._drawn = Drawn(token_ids, reports, rows)
        for report in reports:
            report.fetch()
        if on_device.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def wait(self) -> list[int]:
        """The tokens drawn, once they are here; the reports are delivered."""
        token_ids, reports, rows = self.arrived()
        for report in reports:
            report.deliver()
        tokens: list[int] = (token_ids if rows is None else token_ids.numpy()[rows]).tolist()
        return tokens

    def arrived(self) -> Drawn:
        """What it drew, on the host, once it is here."""
        if self._drawn is None:
            raise RuntimeError("a step was collected before it could draw; this is a bug in the engine.")
        if self._arrived:
            self._arrived.synchronize()
        return self._drawn

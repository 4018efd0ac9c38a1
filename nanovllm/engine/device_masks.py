"""The masks of a step on the device: copied there while the forward pass runs, whose logits they are for."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.token_bitmasks import bitmasks_of
from nanovllm.engine.token_matcher import TokenBitmasks


@dataclass(slots=True)
class DeviceMasks:
    """What some draws of a step may draw.

    draws: [num_masked] int64, on the host: which draws, in rising order. bits: [num_masked, ceil(vocab_size / 32)] int32, on
    the device.
    """

    draws: np.ndarray
    bits: Tensor

    def among(self, draws: list[int]) -> "DeviceMasks | None":
        """Of these draws only, and numbered within them; None when none is masked. draws: in rising order."""
        chosen = self._where(np.isin(self.draws, draws))
        return chosen and DeviceMasks(np.searchsorted(np.array(draws, np.int64), chosen.draws), chosen.bits)

    def besides(self, draws: list[int]) -> "DeviceMasks | None":
        """Of all other draws; None when none is masked."""
        return self._where(~np.isin(self.draws, draws)) if draws else self

    def _where(self, wanted: np.ndarray) -> "DeviceMasks | None":
        if wanted.all():
            return self
        if not wanted.any():
            return None
        rows = torch.from_numpy(np.flatnonzero(wanted)).to(self.bits.device, non_blocking=True)
        return DeviceMasks(self.draws[wanted], self.bits[rows])


class MaskMaker:
    """Makes the masks of steps and sends them to the device.

    Owns a stream of its own for the copies, which so need not wait for the forward pass. Whoever uses the masks is on the
    current stream, which waits for them.
    """

    def __init__(self, device: torch.device, vocab_size: int, eos_token_ids: tuple[int, ...]):
        self._device, self._vocab_size, self._eos_token_ids = device, vocab_size, eos_token_ids
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def masks_of(self, batch: ScheduledBatch) -> DeviceMasks | None:
        """None when no row is masked. Asked for once the device has the forward pass to do; see `bitmasks_of`."""
        host: list[Tensor] = []

        def pinned(shape: tuple[int, ...]) -> np.ndarray:
            host.append(torch.empty(shape, dtype=torch.int32, device="cpu", pin_memory=self._stream is not None))
            return host[0].numpy()

        masks: TokenBitmasks | None = batch.bitmasks or bitmasks_of(batch, self._vocab_size, self._eos_token_ids, pinned)
        if masks is None:
            return None
        bits = host[0] if host else torch.from_numpy(masks.bits)  # from another process
        if self._stream is None:
            return DeviceMasks(masks.rows, bits.to(self._device))
        with torch.cuda.stream(self._stream):
            copied = bits.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        copied.record_stream(current)  # the allocator must not give it away before that stream is done with it
        return DeviceMasks(masks.rows, copied)

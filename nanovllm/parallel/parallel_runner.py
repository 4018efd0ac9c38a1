"""A ModelRunner whose ranks are other processes."""

import logging
from copy import copy
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from nanovllm.config import Config
from nanovllm.engine.scheduled_batch import ScheduledBatch
from nanovllm.engine.sequence import Sequence
from nanovllm.engine.token_bitmasks import bitmasks_of
from nanovllm.engine.token_matcher import TokenBitmasks
from nanovllm.layers.attention_backends import TorchBackend
from nanovllm.layers.tensor_parallel import TensorParallel
from nanovllm.models.registry import model_class
from nanovllm.parallel.step_message import StepWriter
from nanovllm.parallel.worker_group import START_TIMEOUT, WorkerGroup
from nanovllm.utils.interrupts import uninterrupted

logger = logging.getLogger("nanovllm")


@dataclass(slots=True)
class LaunchedStep:
    """A step that the workers were told to run. sequences: those that its log-probabilities go to, by seq_id."""

    step: int
    batch: ScheduledBatch
    sequences: dict[int, Sequence]


class ParallelRunner:
    """Runs batches on a model split over `config.tensor_parallel_size` processes (Megatron-LM, Shoeybi et al. 2019).

    Stands where ModelRunner stands and answers to the same calls; each worker has a ModelRunner of its own, with its share
    of the weights and of the KV cache's heads. A step costs one message, the same to every rank: it says what to run, and
    which step's tokens to report after that. All ranks see the same logits and the same seeds, so all draw the same tokens,
    and a rank can take up a token that the caller has not seen.

    Owns the workers. When one of them dies or hangs they are ended, and every call from then on says so.
    """

    def __init__(self, config: Config):
        self.size = config.tensor_parallel_size
        # What cannot be divided is refused here, by the layers themselves, before any process is started.
        hf = config.hf_config
        model_class(hf.architectures)(hf, TorchBackend(), TensorParallel(0, self.size), device="meta")
        self.device, self.dtype, self.block_size = config.device, config.dtype, config.kvcache_block_size
        self._looks_ahead = config.async_scheduling
        self._vocab_size, self._eos_token_ids = hf.vocab_size, config.eos_token_ids
        self._writer = StepWriter()
        self._step = 0  # the last one launched; they are counted from 1
        self._unreported: set[int] = set()  # steps in flight whose tokens were not asked for yet
        self.workers = WorkerGroup(self.size, config.worker_timeout)
        try:
            own = copy(config)  # as plain values: a worker has no use for transformers, which takes seconds to import
            own.hf_config = SimpleNamespace(**vars(config.hf_config))
            self.workers.send("start", 0, {"config": own, "num_threads": max(1, torch.get_num_threads() // self.size)})
            ready = self.workers.replies("ready", 0, max(START_TIMEOUT, config.worker_timeout))
        except BaseException:
            self.workers.close()
            raise
        for answer in ready:
            self.workers.shared_memory |= answer["shared_memory"]
        self.num_blocks, self.bytes_per_block = ready[0]["num_blocks"], ready[0]["bytes_per_block"]
        self.backend_name = ready[0]["backend"]
        why_not = ready[0]["why_no_one_shot_sums"]
        self.sums_in_one_shot = not why_not
        if why_not and self.device.type == "cuda":
            logger.warning("small sums over ranks go through NCCL, too, which takes longer: %s", why_not)

    def __repr__(self) -> str:
        dtype, mebibytes = str(self.dtype).removeprefix("torch."), self.num_blocks * self.bytes_per_block / 2**20
        sums = "one-shot sums, " if self.sums_in_one_shot else ""
        return (f"ParallelRunner({self.size} ranks on {self.device.type}, {dtype}, attention={self.backend_name}, {sums}"
                f"{self.num_blocks} blocks x {self.block_size} tokens, {mebibytes:.0f} MiB per rank)")

    @property
    def failure(self) -> str | None:
        """Why nothing can run any more; None while all is well."""
        return self.workers.failure or (self.workers.exited() if self.workers.are_alive else None)

    def close(self) -> None:
        """End the workers; their memory goes with them. Returns within seconds, whatever state they are in."""
        self.workers.close()

    def run(self, batch: ScheduledBatch) -> list[int]:
        """One step, start to end: the token drawn for each item that samples, in the batch's order."""
        return self.collect(self.launch(batch))

    def launch(self, batch: ScheduledBatch) -> LaunchedStep:
        """Tell every rank to run a step, and return at once. Masks go with it, so the ranks wait until they are made.

        But for those that have to wait themselves: `draw` sends them after it, and the ranks run the forward pass meanwhile.
        """
        if not batch.masks_wait:
            batch.bitmasks = self._bitmasks(batch)
        with uninterrupted():  # the ranks must get what the writer takes them to know
            self._step += 1
            # With async scheduling the caller then collects the step before this one, otherwise this one.
            wanted = self._step - 1 if self._looks_ahead else self._step
            self._unreported.add(self._step)
            report = wanted if wanted in self._unreported else None
            self.workers.send("step", self._step, (self._writer.write(batch), report))
            self._unreported.discard(report)
        return LaunchedStep(self._step, batch, {item.seq.seq_id: item.seq for item in batch.items})

    def draw(self, launched: LaunchedStep) -> None:
        """Send every rank the masks that a step waits for."""
        self.workers.send("draw", launched.step, self._bitmasks(launched.batch))

    def _bitmasks(self, batch: ScheduledBatch) -> TokenBitmasks | None:
        return bitmasks_of(batch, self._vocab_size, self._eos_token_ids)

    def collect(self, launched: LaunchedStep) -> list[int]:
        """Wait for a step; its log-probabilities go to the sequences that asked for them."""
        if launched.step in self._unreported:  # the last of several, after which nothing was launched
            self.workers.send("collect", launched.step)
            self._unreported.remove(launched.step)
        token_ids: list[int]
        (token_ids, logprobs), *others = self.workers.replies("tokens", launched.step)
        if any(theirs != token_ids for theirs, _ in others):
            self.workers.fail("ranks drew different tokens, which is a bug in the engine", launched.step)
        for seq_id, entries in logprobs.items():
            launched.sequences[seq_id].note_logprobs(entries)
        return token_ids

    def reset(self) -> None:
        """Forget the tokens last drawn, after a step that failed: sequences that run next bring their own."""
        self._unreported.clear()
        if self.workers.are_alive:
            self.workers.send("reset", self._step)

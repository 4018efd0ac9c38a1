"""BatchMonitor: a running engine, watched live."""

import time
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanovllm.utils.checks import check
from nanovllm.utils.counted import counted
from visualizations import theme
from visualizations.explorers.base import Explorer
from visualizations.explorers.batch_watch import KEPT, BatchWatch

PACK_SHARE = 0.003  # of the time that may go into packing the whole for browsers that come late
PACK_SECONDS = 1.0  # between two of these at least
BRIEF = 0.05        # seconds: over less a rate says little
NEWEST = 40         # characters of a text in the still picture


class BatchMonitor(Explorer):
    """Tokens per second, the cache, the queues, and every sequence with its text as it streams, while the engine runs.

        monitor = BatchMonitor(llm)     # an LLM, an LLMEngine or an AsyncLLM
        monitor                         # shown in one cell; then generate, stream or chat in the next ones

    It looks at the engine between steps, ten times a second at most, and only its newest look travels. What was seen can
    be scrubbed at any time. Nothing of the engine is kept alive; `close()` stops looking. Show it again after a run to
    leave the run's picture in the notebook. Raises ValueError for something that is no engine.
    """

    module = "monitor.js"

    def __init__(self, llm: Any, *, label: str = "The engine, live") -> None:
        llm = getattr(llm, "llm", llm)
        engine = getattr(llm, "engine", llm)
        check(hasattr(engine, "attach"), "llm", llm, "an LLM, LLMEngine or AsyncLLM", "pass the engine that runs")
        self._meta = {"num_blocks": engine.block_manager.num_blocks, "block_size": engine.block_manager.block_size,
                      "budget": engine.config.max_num_batched_tokens, "max_num_seqs": engine.config.max_num_seqs,
                      "model": engine.config.model.name}
        self._next_pack = 0.0
        self.watch = BatchWatch(engine, getattr(llm, "tokenizer", None), self._tell)
        super().__init__(self._data(), label=label)
        self.watch.open()

    def _data(self) -> dict[str, Any]:
        watch = self.watch
        return {"meta": self._meta, "kept": KEPT, "told": watch.num_frames, "frames": watch.frames, "texts": watch.texts}

    def _tell(self, told: int, frames: list[dict[str, Any]], texts: dict[int, str]) -> None:
        """Send the newest look; the whole, too, when packing it costs little of the time since it was last packed.

        And when the engine has come to rest: a notebook that is saved then, and opened without a kernel, has only that.
        """
        self.send({"told": told, "frames": frames, "texts": texts})
        rests = not (frames[-1]["running"] or frames[-1]["waiting"])
        if (now := time.perf_counter()) >= self._next_pack or rests:
            self.refresh()
            took = time.perf_counter() - now
            self._next_pack = now + max(PACK_SECONDS, took / PACK_SHARE)

    def refresh(self) -> None:
        """Pack all that was seen."""
        with self.watch.lock:
            self.show(self._data())

    def act(self, message: dict[str, Any]) -> None:
        check(message.get("do") == "refresh", "request", message.get("do"), "refresh", "it can only be looked at")
        self.refresh()

    def close(self) -> None:
        """Stop looking. What was seen stays."""
        if hasattr(self, "watch"):
            self.watch.close()
        super().close()

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        self.watch.look()
        self.refresh()
        self.step = max(0, len(self.watch.frames) - 1)  # a view that opens now begins at the newest, and so follows
        return super()._repr_mimebundle_(**kwargs)

    def summary(self) -> str:
        frames = self.watch.frames
        if not frames:
            return f"{self.label}: nothing has run yet. Run this cell in JupyterLab, and generate in another."
        last = frames[-1]
        return (f"{self.label}: {counted(last['steps'], 'step')}, {counted(last['prompt'], 'prompt token')} and "
                f"{last['decode']} fed back, {counted(last['finished'], 'request')} finished. Run this cell in JupyterLab to "
                "watch a run.")

    def figure(self) -> Figure:
        """Tokens per second over the whole run, and where each of the sequences followed last stood at its end."""
        frames = self.watch.frames
        rows = frames[-1]["rows"] if frames else []
        height = max(1.2, 0.3 * len(rows))
        fig, ax = theme.canvas(None, 10, height + 3.1)
        ax.remove()
        rates, sequences = fig.subplots(2, 1, height_ratios=[1.5, height])
        for ax in (rates, sequences):
            theme.canvas(ax, 0, 0)
        self._draw_rates(rates, frames)
        self._draw_rows(sequences, rows)
        theme.title(rates, self.label, "Tokens per second, averaged from one look to the next (ten per second at most): of "
                    "prompts (dark), fed back (light). Below, the last sequences.")
        return fig

    def _draw_rates(self, ax: Axes, frames: list[dict[str, Any]]) -> None:
        m = theme.mode()
        frames = [f for i, f in enumerate(frames) if i in (0, len(frames) - 1) or f["time"] - frames[i - 1]["time"] > BRIEF]
        edges = np.array([f["time"] for f in frames])
        if len(edges) > 1:
            seconds = np.maximum(np.diff(edges), 1e-6)
            decode, prompt = (np.diff([f[name] for f in frames]) / seconds for name in ("decode", "prompt"))
            ax.stairs(decode, edges, fill=True, color=theme.mix(theme.GREY, m.paper, 0.5), label="fed back")
            ax.stairs(decode + prompt, edges, baseline=decode, fill=True, color=theme.GREY, label="prompt")
            ax.set(xlim=(0, edges[-1]), ylim=(0, 1.05 * max((decode + prompt).max(), 1)))
        ax.set(xlabel="seconds", ylabel="tokens/s")

    def _draw_rows(self, ax: Axes, rows: list[list[Any]]) -> None:
        m = theme.mode()
        for y, (seq_id, prompt, most, tokens, cached, *_) in enumerate(rows):
            ax.barh(y, prompt + most, 0.66, color=m.free)
            ax.barh(y, min(cached, prompt), 0.66, color=theme.prompt_colour(seq_id))
            ax.barh(y, max(0, tokens - prompt), 0.66, prompt, color=theme.decode_colour(seq_id))
            text = self.watch.texts.get(seq_id, "").replace("\n", "⏎")
            ax.text(prompt + most, y, "  " + (text if len(text) <= NEWEST else "…" + text[-NEWEST:]), va="center", fontsize=8.5,
                    color=m.ink, parse_math=False)
        ax.set_yticks(range(len(rows)), [f"sequence {row[0]}" for row in rows])
        longest = max((row[1] + row[2] for row in rows), default=1)
        ax.set(xlabel="tokens: prompt (dark), generated (light), still allowed (grey)", xlim=(0, longest * 1.75),
               ylim=(max(len(rows), 1) - 0.4, -0.6))

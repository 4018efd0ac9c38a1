"""The part that explorers of a run share: where its steps come from, and driving it while it is alive."""

import time
from typing import Any

from nanovllm.utils.checks import check
from visualizations.explorers.base import Explorer
from visualizations.explorers.sources import LiveEngine, Recording, frames_of, source_of

RUN_SECONDS = 0.5  # of stepping between two answers to the browser, which can so show progress and stop


class RunExplorer(Explorer):
    """An explorer of steps: those of a recording, or of something alive that the browser may drive (live.js).

    Owns the source and says what the browser asks of it. What is packed besides the steps, and the still, are the
    subclass's. source: the live thing or recording as an object, to be looked at from other cells.
    """

    eviction = False  # whether the order in which blocks will be reused is packed, too

    def __init__(self, source: Any, *, label: str, step: int = 0, follow: bool = False) -> None:
        self.source = source_of(source)
        self._turn = 0
        super().__init__(self._data(), label=label, step=step, follow=follow)

    def _data(self) -> dict[str, Any]:
        source = self.source
        data = {"meta": source.trace.meta, "records": frames_of(source, self.eviction)}
        if not isinstance(source, Recording):
            data["live"] = {"kind": source.kind, "turn": self._turn, "unfinished": source.has_unfinished,
                            "settings": source.settings,
                            "alive": [s.seq_id for s in (*source.scheduler.running, *source.scheduler.waiting)]}
        return data

    def refresh(self) -> None:
        """Show what happened to the source elsewhere, in another cell."""
        self._turn += 1
        self.show(self._data())

    def act(self, message: dict[str, Any]) -> None:
        source, do = self.source, message.get("do")
        check(do in ("step", "run", "add", "abort", "rewind", "set") and not isinstance(source, Recording), "request", do,
              "something a source can do", "use the controls")
        if do == "step":
            source.step()
        elif do == "run":
            deadline = time.monotonic() + RUN_SECONDS
            while source.has_unfinished and time.monotonic() < deadline:
                source.step()
        elif do == "add":
            source.add(message["prompt"], message["max_tokens"])
        elif do == "abort":
            source.abort(message["seq_id"])
        elif do == "rewind":
            source.rewind(message["step"])
        else:
            source.set(**{message["name"]: message["value"]})
        self.refresh()

    def close(self) -> None:
        """Let go of a live engine, too."""
        if isinstance(getattr(self, "source", None), LiveEngine):  # ipywidgets also closes what was only half made
            self.source.close()
        super().close()

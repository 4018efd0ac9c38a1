"""Run in a chapter's kernel after its last cell: every explorer on the page still answers, whatever the cells below it did.

What the browser does with an explorer needs no kernel (tests/browser/test_book.py drives each from what the chapter saved).
Here are the questions that a browser sends to Python, answered by the objects that the chapter's own cells left behind.
"""

import json
import sys
from typing import Any


def answer_to(explorer: Any, message: dict[str, Any]) -> dict[str, Any]:
    """What the browser would be sent back."""
    answers: list[dict[str, Any]] = []
    explorer.send = answers.append
    try:
        explorer._receive(explorer, {**message, "id": "test"}, [])
    finally:
        del explorer.send
    return next(answer for answer in answers if answer.get("reply_to") == "test")


def drive(explorer: Any) -> str:
    """Ask an explorer what its view can ask; returns what is wrong, or nothing."""
    live = getattr(explorer, "source", None)
    if live is not None and hasattr(live, "add"):  # a simulation or an engine: give it something to do, and let it take a step
        before = explorer.payload
        for message in ({"do": "add", "prompt": 6, "max_tokens": 2}, {"do": "step"}):
            if "error" in (answer := answer_to(explorer, message)):
                return f"{message['do']}: {answer['error']}"
        if not live.trace or explorer.payload == before:
            return "a step changed nothing"
    elif hasattr(explorer, "watch"):  # a monitor, which is asked for all that it saw
        if "error" in (answer := answer_to(explorer, {"do": "refresh"})):
            return f"refresh: {answer['error']}"
        if not explorer.watch.frames:
            return "it has seen nothing"
    else:  # drawn from its data alone: it must still have it, and refuse in words what it cannot do
        if "takes no requests" not in (error := answer_to(explorer, {"do": "step"}).get("error", "")) and \
                "something a source can do" not in error:
            return f"a request it does not take: {error or 'taken'}"
        explorer.figure()
    return ""


def drive_all() -> dict[str, str]:
    """{a widget's model id: what is wrong with it} of every explorer that is alive in this kernel."""
    base = sys.modules.get("visualizations.explorers.base")
    if base is None:
        return {}
    from ipywidgets.widgets.widget import _instances

    alive = [(name, widget) for name, widget in list(_instances.items()) if isinstance(widget, base.Explorer)]
    return {name: drive(widget) for name, widget in alive}


def main() -> None:
    print("\n" + json.dumps(drive_all()))

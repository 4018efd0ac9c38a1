"""The ground that every explorer stands on.

An explorer is a Python file and a JavaScript file of the same name: Python packs plain data once, the browser draws every
step from it, so scrubbing needs no kernel. Making one:

    class MyExplorer(Explorer):                     # my.py
        module = "my.js"
        def __init__(self, trace):
            super().__init__({"rows": [...]}, label="What a screen reader calls it")
        def figure(self) -> Figure: ...             # the same data as a still, for places without JavaScript
        def summary(self) -> str: ...               # and in words
        def act(self, message: dict) -> None: ...   # only when the browser may ask Python for something

    import { explorer, h, player } from "./shared.js";   // my.js
    export default explorer((context) => {
      const steps = player(context, { length: context.data.rows.length, onStep: draw });
      context.root.append(steps.node, ...);
      return { draw, resize: (width) => {}, update: (data) => {}, destroy: () => {} };   // each of them optional
    });

There is no build step: `bundle` joins the files that a module imports from "./" into the one module that anywidget takes.
All of them share one scope, so top-level names must differ. "./theme.js" is made here from theme.py; colours are written
down once. `explorer(build)` in shared.js unpacks the data, finds light or dark, watches the width and the theme, and calls
`draw`. What `build` gets:

    context.data      what Python passed; `update(data)` is called when Python passes more (`self.show(data)`)
    context.root      the element to fill; class names are prefixed nvx-
    context.mode      "light" or "dark"; context.colours: THEME[mode]
    context.ask(msg)  send to `act`; a promise of {ok} or {error}, and {error} too when no kernel answers
    context.step      the step shown, shared with Python's `step` (sent there only with follow=True, 10 times a second at most)

`h` puts data-lm-suppress-shortcuts on everything that takes focus: JupyterLab would take its keys otherwise. `standalone_html`
puts explorers into one page that needs no kernel. A notebook that was saved carries each explorer's data, a few kilobytes,
beside its picture (`SAVED`); `reopened` makes an explorer of it again, which is how the book gets them without running a cell.
"""

import base64
import json
import re
import zlib
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from ipywidgets.embed import embed_data
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from visualizations import theme
from visualizations.both_modes import png

HERE = Path(__file__).parent
IMPORT = re.compile(r'^import \{[^}]*\} from "\./([\w.]+)";\n', re.MULTILINE)
FALLBACK_DPI = 80
SAVED = "application/vnd.nanovllm.explorer+json"  # in a notebook's output; whoever does not know it shows the picture


def pack(data: Any) -> bytes:
    """Data as zlib-compressed JSON: a run of 200 steps shrinks from hundreds of kilobytes to a few."""
    return zlib.compress(json.dumps(data, separators=(",", ":")).encode(), 6)


def unpack(payload: bytes) -> Any:
    return json.loads(zlib.decompress(payload))


def theme_module() -> str:
    """theme.py as JavaScript, so that figures and explorers cannot drift apart."""
    places = range(len(theme.HUES))
    values = {"prompt": [to_hex(theme.prompt_colour(i)) for i in places],
              "decode": [to_hex(theme.decode_colour(i)) for i in places],
              "onPrompt": [theme.text_on(theme.prompt_colour(i)) for i in places],
              "onDecode": [theme.text_on(theme.decode_colour(i)) for i in places],
              "hatch": [to_hex(theme.mix(theme.prompt_colour(i), "#ffffff", 0.45)) for i in places],
              "rounding": theme.ROUNDING, "thinnest": theme.THINNEST, "light": asdict(theme.LIGHT), "dark": asdict(theme.DARK)}
    return f"export const THEME = {json.dumps(values)};\n"


def bundle(name: str, seen: set[str] | None = None) -> str:
    """The ES module `name` with everything it imports from "./" in front of it, each file once."""
    seen = set() if seen is None else seen
    seen.add(name)
    source = theme_module() if name == "theme.js" else (HERE / name).read_text(encoding="utf-8")
    needed = [other for other in IMPORT.findall(source) if other not in seen]
    return "".join(bundle(other, seen) for other in needed if other not in seen) + IMPORT.sub("", source)


class Explorer(anywidget.AnyWidget):
    """A widget that draws itself in the browser from data that Python packed once.

    Owns the data's way to the browser, the still picture and the words that stand where no JavaScript runs. It never draws
    a step and never holds a live engine: subclasses do what is particular.

    step: the step shown. follow: report it to Python as the reader scrubs, at most ten times a second.
    """

    module: str
    stylesheet: str | None = None  # beside shared.css; None: the module's own, if it has one
    payload = traitlets.Bytes(b"").tag(sync=True)
    label = traitlets.Unicode("").tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)
    follow = traitlets.Bool(False).tag(sync=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "module" in cls.__dict__:
            cls._esm = bundle(cls.module)
            own = HERE / (cls.stylesheet or f"{Path(cls.module).stem}.css")
            shared = (HERE / "shared.css").read_text(encoding="utf-8")
            cls._css = shared + (own.read_text(encoding="utf-8") if own.exists() else "")
        super().__init_subclass__(**kwargs)

    def __init__(self, data: Any, *, label: str, step: int = 0, follow: bool = False) -> None:
        super().__init__(payload=pack(data), label=label, step=step, follow=follow)
        self.on_msg(self._receive)

    def show(self, data: Any) -> None:
        """Replace what the browser draws from."""
        self.payload = pack(data)

    def figure(self) -> Figure:
        """The same data as a still picture."""
        raise NotImplementedError

    def summary(self) -> str:
        """The same data in a few words of plain text."""
        raise NotImplementedError

    def act(self, message: dict[str, Any]) -> None:
        """Do what the browser asked for. Whatever this raises is shown to the reader there."""
        raise ValueError(f"{type(self).__name__} takes no requests.")

    def _receive(self, _: Any, message: dict[str, Any], buffers: Any) -> None:
        """Every question is answered: a browser that hears nothing would tell its reader that no kernel runs."""
        try:
            self.act(message)
        except BaseException as error:
            # Our own refusals say it all; anything else is named, so that it can be looked up or reported.
            name = "" if isinstance(error, (ValueError, RuntimeError)) and str(error) else f"{type(error).__name__}: "
            self.send({"reply_to": message.get("id"), "error": f"{name}{error}".removesuffix(": ")})
            if not isinstance(error, Exception):  # an interrupt goes on to whoever sent it
                raise
        else:
            self.send({"reply_to": message.get("id"), "ok": True})

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget; a picture and a text for places that run no JavaScript (GitHub, a mail, a diff); and its data."""
        data, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        saved = {"module": self.module, "label": self.label, "step": self.step, "payload": _text(self.payload)}
        return data | {"image/png": png(self.figure(), dpi=FALLBACK_DPI), "text/plain": self.summary(), SAVED: saved}, metadata


def reopened(saved: dict[str, Any]) -> Explorer:
    """The explorer that a notebook's output holds under `SAVED`: to be looked at, without the Python that made it."""
    explorer_cls = type("Reopened", (Explorer,), {"module": saved["module"]})
    explorer: Explorer = explorer_cls(unpack(base64.b64decode(saved["payload"])), label=saved["label"], step=saved["step"])
    return explorer


def standalone_html(explorers: list[Explorer], title: str = "nanovllm") -> str:
    """One page with the explorers in order: no kernel, no network, everything inside."""
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            "<style>:root { color-scheme: light dark; } body { margin: 24px auto; padding: 0 16px; max-width: 1400px; "
            "font-family: system-ui, sans-serif; }</style></head>\n"
            f"<body>\n{embedded(explorers)}</body></html>\n")


def embedded(explorers: list[Explorer]) -> str:
    """The part of a page that holds the explorers, one below the other; call it once a page."""
    head, views, tail = page_parts(explorers)
    return head + "".join(views) + tail


def page_parts(explorers: list[Explorer]) -> tuple[str, list[str], str]:
    """What a page needs: a head, one piece where each explorer is to stand, and a tail after them all."""
    # Defaults must stay: the embedding helper would take the module itself for one.
    data = embed_data(explorers, drop_defaults=False)
    views = [json_script("view", view) for view in data["view_specs"]]
    host = (HERE / "host.js").read_text(encoding="utf-8")
    return json_script("state", data["manager_state"]), views, f"<script>{host}</script>\n"


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def json_script(kind: str, value: Any) -> str:
    """A widget "state" or "view" in the form that host.js, nbconvert and myst-nb share."""
    text = json.dumps(value).replace("</", "<\\/")  # a closing tag in the data would end the script
    return f'<script type="application/vnd.jupyter.widget-{kind}+json">{text}</script>\n'

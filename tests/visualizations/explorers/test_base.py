"""What Python sends, and what stands where no JavaScript runs. No browser, no kernel."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from matplotlib.colors import to_hex

from tests.notebooks.canonical import canonical, dumps
from visualizations import theme
from visualizations.explorers import base

SHARED = Path(base.__file__).parent / "shared.js"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class Probe(base.Explorer):
    module = "shared.js"

    def __init__(self):
        super().__init__({"rows": list(range(50))}, label="probe", step=3)

    def figure(self):
        fig = plt.figure(figsize=(2, 1))
        plt.close(fig)
        return fig

    def summary(self):
        return "a probe of 50 rows"

    def act(self, message):
        if message["do"] == "fail":
            raise ValueError("do='fail': must be something else; try again.")
        if message["do"] == "stumble":
            {}["missing"]
        if message["do"] == "stop":
            raise KeyboardInterrupt


def test_data_travels_whole_and_small():
    probe = Probe()
    assert base.unpack(probe.payload) == {"rows": list(range(50))}
    probe.show({"rows": [7] * 100_000})
    assert base.unpack(probe.get_state()["payload"]) == {"rows": [7] * 100_000} and len(probe.payload) < 500


def test_a_picture_and_words_stand_beside_the_widget():
    data, _ = Probe()._repr_mimebundle_()
    assert set(data) == {WIDGET_VIEW, "image/png", "text/plain", base.SAVED} and data["text/plain"] == "a probe of 50 rows"
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")


def test_a_committed_notebook_keeps_the_picture_and_no_widget():
    data, _ = Probe()._repr_mimebundle_()
    output = nbformat.v4.new_output("execute_result", data)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("Probe()", outputs=[output])])
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {"x": {}}}}
    committed = dumps(canonical(notebook))
    assert "widget" not in committed and "image/png" in committed and "a probe of 50 rows" in committed
    [saved] = [o["data"][base.SAVED] for o in json.loads(committed)["cells"][0]["outputs"]]
    again = base.reopened(saved)
    assert (again.payload, again.label, again.step) == (Probe().payload, "probe", 3) and again._esm == Probe()._esm


def test_questions_from_the_browser_are_answered_and_errors_reported():
    probe, sent = Probe(), []
    probe.send = sent.append
    probe._receive(probe, {"id": "a", "do": "go"}, [])
    probe._receive(probe, {"id": "b", "do": "fail"}, [])
    probe._receive(probe, {"id": "c", "do": "stumble"}, [])
    with pytest.raises(KeyboardInterrupt):
        probe._receive(probe, {"id": "d", "do": "stop"}, [])
    assert sent == [{"reply_to": "a", "ok": True},
                    {"reply_to": "b", "error": "do='fail': must be something else; try again."},
                    {"reply_to": "c", "error": "KeyError: 'missing'"}, {"reply_to": "d", "error": "KeyboardInterrupt"}]


def test_a_bundle_is_one_module_with_the_colours_of_the_theme():
    text = base.bundle("shared.js")
    assert "import {" not in text and text.count("export const THEME") == 1
    colours = json.loads(re.search(r"THEME = (.*);\n", text).group(1))
    for i in range(len(theme.HUES)):
        assert colours["prompt"][i] == theme.sequence_colour(i) and colours["decode"][i] == to_hex(theme.decode_colour(i))
    assert colours["dark"]["paper"] == theme.DARK.paper and colours["light"]["ink"] == theme.LIGHT.ink


def test_a_page_holds_everything_and_names_no_other_place():
    page = base.standalone_html([Probe(), Probe()], title="a < b")
    assert "<title>a &lt; b</title>" in page
    assert page.count('type="application/vnd.jupyter.widget-view+json">') == 2
    assert set(re.findall(r"https?://[\w./]+", page)) <= {"http://www.w3.org/2000/svg"}
    assert page.count("</script>") == page.count("<script") == 4


NODE_TEST = """
import assert from "node:assert/strict";
import test from "node:test";
import zlib from "node:zlib";
import * as shared from "./bundle.mjs";

test("inflate takes bytes and views", async () => {
  const packed = zlib.deflateSync(JSON.stringify({ a: [1, 2] }));
  const view = new DataView(packed.buffer, packed.byteOffset, packed.length);
  for (const payload of [new Uint8Array(packed), view]) assert.deepEqual(await shared.inflate(payload), { a: [1, 2] });
});
test("clamp and count", () => {
  assert.deepEqual([-5, 2, 9].map((x) => shared.clamp(x, 0, 3)), [0, 2, 3]);
  assert.deepEqual([0, 1, 2].map((n) => shared.count(n, "block")), ["0 blocks", "1 block", "2 blocks"]);
});
test("throttle calls once, with the last arguments", async () => {
  const seen = [];
  const report = shared.throttle(20, (x) => seen.push(x));
  [1, 2, 3].forEach(report);
  await new Promise((done) => setTimeout(done, 60));
  assert.deepEqual(seen, [3]);
});
test("a sequence keeps its colour", () => {
  const n = shared.THEME.prompt.length;
  assert.equal(shared.promptColour(1), shared.promptColour(1 + n));
  assert.equal(shared.phaseColour(2, "decode"), shared.THEME.decode[2]);
});
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed; the browser tests run the same code")
def test_shared_javascript(tmp_path):
    (tmp_path / "bundle.mjs").write_text(base.bundle("shared.js"), encoding="utf-8")
    (tmp_path / "shared.test.mjs").write_text(NODE_TEST, encoding="utf-8")
    done = subprocess.run(["node", "--test", str(tmp_path)], capture_output=True, text=True, timeout=60, encoding="utf-8")
    assert done.returncode == 0, done.stdout[-3000:]

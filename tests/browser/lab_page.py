"""A notebook in JupyterLab, as a test handles it: open, Run All, look."""

import time
import urllib.parse
from dataclasses import dataclass, field

OPEN_SECONDS = 90
CALM_SECONDS = 0.5  # between two cells the kernel is idle for an instant; only idle for this long is the end

NOTEBOOK = """
const panel = window.jupyterapp && jupyterapp.shell.currentWidget;
const notebook = panel && panel.content && panel.content.model && panel.content.model.cells ? panel : null;
"""
READY = "() => {" + NOTEBOOK + "return notebook && notebook.context.isReady && notebook.content.widgets.length > 0; }"
STATE = (
    "() => {"
    + NOTEBOOK
    + """
if (!notebook) return null;
const session = notebook.sessionContext.session;
const cells = [];
notebook.content.widgets.forEach((widget, place) => {
  const model = widget.model;
  if (model.type !== 'code') return;
  const prompt = widget.inputArea && widget.inputArea.promptNode ? widget.inputArea.promptNode.textContent : '';
  const outputs = model.outputs.toJSON();
  cells.push({
    place, count: model.executionCount, busy: prompt.includes('*'),
    source: model.sharedModel.getSource(),
    must_fail: (model.getMetadata('tags') || []).includes('raises-exception'),
    skipped: (model.getMetadata('tags') || []).includes('skip-execution'),
    errors: outputs.filter(o => o.output_type === 'error').map(o => `${o.ename}: ${o.evalue}`),
    kinds: outputs.flatMap(o => o.data ? Object.keys(o.data) : [o.output_type]),
  });
});
return {kernel: session && session.kernel ? session.kernel.status : null, cells};
}"""
)
# A widget that does not come up leaves words in the page and no error in the notebook.
BROKEN_WIDGETS = """() => {
const broken = /Error displaying widget|Failed to load (model|view) class|Javascript Error|Loading widget[.]{3}/i;
return [...document.querySelectorAll('.jp-OutputArea-output')].map(node => (node.textContent || '').slice(0, 300))
  .filter(text => broken.test(text)); }"""


@dataclass
class LabPage:
    page: object  # Playwright's
    address: str
    console_errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def open(self, notebook: str):
        """Open a notebook of the served folder and wait until its kernel is ready."""
        milliseconds = OPEN_SECONDS * 1000
        url = f"{self.address}/lab/tree/{urllib.parse.quote(notebook)}?reset"
        self.page.goto(url, wait_until="domcontentloaded", timeout=milliseconds)
        self.page.wait_for_function("() => window.jupyterapp && jupyterapp.restored", timeout=milliseconds)
        self.page.wait_for_function(READY, timeout=milliseconds)
        end = time.monotonic() + OPEN_SECONDS
        while self.state()["kernel"] != "idle":
            if (dialog := self.page.locator(".jp-Dialog")).count():
                raise RuntimeError(f"JupyterLab asks about {notebook}: {dialog.first.inner_text()}")
            if time.monotonic() > end:
                raise TimeoutError(f"no idle kernel for {notebook} after {OPEN_SECONDS} s")
            time.sleep(0.1)

    def state(self) -> dict:
        return self.page.evaluate(STATE)

    def run_all(self, seconds: float) -> list[dict]:
        """Run > Run All Cells from the menu; returns the code cells as they are when the kernel rests."""
        self.page.get_by_role("menuitem", name="Run", exact=True).first.click()
        self.page.locator(".lm-Menu-item[data-command='runmenu:run-all']").first.click()
        end = time.monotonic() + seconds
        resting_since = None
        while time.monotonic() < end:
            state = self.state()
            if state["kernel"] in ("dead", "autorestarting", "restarting"):
                raise RuntimeError(f"the kernel died: {state['kernel']}")
            if self._at_rest(state):
                resting_since = resting_since or time.monotonic()
                if time.monotonic() - resting_since > CALM_SECONDS:
                    return state["cells"]
            else:
                resting_since = None
            time.sleep(0.1)
        running = [cell["source"][:80] for cell in state["cells"] if cell["busy"] or not cell["count"]]
        raise TimeoutError(f"not done after {seconds} s; waiting for {running[:3]}")

    @staticmethod
    def _at_rest(state: dict) -> bool:
        cells = [cell for cell in state["cells"] if cell["source"].strip()]
        stopped = any(cell["errors"] and not cell["must_fail"] for cell in cells)  # Run All ends at the first error
        all_ran = all(cell["count"] for cell in cells)
        return state["kernel"] == "idle" and not any(cell["busy"] for cell in cells) and (stopped or all_ran)

    def clear_outputs(self):
        """Forget the committed outputs, so that what is seen later was made now."""
        self.page.evaluate("() => jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")

    def broken_widgets(self) -> list[str]:
        return self.page.evaluate(BROKEN_WIDGETS)

    def change_theme(self, mode: str) -> None:
        """JupyterLab's "Light" or "Dark", and an explorer that has followed."""
        self.page.evaluate("mode => jupyterapp.commands.execute('apputils:change-theme', {theme: `JupyterLab ${mode}`})", mode)
        self.page.wait_for_selector(f".nvx-root[data-mode={mode.lower()}]")
        # JupyterLab covers the change with a splash screen, and trips over a second one that comes before the first is gone.
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")

    def shut_down_kernel(self):
        self.page.evaluate("() => {" + NOTEBOOK + "return notebook && notebook.sessionContext.shutdown(); }")

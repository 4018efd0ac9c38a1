// The row of controls that drives a live source through Python: step, run, add, abort, rewind, and its settings.
import { h, throttle } from "./shared.js";

const NAMES = { num_blocks: ["Cache", "blocks"], max_num_batched_tokens: ["Budget", "tokens per step"] };

// chosen() is the sequence to abort; follow() asks the view to show the end of the data that comes next.
export function liveControls(context, { chosen, follow }) {
  let live = context.data.live, running = false, applied = () => {};
  const dead = context.model.kernel === false; // a page without Python: everything stands there, greyed
  const error = h("p", { class: "nvx-error", role: "alert" });
  const prompt = h("input", { type: "text", class: "nvx-prompt", "aria-label": "prompt: a text, or a number of tokens",
    placeholder: "a text, or a number of tokens", onkeydown: (event) => event.key === "Enter" && add() });
  const most = h("input", { type: "number", class: "nvx-number", min: 1, value: 8, "aria-label": "most tokens to generate", title: "most tokens to generate",
    onkeydown: (event) => event.key === "Enter" && add() });
  const button = (label, onclick, title = label) => h("button", { type: "button", onclick, title }, label);
  const stepButton = button("Step", () => act({ do: "step" }, true), "schedule and compute one step");
  const runButton = button("Run", () => (running ? (running = false) : runAll()), "step until everything is served");
  const abortButton = button("Abort", () => act({ do: "abort", seq_id: chosen() }, true), "end the chosen sequence now");
  const rewindButton = button("Rewind", () => act({ do: "rewind", step: context.step + 1 }, true), "forget everything after the step shown, and go on from there");
  const sliders = Object.entries(live.settings).map(([name, { value, low, high }]) => {
    const [label, unit] = NAMES[name], words = h("output", { class: "nvx-value" });
    const change = throttle(120, () => act({ do: "set", name, value: +input.value }));
    const input = h("input", { type: "range", min: low, max: high, value, "aria-label": `${label}, ${unit}`,
      oninput: () => { show(); change(); } });
    const show = () => { words.textContent = `${input.value} ${unit}`; };
    show();
    // These keys move this slider, not the step.
    input.addEventListener("keydown", (event) => event.key !== " " && event.stopPropagation());
    return { name, input, show, cancel: change.cancel, node: h("label", { class: "nvx-slider" }, h("span", {}, label), input, words) };
  });
  const node = h("div", { class: "nvx-live", role: "group", "aria-label": `drive the ${live.kind}` },
    h("div", { class: "nvx-row" }, stepButton, runButton, prompt, h("label", {}, "generate", most), button("Add request", () => add()), abortButton,
      live.kind === "simulation" ? rewindButton : null),
    h("div", { class: "nvx-row" }, ...sliders.map((slider) => slider.node)),
    dead ? h("p", { class: "nvx-muted nvx-dead" }, "These controls ask Python: open the notebook in JupyterLab and run it. Stepping through what was recorded works here.") : null, error);
  const grey = () => { for (const control of node.querySelectorAll("button, input")) control.disabled = true; };
  if (dead) grey();

  // Ask Python, and wait until what it changed is shown. Resolves to whether it went well.
  async function act(message, toEnd = false) {
    if (toEnd) follow();
    const shown = new Promise((resolve) => { applied = resolve; });
    const waiting = setTimeout(() => { error.textContent = "Waiting for the kernel …"; }, 1500);
    const answer = await context.ask(message);
    clearTimeout(waiting);
    error.textContent = answer.error ?? "";
    if (!answer.error) await shown;
    return !answer.error;
  }
  const stepOnce = async () => (live.unfinished ? await act({ do: "step" }, true) : false);
  async function runAll() {
    running = true;
    runButton.textContent = "Stop";
    while (running && live.unfinished && await act({ do: "run" }, true));
    running = false;
    runButton.textContent = "Run";
  }
  async function add() {
    const text = prompt.value.trim();
    if (!text) { error.textContent = "Write a prompt first: a text, or a number of tokens."; prompt.focus(); return; }
    if (await act({ do: "add", prompt: /^\d+$/.test(text) ? +text : text, max_tokens: +most.value }, true)) prompt.value = "";
  }

  return {
    node, stepOnce,
    draw(step, length, record) {
      const seqId = chosen();
      abortButton.textContent = seqId === null ? "Abort" : `Abort ${seqId}`;
      abortButton.disabled = seqId === null || !(live.alive ?? []).includes(seqId);
      abortButton.title = seqId === null ? "choose a sequence first (up and down, or a click)" : `end sequence ${seqId} now`;
      rewindButton.disabled = step >= length - 1 || record.now;
      for (const control of [stepButton, runButton]) control.disabled = !live.unfinished && !running;
      if (dead) grey();
    },
    update(next) {
      live = next;
      for (const { name, input, show } of sliders) {
        Object.assign(input, { min: live.settings[name].low, max: live.settings[name].high });
        if (document.activeElement !== input) { input.value = live.settings[name].value; show(); }
      }
      applied();
    },
    destroy() { running = false; sliders.forEach((slider) => slider.cancel()); },
  };
}

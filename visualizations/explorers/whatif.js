// What the "what if" explorers share: knobs with a few settings each, and bars laid end to end.
import { clamp, h, promptColour } from "./shared.js";

// A slider per knob: {key: {label, choices: [[value, text], ...], at}}. changed() is called after each move.
export function knobs(specs, changed) {
  const at = {}, node = h("div", { class: "nvx-w-knobs" });
  for (const [key, { label, choices, at: first }] of Object.entries(specs)) {
    at[key] = first;
    const shown = h("output", { class: "nvx-value" }, choices[first][1]);
    const slider = h("input", { type: "range", min: 0, max: choices.length - 1, step: 1, value: first, "aria-label": label, "data-knob": key,
      "aria-valuetext": choices[first][1], oninput: () => {
        at[key] = clamp(+slider.value, 0, choices.length - 1);
        shown.textContent = choices[at[key]][1];
        slider.setAttribute("aria-valuetext", choices[at[key]][1]);
        changed();
      } });
    node.append(h("label", { class: "nvx-w-knob" }, h("span", {}, label), slider, shown));
  }
  return { node, value: (key) => specs[key].choices[at[key]][0], text: (key) => specs[key].choices[at[key]][1] };
}

export function milliseconds(seconds) {
  const ms = 1e3 * seconds;
  return `${ms >= 100 ? ms.toFixed(0) : ms >= 10 ? ms.toFixed(1) : ms >= 0.1 ? ms.toFixed(2) : ms.toPrecision(2)} ms`;
}

// rows: [{name, parts: {part: seconds}, note, chosen}]; a bar each, all on one scale.
export function stackedBars(names) {
  const node = h("div", { class: "nvx-w-bars" });
  const legend = h("p", { class: "nvx-legend nvx-muted" }, ...names.map(([key, words], i) => {
    const sample = h("i", { class: "nvx-sample" });
    sample.style.background = promptColour(i);
    return h("span", {}, sample, words);
  }));
  function draw(rows) {
    const longest = Math.max(...rows.map(({ parts }) => Object.values(parts).reduce((a, b) => a + b, 0)));
    node.replaceChildren(...rows.map(({ name, parts, note, chosen }) => {
      const bar = h("div", { class: "nvx-w-bar" });
      names.forEach(([key, words], i) => {
        if (!(parts[key] > 0)) return;
        const piece = h("i", { class: "nvx-w-piece", title: `${words}: ${milliseconds(parts[key])}`, "data-part": key });
        piece.style.width = `${100 * parts[key] / longest}%`;
        piece.style.background = promptColour(i);
        bar.append(piece);
      });
      return h("div", { class: `nvx-w-row${chosen ? " nvx-w-chosen" : ""}` }, h("span", {}, name), bar, h("span", { class: "nvx-muted" }, note));
    }));
  }
  return { node, legend, draw };
}

// OnlineSoftmaxExplorer: scores above, weights relative to the highest so far below, and the three running numbers.
import { explorer, h, player, surface } from "./shared.js";
import { digits, states, tellStep, whole } from "./softmax_states.js";
import { drawSoftmax } from "./softmax_chart.js";

const ORDERS = { "as they come": null, "highest first": (a, b) => b - a, "lowest first": (a, b) => a - b };

// The keys in the order in which they come in.
export function arrival(scores, order) {
  const keys = scores.map((_, key) => key), by = ORDERS[order];
  return by ? keys.sort((a, b) => by(scores[a], scores[b]) || a - b) : keys;
}

export default explorer((context) => {
  const { data, root } = context;
  const { scores } = data, values = data.values.map((value) => [value]), [right] = whole(scores, values);
  let keys, all;
  const chart = surface("scores of the keys above, their weights relative to the highest score so far below");
  const says = h("p", { class: "nvx-caption", "aria-live": "polite" }), cards = h("ol", { class: "nvx-path" });
  const choose = (name, options, chosen) => h("select", { class: `nvx-os-${name}`, "aria-label": name, onchange: () => { compute(); steps.pause(); steps.setLength(all.length); steps.go(0); draw(); } },
    ...options.map((option) => h("option", { value: option, selected: option === chosen }, `${option}`)));
  const size = choose("tile", data.sizes, data.tile), order = choose("order", Object.keys(ORDERS), "as they come");
  function compute() {
    keys = arrival(scores, order.value);
    all = states(scores, values, keys, +size.value);
  }
  compute();
  const steps = player(context, { length: all.length, onStep: draw, noun: "tile", speed: 1, describe: (step) => tellStep(all, Math.min(step, all.length - 1)) });
  root.append(h("h3", { class: "nvx-title" }, context.model.get("label")), says,
    h("div", { class: "nvx-row" }, h("label", { class: "nvx-row" }, "keys per tile", size), h("label", { class: "nvx-row" }, "order of the keys", order)),
    steps.node, chart.canvas, cards,
    h("p", { class: "nvx-legend nvx-muted" }, "Dark: this tile. Light: tiles before it. Grey: not read yet. Dashed: the highest score so far. Click into it first; keys: ← → tile, space plays."));

  function card(name, value, how) {
    return h("li", { class: "nvx-card" }, h("span", { class: "nvx-card-name" }, name), h("b", {}, value), h("span", { class: "nvx-muted" }, how));
  }

  function draw() {
    if (!chart.width) return;
    const step = Math.min(steps.step, all.length - 1), now = all[step], last = step === all.length - 1, [acc] = now.acc;
    drawSoftmax(chart, context.colours, { scores, keys, all, step, tile: +size.value,
                                          name: (key, at, wide) => (wide > 17 || at % 2 === 0 ? `${key}` : "") });
    says.textContent = tellStep(all, step);
    cards.replaceChildren(
      card("highest", digits(now.highest), "of the scores so far"),
      card("rescale", step > 1 ? `× ${digits(now.rescale)}` : "–", "e^(old highest − new)"),
      card("total", digits(now.total), "total × rescale + weights"),
      card("acc", digits(acc), "acc × rescale + weights · values"),
      card("acc / total", step ? digits(acc / now.total) : "–", last ? `softmax over all keys: ${digits(right)}` : "attention over the keys so far"));
    root.dataset.result = step ? acc / now.total : "";
  }

  return { draw, resize: (width) => { root.classList.toggle("nvx-narrow", width < 760); chart.resize(width - 26, width < 760 ? 250 : 290); }, destroy: () => steps.destroy() };
});

// OnlineSoftmaxExplorer: scores above, weights relative to the highest so far below, and the three running numbers.
import { count, decodeColour, explorer, font, h, player, promptColour, surface } from "./shared.js";

const LEFT = 58, TOP = 20, BETWEEN = 34, BOTTOM = 26;
const ORDERS = { "as they come": null, "highest first": (a, b) => b - a, "lowest first": (a, b) => a - b };

// ---- the arithmetic: pure -----------------------------------------------------------------------------------------------

// The keys in the order in which they come in.
export function arrival(scores, order) {
  const keys = scores.map((_, key) => key), by = ORDERS[order];
  return by ? keys.sort((a, b) => by(scores[a], scores[b]) || a - b) : keys;
}

// What is kept before the first tile and after each: {from, to, highest, rescale, total, acc}; from and to count arrivals.
export function states(scores, values, keys, tile) {
  const found = [{ from: 0, to: 0, highest: -Infinity, rescale: 1, total: 0, acc: 0 }];
  for (let from = 0; from < keys.length; from += tile) {
    const before = found[found.length - 1], to = Math.min(keys.length, from + tile), mine = keys.slice(from, to);
    const highest = Math.max(before.highest, ...mine.map((key) => scores[key]));
    const rescale = before.to ? Math.exp(before.highest - highest) : 1; // nothing was summed yet
    const weights = mine.map((key) => Math.exp(scores[key] - highest));
    found.push({ from, to, highest, rescale, total: before.total * rescale + weights.reduce((a, b) => a + b, 0),
                 acc: before.acc * rescale + weights.reduce((sum, w, i) => sum + w * values[mine[i]], 0) });
  }
  return found;
}

// Softmax with all scores in hand, and the mean of the values under it.
export function whole(scores, values) {
  const highest = Math.max(...scores), weights = scores.map((s) => Math.exp(s - highest)), total = weights.reduce((a, b) => a + b, 0);
  return weights.reduce((sum, w, i) => sum + w * values[i], 0) / total;
}

const digits = (x) => (Number.isFinite(x) ? x.toFixed(3) : "−∞").replace("-", "−");

// What a step did, in a sentence.
export function tellStep(all, step) {
  const now = all[step], before = all[step - 1];
  if (!step) return "Nothing has been read yet: the highest score is −∞ and both sums are 0.";
  const end = step === all.length - 1 ? " That was the last tile: divide acc by the total." : "";
  if (step === 1) return `The first ${count(now.to - now.from, "key")}: highest score ${digits(now.highest)}, and every weight is relative to it.${end}`;
  return (now.highest > before.highest
    ? `A higher score: ${digits(now.highest)} in place of ${digits(before.highest)}. All that was summed is multiplied by e^(old − new) = ${digits(now.rescale)}.`
    : `No higher score in this tile: what was summed stays as it is (the factor is 1).`) + end;
}

// ---- the view -----------------------------------------------------------------------------------------------------------

export default explorer((context) => {
  const { data, root } = context;
  const { scores, values } = data, right = whole(scores, values);
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
  const steps = player(context, { length: all.length, onStep: draw, noun: "tile", describe: (step) => tellStep(all, Math.min(step, all.length - 1)) });
  root.append(h("h3", { class: "nvx-title" }, context.model.get("label")), says,
    h("div", { class: "nvx-row" }, h("label", { class: "nvx-row" }, "keys per tile", size), h("label", { class: "nvx-row" }, "order of the keys", order)),
    steps.node, chart.canvas, cards,
    h("p", { class: "nvx-legend nvx-muted" }, "Dark: this tile. Light: tiles before it. Grey: not read yet. Dashed: the highest score so far. Click into it first; keys: ← → tile, space plays."));

  function card(name, value, how) {
    return h("li", { class: "nvx-card" }, h("span", { class: "nvx-card-name" }, name), h("b", {}, value), h("span", { class: "nvx-muted" }, how));
  }

  function bars(draw, colours, top, high, from, span, heightOf, now, axis) {
    const wide = (chart.width - LEFT - 8) / keys.length, base = top + high;
    draw.fillStyle = colours.line;
    draw.fillRect(LEFT, base, chart.width - LEFT - 8, 1);
    keys.forEach((key, at) => {
      const share = heightOf(key, at);
      if (share === null) return;
      draw.fillStyle = at >= now.to ? colours.free : at >= now.from ? promptColour(0) : decodeColour(0);
      const tall = Math.max(1, share * high);
      draw.fillRect(LEFT + at * wide + wide * 0.12, base - tall, wide * 0.76, tall);
    });
    draw.fillStyle = colours.muted;
    draw.font = font(11);
    draw.textAlign = "right";
    axis.forEach(([text, share]) => draw.fillText(text, LEFT - 6, base - share * high));
  }

  function draw() {
    if (!chart.width) return;
    const step = Math.min(steps.step, all.length - 1), now = all[step], colours = context.colours, draw = chart.begin();
    const low = Math.min(0, ...scores), span = Math.max(...scores) - low || 1;
    const high = (chart.height - TOP - BETWEEN - BOTTOM) / 2, second = TOP + high + BETWEEN, wide = (chart.width - LEFT - 8) / keys.length;
    draw.textAlign = "left";
    draw.font = font(11.5, 600);
    draw.fillStyle = colours.ink;
    draw.fillText("scores, as the keys come in", LEFT, TOP - 11);
    draw.fillText("weights: e^(score − highest so far)", LEFT, second - 12);
    bars(draw, colours, TOP, high, 0, span, (key) => (scores[key] - low) / span, now, [[(low + span).toFixed(1), 1], [low.toFixed(1), 0.02]]);
    bars(draw, colours, second, high, 0, 1, (key, at) => (at < now.to ? Math.exp(scores[key] - now.highest) : null), now, [["1", 1], ["0", 0.02]]);
    if (now.to) {
      const y = TOP + high - (now.highest - low) / span * high;
      draw.strokeStyle = colours.ink;
      draw.lineWidth = 1.2;
      draw.setLineDash([5, 4]);
      draw.beginPath();
      draw.moveTo(LEFT, y);
      draw.lineTo(LEFT + now.to * wide, y);
      draw.stroke();
      draw.setLineDash([]);
    }
    // What the light bars were before this tile, as outlines: the distance is the rescaling.
    const before = all[step - 1];
    if (before?.to && now.rescale < 1) {
      draw.strokeStyle = colours.muted;
      draw.lineWidth = 1;
      keys.slice(0, now.from).forEach((key, at) => {
        const tall = Math.exp(scores[key] - before.highest) * high;
        draw.strokeRect(LEFT + at * wide + wide * 0.12, second + high - tall, wide * 0.76, tall);
      });
    }
    draw.fillStyle = colours.muted;
    draw.textAlign = "center";
    draw.font = font(10.5);
    keys.forEach((key, at) => { if (wide > 17 || at % 2 === 0) draw.fillText(key, LEFT + (at + 0.5) * wide, second + high + 12); });
    draw.textAlign = "right";
    draw.fillText("key", LEFT - 6, second + high + 12);
    says.textContent = tellStep(all, step);
    const last = step === all.length - 1;
    cards.replaceChildren(
      card("highest", digits(now.highest), "of the scores so far"),
      card("rescale", step > 1 ? `× ${digits(now.rescale)}` : "–", "e^(old highest − new)"),
      card("total", digits(now.total), "total × rescale + weights"),
      card("acc", digits(now.acc), "acc × rescale + weights · values"),
      card("acc / total", step ? digits(now.acc / now.total) : "–", last ? `softmax over all keys: ${digits(right)}` : "attention over the keys so far"));
    root.dataset.result = step ? now.acc / now.total : "";
  }

  return { draw, resize: (width) => { root.classList.toggle("nvx-narrow", width < 760); chart.resize(width - 26, width < 760 ? 250 : 290); }, destroy: () => steps.destroy() };
});

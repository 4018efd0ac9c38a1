// ParallelCostExplorer: a decode step on one, two, four and eight ranks, under knobs.
import { explorer, h } from "./shared.js";
import { stepCost, total } from "./step_cost.js";
import { knobs, milliseconds, stackedBars } from "./whatif.js";

// What a reader should take home from the bars, in a sentence or two.
export function lesson(rows) {
  const best = rows.reduce((a, b) => (total(b.parts) < total(a.parts) ? b : a)), last = rows.at(-1);
  const share = last.parts.sums / total(last.parts);
  const fastest = best.ranks === 1 ? "One card is fastest: the sums cost more than the split saves."
    : `${best.ranks} ranks are fastest here, ${(total(rows[0].parts) / total(best.parts)).toFixed(2)} times as fast as one card (hoped for: ${best.ranks}).`;
  return `${fastest} On ${last.ranks} ranks the sums are ${Math.round(100 * share)}% of the step.`;
}

export default explorer((context) => {
  const { data, root } = context;
  const bars = stackedBars([["matrices", "reading weights, products"], ["attention", "attention over the cache"], ["sums", "all-reduces"]]);
  const told = h("p", { class: "nvx-w-told", "aria-live": "polite" });
  const set = knobs(data.knobs, draw);
  root.append(h("h3", { class: "nvx-title" }, context.model.get("label")), h("p", { class: "nvx-caption" }, data.caption), set.node, bars.node, told,
    bars.legend, h("p", { class: "nvx-muted" }, "Click a slider, then ← → turn it. Arithmetic, not a measurement: a floor for each part."));

  function draw() {
    const shape = data.shapes[set.value("model")], device = data.devices[set.value("device")];
    const rows = data.ranks.map((ranks) => ({ ranks, parts: stepCost(shape, device, { sequences: set.value("sequences"), context: set.value("context"),
      weightBytes: set.value("bytes"), latency: set.value("latency") * 1e-6, ranks }) }));
    const alone = total(rows[0].parts), fastest = Math.min(...rows.map((row) => total(row.parts)));
    bars.draw(rows.map(({ ranks, parts }) => ({ name: ranks === 1 ? "one card" : `${ranks} ranks`, parts, chosen: total(parts) === fastest,
      note: `${milliseconds(total(parts))}, ${(alone / total(parts)).toFixed(2)} times` })));
    told.textContent = lesson(rows);
  }
  return { draw };
});

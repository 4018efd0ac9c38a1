// RooflineExplorer: where a step lies under its card's roof, and what each of its parts takes at least.
import { explorer, font, h, promptColour, surface } from "./shared.js";
import { stepCost, total, workOf } from "./step_cost.js";
import { knobs, milliseconds, stackedBars } from "./whatif.js";

const DECADES = { x: [-1, 4.2] };

export default explorer((context) => {
  const { data, root } = context;
  const roof = surface("the roofline of the card, and the step's place under it");
  const bars = stackedBars([["matrices", "weights, products"], ["attention", "attention over the cache"]]);
  const told = h("p", { class: "nvx-w-told", "aria-live": "polite" });
  const set = knobs(data.knobs, draw);
  let kept = null; // a step to compare with
  const keep = h("button", { type: "button", onclick: () => { kept = state(); draw(); } }, "keep this step to compare");
  root.append(h("h3", { class: "nvx-title" }, context.model.get("label")), h("p", { class: "nvx-caption" }, data.caption), set.node, roof.canvas,
    told, bars.node, bars.legend, h("p", { class: "nvx-row nvx-muted" }, keep, "Click a slider, then ← → turn it. Arithmetic: a floor, not a measurement."));

  function state() {
    const shape = data.shapes[set.value("model")], device = data.devices[set.value("device")];
    const asked = { sequences: set.value("sequences"), context: set.value("context"), tokens: set.value("tokens"),
                    weightBytes: set.value("bytes"), cacheBytes: set.value("cache") };
    const { sums, ...parts } = stepCost(shape, device, asked), seconds = total(parts), work = workOf(shape, asked);
    return { device, parts, seconds, work, rate: work.flops / seconds, intensity: work.flops / work.bytes, asked,
             name: `${set.text("model")}, ${asked.sequences} × ${asked.tokens}` };
  }

  function draw() {
    const now = state(), { device } = now, ridge = device.flops / device.read;
    const answers = now.asked.sequences / now.seconds;
    const limit = now.intensity < ridge ? "memory" : "arithmetic";
    told.textContent = `${now.intensity < 10 ? now.intensity.toFixed(1) : Math.round(now.intensity).toLocaleString("en")} operations per byte, the card can do ${Math.round(ridge)}: ${limit} is the limit. ` +
      `At least ${milliseconds(now.seconds)}, so at most ${Math.round(answers * (now.asked.tokens > 1 ? now.asked.tokens : 1)).toLocaleString("en")} tokens per second` +
      (kept ? `; against the step you kept (${kept.name}): ${(kept.seconds / now.seconds).toFixed(2)} times as fast.` : ".");
    bars.draw([...(kept ? [{ name: "kept", parts: kept.parts, note: milliseconds(kept.seconds) }] : []),
               { name: "this step", parts: now.parts, note: milliseconds(now.seconds), chosen: true }]);
    picture(now, ridge);
  }

  function picture(now, ridge) {
    const width = Math.max(280, root.clientWidth - 26), height = 210;
    roof.resize(width, height);
    const pen = roof.begin(), { colours } = context, left = 84, right = width - 14, top = 14, bottom = height - 34;
    const high = Math.log10(now.device.flops) + 0.35, low = high - 4.6;
    const x = (value) => left + (right - left) * (Math.log10(value) - DECADES.x[0]) / (DECADES.x[1] - DECADES.x[0]);
    const y = (value) => Math.min(bottom, bottom - (bottom - top) * (Math.log10(value) - low) / (high - low));
    const first = 10 ** DECADES.x[0], last = 10 ** DECADES.x[1];
    pen.fillStyle = colours.free;
    pen.beginPath();
    pen.moveTo(x(Math.max(first, 10 ** low / now.device.read)), bottom);
    pen.lineTo(x(Math.max(first, 10 ** low / now.device.read)), y(Math.max(first, 10 ** low / now.device.read) * now.device.read));
    pen.lineTo(x(ridge), y(now.device.flops));
    pen.lineTo(x(ridge), bottom);
    pen.fill();
    pen.strokeStyle = colours.ink;
    pen.lineWidth = 2;
    pen.beginPath();
    const start = Math.max(first, 10 ** low / now.device.read);
    pen.moveTo(x(start), y(start * now.device.read));
    pen.lineTo(x(ridge), y(now.device.flops));
    pen.lineTo(x(last), y(now.device.flops));
    pen.stroke();
    pen.fillStyle = colours.muted;
    pen.font = font(11);
    pen.textAlign = "center";
    for (let power = 0; power <= 4; power++) pen.fillText((10 ** power).toLocaleString("en"), x(10 ** power), bottom + 10);
    pen.fillText("operations per byte moved", (left + right) / 2, bottom + 25);
    pen.textAlign = "right";
    for (let power = Math.ceil(low); power <= high; power++)
      pen.fillText(power >= 12 ? `${10 ** (power - 12)} TFLOP/s`.replace("000 T", " P") : `${10 ** (power - 9)} GFLOP/s`, left - 4, y(10 ** power));
    const dot = (step, colour, word) => {
      pen.fillStyle = colour;
      pen.beginPath();
      pen.arc(x(step.intensity), y(step.rate), 6, 0, 7);
      pen.fill();
      pen.fillStyle = colours.ink;
      pen.font = font(12, 600);
      pen.textAlign = step.intensity > 300 ? "right" : "left";
      pen.fillText(word, x(step.intensity) + (step.intensity > 300 ? -10 : 10), y(step.rate) + (word === "kept" ? -14 : 12));
    };
    if (kept) dot(kept, colours.muted, "kept");
    dot(now, promptColour(0), now.name);
    roof.canvas.setAttribute("aria-label", `Roofline: ${told.textContent}`);
  }
  return { draw };
});

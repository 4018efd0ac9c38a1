// GraphTimelineExplorer: a step's host phases, launches and kernels, run by run on one time axis; play, zoom, point.
import { clamp, count, explorer, font, h, player, surface, tooltip } from "./shared.js";

const LABELS = 118, HEAD = 20, PHASES = 13, LAUNCHES = 20, DEVICE = 30, GAP = 4, RUN_GAP = 14, AXIS = 22, OVERVIEW = 30;
const NARROWEST = 200; // units of time in view

// ---- reading the runs: pure ---------------------------------------------------------------------------------------------

// Time within [from, to) in which at least one operation ran. Operations: [start, duration, name], sorted by start.
export function busyWithin(ops, from, to) {
  let total = 0, until = -Infinity;
  for (const [start, duration] of ops) {
    const [a, b] = [Math.max(start, from, until), Math.min(start + duration, to)];
    if (b > a) total += b - a;
    until = Math.max(until, start + duration);
  }
  return total;
}

// How many operations have begun and ended at a time, and the one that runs: {begun, done, running}.
export function progress(ops, time) {
  let begun = 0, done = 0, running = null;
  for (const op of ops) {
    if (op[0] > time) continue;
    begun++;
    if (op[0] + op[1] <= time) done++;
    else running = op;
  }
  return { begun, done, running };
}

// Time and number of operations by kind within [from, to): [{time, count}, ...], one a kind.
export function sharesOf(ops, kindOf, kinds, from, to) {
  const shares = Array.from({ length: kinds }, () => ({ time: 0, count: 0 }));
  for (const [start, duration, name] of ops) {
    const inside = Math.min(start + duration, to) - Math.max(start, from);
    if (inside <= 0) continue;
    shares[kindOf(name)].time += inside;
    shares[kindOf(name)].count++;
  }
  return shares;
}

// The window [from, to] made `factor` times as wide around `centre`, inside [0, end].
export function zoomed({ from, to }, factor, centre, end) {
  const wide = clamp((to - from) * factor, Math.min(NARROWEST, end), end);
  const start = clamp(centre - (centre - from) * wide / (to - from), 0, end - wide);
  return { from: start, to: start + wide };
}

export function panned({ from, to }, by, end) {
  const start = clamp(from + by, 0, end - (to - from));
  return { from: start, to: start + to - from };
}

// Round times for an axis, about `target` of them: {apart, at: [...]}.
export function roundTicks(from, to, target) {
  const rough = (to - from) / Math.max(1, target), power = 10 ** Math.floor(Math.log10(rough));
  const apart = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const at = [];
  for (let t = Math.ceil(from / apart) * apart; t <= to; t += apart) at.push(t);
  return { apart, at };
}

// A time in units of `nanoseconds`, as words.
export function timeWords(units, nanoseconds) {
  const ns = units * nanoseconds;
  if (Math.abs(ns) >= 1e6) return `${(ns / 1e6).toFixed(2)} ms`;
  return Math.abs(ns) >= 1e5 ? `${(ns / 1e3).toFixed(0)} µs` : Math.abs(ns) >= 1e3 ? `${(ns / 1e3).toFixed(1)} µs` : `${Math.round(ns)} ns`;
}

// The operation at a time: the one that runs, or the nearest within `reach`; -1 when there is none.
export function operationAt(ops, time, reach = 0) {
  let best = -1, distance = reach;
  for (let i = 0; i < ops.length; i++) {
    const [start, duration] = ops[i];
    const away = time < start ? start - time : time > start + duration ? time - start - duration : 0;
    if (away <= distance) { best = i; distance = away; if (away === 0 && time < start + duration) return i; }
  }
  return best;
}

// A kernel's name without namespaces, template arguments and parameters.
export function shortName(name) {
  const plain = name.replace(/^void /, "").replaceAll("(anonymous namespace)::", "").replace(/\(.*$/, "").trim();
  const bare = plain.includes("<") ? plain.slice(0, plain.indexOf("<")) : plain;
  return /^(aten|cuda|nanovllm)/.test(bare) ? bare : bare.split("::").at(-1) || bare;
}

// ---- the view -----------------------------------------------------------------------------------------------------------

export default explorer((context) => {
  const { root, data } = context, { runs, names, kinds, ticks, nanoseconds } = data;
  const end = Math.max(...runs.map((run) => run.end)) * 1.02;
  const words = (units) => timeWords(units, nanoseconds), kindOf = (name) => names[name][1];
  const devices = runs.map((run) => run.lanes.filter((lane) => lane.kind === "device").flatMap((lane) => lane.ops).sort((a, b) => a[0] - b[0]));
  const launches = runs.map((run) => run.lanes.find((lane) => lane.kind === "launches")?.ops ?? []);
  const hasGpu = runs.some((run) => run.lanes.some((lane) => lane.name.startsWith("GPU")));
  let view = { from: 0, to: end }, chosen = null, lit = null, lanes = [], backKey = "";

  const chart = surface("timeline", { focusable: true }), overview = surface("the whole step; drag to move the window");
  const back = document.createElement("canvas");
  const caption = h("p", { class: "nvx-caption" });
  const told = h("p", { class: "nvx-gt-told", "aria-live": "polite" });
  const states = h("ul", { class: "nvx-gt-states" });
  const table = h("table", { class: "nvx-gt-table" });
  const { tip, point } = tooltip(root);
  const steps = player(context, { length: ticks + 1, onStep: draw, noun: "tick", describe: (tick) => `${words(timeOf(tick))} after the step began`, position: (tick) => words(timeOf(tick)) });
  steps.node.querySelector(".nvx-speed").value = 10;
  const button = (label, title, onclick) => h("button", { type: "button", title, "aria-label": title, onclick }, label);
  const zoomBar = h("div", { class: "nvx-row nvx-gt-zoom", role: "group", "aria-label": "zoom" },
    button("−", "zoom out", () => zoom(2)), button("+", "zoom in", () => zoom(0.5)), button("All", "show the whole step", () => show({ from: 0, to: end })),
    ...runs.map((run) => button(`Fit ${run.name}`, `show all of ${run.name}`, () => show({ from: 0, to: run.end * 1.02 }))), h("span", { class: "nvx-muted nvx-gt-span" }));
  root.append(h("h3", { class: "nvx-title" }, context.model.get("label")), caption, steps.node, states, zoomBar,
    overview.canvas, chart.canvas, told, h("div", { class: "nvx-gt-scroll", tabindex: 0, role: "region", "aria-label": "time by kind" }, table), legend(), tip);

  function timeOf(tick) { return clamp(tick, 0, ticks) * end / ticks; }

  caption.textContent = runs.map((run, i) => `${run.name}: ${count(devices[i].length, hasGpu ? "kernel" : "operator")}${launches[i].length ? ` from ${count(launches[i].length, "launch").replace("launchs", "launches")}` : ""}, busy ${Math.round(100 * run.busy / run.end)}% of ${words(run.end)}`).join("; ") + ".";

  // ---- drawing

  function lay() { // lanes from top to bottom
    lanes = [];
    let y = 0;
    runs.forEach((run, i) => {
      lanes.push({ run: i, kind: "head", y, high: HEAD });
      y += HEAD;
      if (run.phases.length) { lanes.push({ run: i, kind: "phases", y, high: PHASES }); y += PHASES + GAP; }
      for (const lane of run.lanes) {
        const high = lane.kind === "launches" ? LAUNCHES : DEVICE;
        lanes.push({ run: i, kind: lane.kind, lane, y, high });
        y += high + GAP;
      }
      y += RUN_GAP;
    });
    return y - RUN_GAP + AXIS;
  }
  const room = () => chart.width - LABELS - 6;
  const xOf = (time) => LABELS + (time - view.from) / (view.to - view.from) * room();
  const timeAt = (x) => view.from + (x - LABELS) / room() * (view.to - view.from);

  function draw() {
    if (!chart.width) return;
    const { colours } = context, now = timeOf(steps.step);
    const key = [chart.width, chart.height, chart.ratio, context.mode, view.from, view.to, lit, lanes.findIndex((entry) => entry.lane && entry.lane === chosen?.lane), chosen?.op].join();
    if (key !== backKey) {
      backKey = key;
      paint(chart.begin(), colours);
      back.width = chart.canvas.width;
      back.height = chart.canvas.height;
      back.getContext("2d").drawImage(chart.canvas, 0, 0);
      drawOverview();
      drawTable();
      tell();
    }
    const draw = chart.begin();
    draw.drawImage(back, 0, 0, chart.width, chart.height);
    const x = xOf(now), bottom = chart.height - AXIS;
    if (x < chart.width - 4) { // what is still to come
      draw.globalAlpha = 0.66;
      draw.fillStyle = colours.paper;
      draw.fillRect(Math.max(x, LABELS), 0, chart.width - Math.max(x, LABELS), bottom);
      draw.globalAlpha = 1;
    }
    if (x >= LABELS - 1 && x <= chart.width) {
      draw.fillStyle = colours.ink;
      draw.fillRect(x - 0.7, 0, 1.4, bottom);
    }
    drawStates(now);
  }

  function drawStates(now) {
    states.replaceChildren(...runs.map((run, i) => {
      const at = progress(devices[i], now), sent = progress(launches[i], now);
      const what = now >= run.end ? `done after ${words(run.end)}` : at.running ? shortName(names[at.running[2]][0]) : at.done ? (hasGpu ? "the GPU waits" : "between operators") : hasGpu ? "nothing runs yet" : "not begun";
      const parts = [launches[i].length ? `${sent.begun} of ${count(launches[i].length, "launch").replace("launchs", "launches")}` : null, `${at.done} of ${devices[i].length} ${hasGpu ? "kernels" : "operators"} done`].filter(Boolean);
      return h("li", {}, h("b", {}, run.name), ` ${parts.join(", ")} · `, h("span", { class: now >= run.end ? "nvx-gt-done" : "nvx-muted" }, what));
    }));
  }

  function paint(draw, colours) {
    for (const { run, kind, lane, y, high } of lanes) {
      draw.textAlign = "right";
      if (kind === "head") {
        draw.font = font(12, 650);
        draw.textAlign = "left";
        draw.fillStyle = colours.ink;
        draw.fillText(runs[run].name, 4, y + high / 2);
        draw.fillStyle = colours.line;
        draw.fillRect(LABELS, y + high - 3, room(), 1);
        continue;
      }
      draw.font = font(10.5);
      draw.fillStyle = colours.muted;
      const label = kind === "phases" ? "host" : kind === "launches" ? "launches" : lane.name.replace(/^GPU (\d+), stream /, "GPU $1 stream ").replace(/^CPU operators, thread /, "CPU thread ");
      draw.fillText(label, LABELS - 8, y + high / 2 + 0.5);
      draw.save();
      draw.beginPath();
      draw.rect(LABELS, y - 2, room(), high + 4);
      draw.clip();
      if (kind === "phases") paintPhases(draw, colours, runs[run], y, high);
      else paintOperations(draw, colours, run, lane, y, high);
      draw.restore();
    }
    // where each run ends
    runs.forEach((run, i) => {
      const mine = lanes.filter((entry) => entry.run === i), top = mine[0].y + HEAD, bottom = mine.at(-1).y + mine.at(-1).high, x = xOf(run.end);
      if (x < LABELS || x > chart.width) return;
      draw.fillStyle = colours.ink;
      draw.fillRect(x, top - 4, 1.3, bottom - top + 6);
      draw.font = font(11, 650);
      draw.textAlign = x > chart.width - 70 ? "right" : "left";
      draw.fillText(words(run.end), x + (x > chart.width - 70 ? -5 : 5), mine[0].y + HEAD / 2);
    });
    const base = chart.height - AXIS + 2, { apart, at } = roundTicks(view.from, view.to, Math.max(2, room() / 110)), inMs = apart * nanoseconds >= 1e5;
    draw.font = font(10);
    draw.fillStyle = colours.muted;
    draw.textAlign = "center";
    const digits = Math.max(0, Math.ceil(-Math.log10(apart * nanoseconds / (inMs ? 1e6 : 1e3)) - 1e-9));
    for (const t of at) {
      const x = xOf(t), text = (t * nanoseconds / (inMs ? 1e6 : 1e3)).toFixed(digits);
      draw.fillRect(x, base, 1, 4);
      if (x > LABELS + 8 && x < chart.width - 12) draw.fillText(text, x, base + 12);
      else if (t === 0) draw.fillText("0", x + 3, base + 12);
    }
    draw.textAlign = "right";
    draw.fillText(inMs ? "milliseconds" : "microseconds", LABELS - 8, base + 12);
  }

  function paintPhases(draw, colours, run, y, high) {
    run.phases.forEach(([name, start, duration], i) => {
      const x = xOf(start), wide = Math.max(1, duration / (view.to - view.from) * room());
      draw.fillStyle = i % 2 ? colours.line : colours.free;
      draw.fillRect(x, y, wide, high);
      draw.font = font(9.5);
      draw.fillStyle = colours.muted;
      draw.textAlign = "left";
      const left = Math.max(x, LABELS) + 3;
      if (x + wide - left > draw.measureText(name).width) draw.fillText(name, left, y + high / 2 + 0.5);
    });
  }

  function paintOperations(draw, colours, run, lane, y, high) {
    const scale = room() / (view.to - view.from);
    lane.ops.forEach(([start, duration, name], op) => {
      const x = xOf(start), wide = Math.max(0.8, duration * scale);
      if (x + wide < LABELS || x > chart.width) return;
      const mine = chosen?.lane === lane && chosen.op === op;
      draw.globalAlpha = lit === null || kindOf(name) === lit || mine ? 1 : 0.18;
      draw.fillStyle = lane.kind === "launches" ? colours.muted : kinds[kindOf(name)][1];
      draw.fillRect(x, y, wide > 3 ? wide - 0.6 : wide, high);
      if (wide > 46 && lane.kind === "device") {
        draw.font = font(10);
        draw.fillStyle = "#ffffff";
        draw.textAlign = "left";
        const text = shortName(names[name][0]), fits = Math.floor((wide - 8) / 6);
        draw.fillText(text.length > fits ? `${text.slice(0, fits - 1)}…` : text, Math.max(x, LABELS) + 4, y + high / 2 + 0.5);
      }
      draw.globalAlpha = 1;
      if (mine) {
        draw.strokeStyle = colours.ink;
        draw.lineWidth = 2;
        draw.strokeRect(x - 1, y - 1, Math.max(3, wide) + 2, high + 2);
      }
    });
  }

  function drawOverview() {
    const { colours } = context, draw = overview.begin(), high = OVERVIEW, wide = overview.width - LABELS - 6;
    draw.font = font(10);
    draw.fillStyle = colours.muted;
    draw.textAlign = "right";
    draw.fillText("whole step", LABELS - 8, high / 2);
    draw.fillStyle = colours.free;
    draw.fillRect(LABELS, 0, wide, high);
    const each = (high - 4) / runs.length;
    runs.forEach((run, i) => {
      draw.fillStyle = colours.muted;
      for (const [start, duration] of devices[i]) draw.fillRect(LABELS + start / end * wide, 2 + i * each, Math.max(0.5, duration / end * wide), each - 2);
    });
    draw.strokeStyle = colours.ink;
    draw.lineWidth = 1.5;
    draw.strokeRect(LABELS + view.from / end * wide + 0.75, 0.75, Math.max(4, (view.to - view.from) / end * wide - 1.5), high - 1.5);
    root.querySelector(".nvx-gt-span").textContent = `${words(view.to - view.from)} in view`;
    overview.canvas.setAttribute("aria-label", `The whole step, ${words(end)}; ${words(view.from)} to ${words(view.to)} is in view below.`);
  }

  function drawTable() {
    const whole = view.from <= 0 && view.to >= end * 0.999;
    const shares = devices.map((ops) => sharesOf(ops, kindOf, kinds.length, view.from, view.to));
    const used = kinds.map((_, kind) => kind).filter((kind) => shares.some((one) => one[kind].count));
    const cell = (time, number, of) => h("td", {}, time ? `${words(time)}` : "–", h("span", { class: "nvx-muted" }, time ? `  ${number} ×, ${Math.round(100 * time / of)}%` : ""));
    const inView = runs.map((run) => Math.max(1, Math.min(run.end, view.to) - Math.min(run.end, view.from)));
    table.replaceChildren(
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, whole ? "time by kind" : "time by kind, in view"), ...runs.map((run) => h("th", { scope: "col" }, run.name)))),
      h("tbody", {}, ...used.map((kind) => {
        const [name, colour] = kinds[kind], mark = h("i", { class: "nvx-sample" });
        mark.style.background = colour;
        const pick = h("button", { type: "button", class: "nvx-gt-kind", "aria-pressed": `${lit === kind}`, title: `show ${name} alone`, onclick: () => { lit = lit === kind ? null : kind; draw(); refocus(kind); } }, mark, name);
        pick.dataset.kind = kind;
        return h("tr", {}, h("th", { scope: "row" }, pick), ...shares.map((one, i) => cell(one[kind].time, one[kind].count, inView[i])));
      }), h("tr", {}, h("th", { scope: "row", class: "nvx-gt-idle" }, hasGpu ? "the GPU waits" : "nothing runs"), ...devices.map((ops, i) => {
        const idle = Math.max(0, inView[i] - busyWithin(ops, view.from, Math.min(view.to, runs[i].end)));
        return h("td", {}, words(idle), h("span", { class: "nvx-muted" }, `  ${Math.round(100 * idle / inView[i])}%`));
      }))));
  }
  const refocus = (kind) => table.querySelector(`[data-kind="${kind}"]`)?.focus(); // the table was made anew

  function about({ run, lane, op }) {
    const [start, duration, name] = lane.ops[op], before = lane.ops[op - 1];
    const gap = before ? start - before[0] - before[1] : null;
    const after = gap === null ? "the first of its lane" : gap > 0 ? `${words(gap)} after the one before` : "while the one before still runs";
    return `${runs[run].name}, ${lane.kind === "launches" ? "launch" : lane.name}: ${shortName(names[name][0])}, ${words(duration)}, begins at ${words(start)}, ${after}`;
  }

  function tell() {
    told.textContent = chosen ? `${about(chosen)}.` : "Point at an operation, or choose one: the keys [,] and [.] go to the one before and after.";
    chart.canvas.setAttribute("aria-label", `Timeline of ${runs.map((run) => run.name).join(" and ")}. ${told.textContent}`);
  }

  // ---- zooming, pointing, choosing

  function show(next) { view = next; draw(); }
  const zoom = (factor, centre = focusTime()) => show(zoomed(view, factor, centre, end));
  const focusTime = () => { // what is chosen, else the time played to, else the middle
    const [start, duration] = chosen?.lane.ops[chosen.op] ?? [timeOf(steps.step), 0], time = start + duration / 2;
    return time > view.from && time < view.to && (chosen || steps.step < ticks) ? time : (view.from + view.to) / 2;
  };

  function choose(next) {
    chosen = next;
    if (chosen) { // into view
      const [start, duration] = chosen.lane.ops[chosen.op], wide = view.to - view.from;
      if (start < view.from || start + Math.min(duration, wide) > view.to) view = panned(view, start + duration / 2 - (view.from + view.to) / 2, end);
    }
    draw();
  }
  const choosable = () => lanes.filter((entry) => entry.lane?.ops.length);
  const chooseNext = (by) => {
    const entry = chosen ? lanes.find((one) => one.lane === chosen.lane) : choosable().find((one) => one.kind === "device");
    const first = operationAt(entry.lane.ops, steps.step < ticks ? timeOf(steps.step) : view.from, Infinity);
    choose({ run: entry.run, lane: entry.lane, op: chosen ? clamp(chosen.op + by, 0, entry.lane.ops.length - 1) : Math.max(0, first) });
  };
  const chooseLane = (by) => {
    const all = choosable(), at = chosen ? all.findIndex((entry) => entry.lane === chosen.lane) : by > 0 ? -1 : all.length;
    const entry = all[clamp(at + by, 0, all.length - 1)], time = chosen ? chosen.lane.ops[chosen.op][0] : view.from;
    choose({ run: entry.run, lane: entry.lane, op: Math.max(0, operationAt(entry.lane.ops, time, Infinity)) });
  };
  root.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches("select")) return;
    const wide = view.to - view.from;
    const moves = event.shiftKey && event.key.startsWith("Arrow")
      ? { ArrowLeft: () => show(panned(view, -wide / 5, end)), ArrowRight: () => show(panned(view, wide / 5, end)) }
      : { "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => show({ from: 0, to: end }), ",": () => chooseNext(-1), ".": () => chooseNext(1),
          ArrowUp: () => chooseLane(-1), ArrowDown: () => chooseLane(1), Escape: () => { lit = null; choose(null); } };
    if (!moves[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    moves[event.key]();
  }, true);

  const found = (event) => {
    const { x, y } = chart.at(event), entry = lanes.find((one) => y >= one.y && y <= one.y + one.high);
    if (!entry || x < LABELS) return null;
    if (entry.kind === "phases") {
      const time = timeAt(x), phase = runs[entry.run].phases.find(([, start, duration]) => time >= start && time <= start + duration);
      return phase ? { words: `${runs[entry.run].name}, host: ${phase[0]}, ${words(phase[2])}` } : null;
    }
    if (!entry.lane) return null;
    const op = operationAt(entry.lane.ops, timeAt(x), (view.to - view.from) / room() * 3);
    return op < 0 ? null : { run: entry.run, lane: entry.lane, op };
  };
  let drag = null;
  chart.canvas.addEventListener("pointerdown", (event) => { drag = { x: event.clientX, view, moved: false }; chart.canvas.setPointerCapture(event.pointerId); });
  chart.canvas.addEventListener("pointermove", (event) => {
    if (!drag) { const at = found(event); return point(event, at ? at.words ?? about(at) : ""); }
    const by = (drag.x - event.clientX) / room() * (drag.view.to - drag.view.from);
    if (Math.abs(drag.x - event.clientX) > 3) drag.moved = true;
    if (drag.moved) { point(null, ""); show(panned(drag.view, by, end)); }
  });
  chart.canvas.addEventListener("pointerup", (event) => {
    if (drag && !drag.moved) { const at = found(event); if (at?.lane) choose(at); }
    drag = null;
  });
  chart.canvas.addEventListener("pointercancel", () => { drag = null; });
  chart.canvas.addEventListener("mouseleave", () => point(null, ""));
  chart.canvas.addEventListener("dblclick", (event) => { if (chart.at(event).x > LABELS) zoom(0.4, timeAt(chart.at(event).x)); });
  chart.canvas.addEventListener("wheel", (event) => { // with ctrl or shift, so that the page itself still scrolls
    if (!event.ctrlKey && !event.shiftKey) return;
    event.preventDefault();
    if (event.ctrlKey) zoom(Math.exp(clamp(event.deltaY, -100, 100) / 200), timeAt(chart.at(event).x));
    else show(panned(view, (event.deltaX || event.deltaY) / room() * (view.to - view.from), end));
  }, { passive: false });
  const centre = (event) => { const time = (overview.at(event).x - LABELS) / (overview.width - LABELS - 6) * end; show(panned(view, time - (view.from + view.to) / 2, end)); };
  overview.canvas.addEventListener("pointerdown", (event) => { overview.canvas.setPointerCapture(event.pointerId); centre(event); });
  overview.canvas.addEventListener("pointermove", (event) => { if (event.buttons) centre(event); });

  function legend() {
    return h("p", { class: "nvx-legend nvx-muted" }, h("span", {}, "Click into it first; then the keys: ← → time, space plays, + − 0 zoom, shift ← → move, ↑ ↓ lane, [,] and [.] operation before and after. Ctrl and the wheel zoom, too."));
  }

  return {
    draw,
    resize(width) {
      const inner = width - 26;
      overview.resize(inner, OVERVIEW);
      chart.resize(inner, lay());
      backKey = "";
    },
    destroy: () => steps.destroy(),
  };
});

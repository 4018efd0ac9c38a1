// FleetExplorer: replicas against time, run below run; every request with where it went and why.
import { clamp, count, explorer, font, h, player, promptColour, surface, tooltip } from "./shared.js";

const NAMES = 84, HEAD = 22, ROW = 22, LEAST_ROW = 5, RUN_GAP = 10, AXIS = 22;
const METRICS = { unfinished: "unfinished requests", waiting: "waiting requests", "found cached": "share of prompt tokens found cached", busy: "share of time in steps" };

// ---- reading the runs: pure ---------------------------------------------------------------------------------------------

// A packed request as an object.
export function requestOf(packed) {
  const [conversation, arrival, prompt, replica, decode, matched, hit, first, end, reason, loads] = packed;
  return { conversation, arrival, prompt, replica, decode, matched, hit, first, end, reason, loads };
}

// The request nearest to a time among those on a replica; -1 without one.
export function nearestRequest(requests, time, replica) {
  let best = -1, distance = Infinity;
  requests.forEach((packed, i) => {
    if (!packed) return;
    const { arrival, replica: own, decode } = requestOf(packed), away = Math.abs(arrival - time);
    if ((own === replica || decode === replica) && away < distance) { best = i; distance = away; }
  });
  return best;
}

// The highest number in a run's rows, over all runs, at least `least`.
export const highestOf = (runs, metric, least = 1) => Math.max(least, ...runs.flatMap((run) => run.rows[metric].map((row) => Math.max(0, ...row))));

export const seconds = (s) => (s >= 1 ? `${s.toFixed(2)} s` : `${(s * 1e3).toFixed(1)} ms`);

// A request's story, in the order in which it happened: [[what, text], ...].
export function storyOf(run, request) {
  const where = request.decode === null || request.decode === undefined ? `replica ${request.replica}` : `replica ${request.replica} for the prompt, replica ${request.decode} for the answer`;
  return [
    ["arrives", `at ${request.arrival.toFixed(3)} s, a prompt of ${count(request.prompt, "token")}`],
    ["sent to", where],
    ["because", request.reason],
    ["found cached", `${request.hit} of its ${request.prompt} tokens`],
    ["first token", request.first === null ? "not yet" : `after ${seconds(request.first - request.arrival)}`],
    ["last token", request.end === null ? "not yet" : `after ${seconds(request.end - request.arrival)}`],
  ];
}

// ---- the view -----------------------------------------------------------------------------------------------------------

export default explorer((context) => {
  const { root, data } = context, { runs } = data;
  const total = Math.max(...runs.map((run) => run.requests.length));
  let metric = "unfinished", rows = [];
  const chart = surface("replicas against time", { focusable: true });
  const { tip, point } = tooltip(root);
  const steps = player(context, { length: total, onStep: draw, noun: "request", describe: (i) => `request ${i}`, position: (i) => `request ${i} / ${total - 1}` });
  const choose = h("select", { "aria-label": "what the shades show", onchange: () => { metric = choose.value; draw(); } },
    ...Object.entries(METRICS).map(([key, words]) => h("option", { value: key }, words)));
  const scale = h("span", { class: "nvx-muted nvx-fl-scale" });
  const stories = h("div", { class: "nvx-fl-stories", "aria-live": "polite" });
  const table = h("table", { class: "nvx-fl-table" });
  root.append(h("h3", { class: "nvx-title" }, context.model.get("label")),
    h("p", { class: "nvx-caption" }, "Each row is a replica. The line is the moment at which the chosen request arrives, the dot the replica it was sent to, the bar its time there."),
    steps.node, h("div", { class: "nvx-row" }, h("label", {}, "Shade: ", choose), scale), chart.canvas, stories,
    h("div", { class: "nvx-fl-scroll", tabindex: 0, role: "region", "aria-label": "figures of the whole run" }, table), tip);

  const heightOf = (run) => clamp(Math.floor(300 / runs.length / run.rows.unfinished.length), LEAST_ROW, ROW);
  function lay() {
    rows = [];
    let y = 0;
    runs.forEach((run, r) => {
      y += HEAD;
      run.rows.unfinished.forEach((_, replica) => { rows.push({ run: r, replica, y, high: heightOf(run) }); y += heightOf(run); });
      y += RUN_GAP;
    });
    return y - RUN_GAP + AXIS;
  }
  const room = () => chart.width - NAMES - 8;
  const xOf = (time) => NAMES + time / data.seconds * room();

  function draw() {
    if (!chart.width) return;
    const { colours } = context, draw = chart.begin(), highest = highestOf(runs, metric, metric === "unfinished" || metric === "waiting" ? 1 : 0.01);
    const digits = highest > 3 ? 0 : 2, shade = context.mode === "dark" ? "#6cb4ee" : promptColour(0);
    scale.textContent = `grey: 0, ${context.mode === "dark" ? "brightest" : "darkest"}: ${metric in { "found cached": 1, busy: 1 } ? `${Math.round(100 * highest)}%` : highest.toFixed(digits)}`;
    for (const { run, replica, y, high } of rows) {
      const { rows: all, width, name, prefill } = runs[run], values = all[metric][replica];
      if (replica === 0) {
        draw.font = font(12, 650);
        draw.textAlign = "left";
        draw.fillStyle = colours.ink;
        draw.fillText(name || METRICS[metric], 2, y - HEAD / 2);
      }
      const gap = high > 9 ? 2 : 1, every = Math.ceil(11 / high);
      if (replica % every === 0) {
        draw.font = font(10.5);
        draw.textAlign = "right";
        draw.fillStyle = colours.muted;
        draw.fillText(`${prefill ? (replica < prefill ? "prefill " : "decode ") : "replica "}${replica}`, NAMES - 8, y + high / 2);
      }
      draw.fillStyle = colours.free;
      draw.fillRect(NAMES, y, room(), high - gap);
      draw.fillStyle = shade;
      values.forEach((value, i) => {
        if (!value) return;
        draw.globalAlpha = 0.12 + 0.88 * Math.min(1, value / highest);
        draw.fillRect(xOf(i * width), y, Math.max(1, xOf(width) - NAMES), high - gap);
      });
      draw.globalAlpha = 1;
    }
    drawAxis(draw, colours);
    runs.forEach((run, r) => drawChosen(draw, colours, run, r));
    stories.replaceChildren(...runs.map(story));
  }

  function drawChosen(draw, colours, run, r) {
    if (!run.requests[steps.step]) return;
    const request = requestOf(run.requests[steps.step]), mine = rows.filter((row) => row.run === r);
    const x = xOf(request.arrival), top = mine[0].y, bottom = mine.at(-1).y + mine.at(-1).high;
    draw.fillStyle = colours.ink;
    draw.fillRect(x - 0.75, top - 3, 1.5, bottom - top + 3);
    const colour = promptColour(request.conversation);
    const bar = (replica, from, to) => {
      const { y, high } = mine[replica], middle = y + high / 2 - 1, end = xOf(to ?? data.seconds);
      draw.strokeStyle = colours.paper;
      draw.lineWidth = 6;
      draw.lineCap = "round";
      for (const [style, wide] of [[colours.paper, 7], [colour, 4]]) {
        draw.strokeStyle = style;
        draw.lineWidth = wide;
        draw.beginPath();
        draw.moveTo(xOf(from), middle);
        draw.lineTo(Math.max(end, xOf(from) + 1), middle);
        draw.stroke();
      }
      return middle;
    };
    const split = request.decode !== null && request.decode !== undefined;
    const y = bar(request.replica, request.arrival, split ? request.first : request.end);
    if (split) bar(request.decode, request.first, request.end);
    draw.fillStyle = colour;
    draw.strokeStyle = colours.paper;
    draw.lineWidth = 2;
    draw.beginPath();
    draw.arc(x, y, 6, 0, 2 * Math.PI);
    draw.fill();
    draw.stroke();
  }

  function drawAxis(draw, colours) {
    const base = chart.height - AXIS + 2, rough = data.seconds / Math.max(2, room() / 90), power = 10 ** Math.floor(Math.log10(rough));
    const apart = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough), places = Math.max(0, Math.ceil(-Math.log10(apart)));
    draw.font = font(10);
    draw.fillStyle = colours.muted;
    draw.textAlign = "center";
    for (let t = 0; t <= data.seconds; t += apart) {
      draw.fillRect(xOf(t), base, 1, 4);
      draw.fillText(t.toFixed(places), xOf(t), base + 12);
    }
    draw.textAlign = "right";
    draw.fillText("seconds", NAMES - 12, base + 12);
  }

  function story(run) {
    if (!run.requests[steps.step]) return h("div", {}, h("b", {}, run.name), " has not logged this request.");
    const request = requestOf(run.requests[steps.step]), most = Math.max(1, ...(request.loads ?? []));
    const loads = h("div", { class: "nvx-fl-loads", role: "img", "aria-label": `unfinished requests per replica when it arrived: ${(request.loads ?? []).join(", ")}` },
      ...(request.loads ?? []).map((load, i) => {
        const bar = h("i", { class: i === request.replica ? "nvx-fl-load nvx-fl-here" : "nvx-fl-load", title: `replica ${i}: ${count(load, "unfinished request")}` });
        bar.style.height = `${4 + 26 * load / most}px`;
        return bar;
      }));
    return h("div", { class: "nvx-fl-story" }, run.name ? h("p", { class: "nvx-heading" }, run.name) : null,
      h("dl", {}, ...storyOf(run, request).flatMap(([what, text]) => [h("dt", {}, what), h("dd", {}, text)]),
        h("dt", {}, "queues then"), h("dd", {}, loads)));
  }

  function drawTable() {
    table.replaceChildren(h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "whole run"), ...runs.map((run) => h("th", { scope: "col" }, run.name)))),
      h("tbody", {}, ...runs[0].figures.map(([name], i) => h("tr", {}, h("th", { scope: "row" }, name),
        ...runs.map((run) => h("td", {}, run.figures[i][1].toLocaleString("en", { maximumFractionDigits: 1 })))))));
  }

  const rowAt = (event) => { const { x, y } = chart.at(event); const row = rows.find((r) => y >= r.y && y < r.y + r.high); return row && x >= NAMES ? { ...row, time: (x - NAMES) / room() * data.seconds } : null; };
  chart.canvas.addEventListener("mousemove", (event) => {
    const at = rowAt(event);
    if (!at) return point(event, "");
    const run = runs[at.run], i = clamp(Math.floor(at.time / run.width), 0, run.rows.unfinished[0].length - 1), values = (key) => run.rows[key][at.replica][i] ?? 0;
    point(event, `replica ${at.replica} at ${(i * run.width).toFixed(2)} s: ${values("unfinished").toFixed(1)} unfinished, ${values("waiting").toFixed(1)} of them waiting; ${Math.round(100 * values("found cached"))}% of prompt tokens found cached; busy ${Math.round(100 * values("busy"))}%`);
  });
  chart.canvas.addEventListener("mouseleave", (event) => point(event, ""));
  chart.canvas.addEventListener("click", (event) => {
    const at = rowAt(event), found = at ? nearestRequest(runs[at.run].requests, at.time, at.replica) : -1;
    if (found >= 0) { steps.pause(); steps.go(found); }
  });
  drawTable();
  return { draw, resize: (width) => { const high = lay(); chart.resize(width - 26, high); }, destroy: () => steps.destroy() };
});

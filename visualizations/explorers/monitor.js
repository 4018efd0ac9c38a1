// BatchMonitor: a running engine, live: tokens per second, the cache, the queues, and the sequences with their texts.
import { clamp, count, decodeColour, explorer, font, h, hatch, player, promptColour, surface, textOnPhase } from "./shared.js";

const GREY = "#7b8794", PALE = 0.45;
const STRIPS = [["tokens per second, averaged from one look to the next", 104], ["blocks of the cache", 62], ["sequences", 50]], GAP = 24, GUTTER = 52;
const STATES = { w: "waiting", r: "running", p: "preempted", f: "finished" };
const FEW = 4; // sequences whose texts get several lines

// ---- reading: pure ---------------------------------------------------------------------------------------------------------

// Take news into {frames, texts, told, kept}; false, with nothing changed, unless they are the very next.
export function take(state, { told, frames, texts }) {
  if (told !== state.told + frames.length) return false;
  for (const frame of frames) {
    state.frames.push(frame);
    if (state.frames.length > state.kept) state.frames = state.frames.filter((_, i) => i % 2 === 0); // as Python thins them
  }
  state.told = told;
  for (const [id, text] of Object.entries(texts)) state.texts[id] = (state.texts[id] ?? "") + text;
  return true;
}

// Tokens per second from look to look: [{from, to, prompt, decode}]. A look that came right after another is counted with the
// next one: over a few milliseconds a rate says little.
export function speedsOf(frames, shortest = 0.05) {
  const spans = [];
  for (let i = 1, first = 0; i < frames.length; i++) {
    const [before, now] = [frames[first], frames[i]], seconds = now.time - before.time;
    if (seconds < shortest && i < frames.length - 1) continue;
    const rate = (name) => (now[name] - before[name]) / Math.max(seconds, 1e-6);
    spans.push({ from: before.time, to: now.time, prompt: rate("prompt"), decode: rate("decode") });
    first = i;
  }
  return spans;
}

// Tokens per second over the second that ends with a frame, but not over a rest in between.
export function recentRate(frames, index, name) {
  let first = index;
  while (first > 0 && frames[index].time - frames[first - 1].time <= 1.05 && !frames[first].quiet) first--;
  const seconds = frames[index].time - frames[first].time;
  return seconds > 0 ? (frames[index][name] - frames[first][name]) / seconds : 0;
}

export const rounded = (number) => (number >= 100 ? Math.round(number).toLocaleString("en") : `${+number.toPrecision(2)}`);

// ---- the view ----------------------------------------------------------------------------------------------------------

export default explorer((context) => {
  const { root, model } = context;
  let state = { ...context.data }, waiting = [], drawing = 0;
  const lines = new Map(); // seq_id -> the elements of its line

  const says = h("p", { class: "nvx-caption nvx-m-says" });
  const chart = surface("the run over time");
  const list = h("div", { class: "nvx-m-list", role: "list", "aria-label": "sequences", tabindex: 0 });
  const listHead = h("h4", { class: "nvx-heading" });
  const lamp = h("span", { class: "nvx-m-lamp" });
  const steps = player(context, { length: Math.max(1, state.frames.length), onStep: () => draw(), noun: "look",
    describe: (index) => words(state.frames[index]), position: (index) => `${(state.frames[index]?.time ?? 0).toFixed(1)} s` });
  root.append(h("div", { class: "nvx-head" }, h("h3", { class: "nvx-title" }, context.model.get("label")), lamp), says, steps.node,
    h("div", { class: "nvx-panes" }, h("section", { class: "nvx-pane" }, h("h4", { class: "nvx-heading" }, "Over time"), chart.canvas),
      h("section", { class: "nvx-pane nvx-side" }, listHead, list)), legend());

  // ---- what comes while the engine runs

  const hear = (message) => {
    if (message.told === undefined) return;
    waiting = [...waiting.slice(-50), message]; // the whole may come late and have to catch up with these
    follow(() => take(state, message));
  };
  model.on("msg:custom", hear);
  if (model.kernel !== false) {
    // As in Run All, cells below may have run before this view opened: begin at the newest look, and so follow.
    if (state.frames.length) steps.go(state.frames.length - 1);
    context.ask({ do: "refresh" }); // what was said before anybody looked
  }

  // After a change of the frames: stay at the newest, if that was shown, and else at the same moment.
  function follow(change) {
    const atEnd = steps.step >= state.frames.length - 1, moment = state.frames[steps.step]?.time ?? 0;
    change();
    const { frames } = state, later = frames.findIndex((frame) => frame.time >= moment);
    steps.setLength(Math.max(1, frames.length));
    steps.go(atEnd || later < 0 ? frames.length - 1 : later);
    drawing ||= requestAnimationFrame(() => { drawing = 0; draw(); });
  }

  // ---- drawing

  function words(frame) {
    if (!frame) return "nothing has run yet";
    const index = state.frames.indexOf(frame), speed = recentRate(state.frames, index, "decode") + recentRate(state.frames, index, "prompt");
    return `${rounded(speed)} tokens per second, ${frame.running} running, ${frame.waiting} waiting, ${frame.finished} finished`;
  }

  function draw() {
    const { frames } = state, index = clamp(steps.step, 0, Math.max(0, frames.length - 1)), frame = frames[index];
    const live = index === frames.length - 1 && frame && frame.running + frame.waiting > 0 && model.kernel !== false;
    root.dataset.live = live ? "true" : "false";
    lamp.textContent = live ? "running" : frame ? (index === frames.length - 1 ? "at rest" : "looking back") : "waiting for a first step";
    if (!frame) {
      says.textContent = "Nothing has run yet: generate, stream or chat in another cell.";
      listHead.textContent = "Sequences";
      drawChart(-1);
      return;
    }
    const share = state.meta.num_blocks ? frame.used / state.meta.num_blocks : 0;
    says.textContent = `Over the last second: ${rounded(recentRate(frames, index, "decode"))} tokens per second decoded and ${rounded(recentRate(frames, index, "prompt"))} of prompts read · ` +
      `${frame.running} running · ${frame.waiting} waiting · ${frame.finished} finished · cache ${Math.round(100 * share)}% held` +
      (frame.preemptions ? ` · ${count(frame.preemptions, "preemption")}` : "") + ` · step ${frame.steps}`;
    drawChart(index);
    drawList(frame);
  }

  function drawChart(index) {
    if (!chart.width) return;
    const { colours } = context, { frames, meta } = state, draw = chart.begin();
    const end = Math.max(frames.at(-1)?.time ?? 0, 1), x = (time) => GUTTER + (chart.width - GUTTER - 8) * time / end;
    let top = 0;
    STRIPS.forEach(([name, high], strip) => {
      top += GAP - (strip ? 4 : 8);
      const floor = top + high;
      draw.font = font(11);
      draw.textAlign = "left";
      draw.fillStyle = colours.muted;
      draw.fillText(name, GUTTER, top - 9);
      if (strip === 0) speeds(draw, colours, x, floor, high);
      if (strip === 1) blocks(draw, colours, x, floor, high, meta.num_blocks);
      if (strip === 2) queues(draw, colours, x, floor, high);
      draw.fillStyle = colours.line;
      draw.fillRect(GUTTER, floor, chart.width - GUTTER - 8, 1);
      top = floor;
    });
    draw.fillStyle = colours.muted;
    draw.textAlign = "center";
    draw.font = font(10);
    const apart = [0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 600, 3600].find((n) => end / n <= 8) ?? 36000;
    for (let time = 0; time <= end * 1.0001; time += apart) draw.fillText(`${+time.toFixed(1)}${time === 0 ? " s" : ""}`, x(time), top + 11);
    if (index < 0) return;
    const at = x(frames[index].time);
    draw.globalAlpha = 0.62; // what is still to come
    draw.fillStyle = colours.paper;
    draw.fillRect(at + 1, 0, chart.width - at, top);
    draw.globalAlpha = 1;
    draw.fillStyle = colours.ink;
    draw.fillRect(at - 0.75, 8, 1.5, top - 8);
    chart.canvas.setAttribute("aria-label", `The run over ${end.toFixed(1)} seconds. At ${frames[index].time.toFixed(1)}: ${words(frames[index])}.`);
  }

  function scale(draw, colours, floor, high, most, say = rounded) {
    draw.font = font(10);
    draw.textAlign = "right";
    draw.fillStyle = colours.muted;
    draw.fillText(say(most), GUTTER - 5, floor - high + 3);
    draw.fillText("0", GUTTER - 5, floor - 4);
  }

  function speeds(draw, colours, x, floor, high) {
    const spans = speedsOf(state.frames), most = Math.max(1, ...spans.map(({ prompt, decode }) => prompt + decode));
    for (const { from, to, prompt, decode } of spans) {
      const left = x(from), wide = Math.max(x(to) - left, 0.5), light = high * decode / most, dark = high * prompt / most;
      draw.fillStyle = GREY;
      draw.fillRect(left, floor - light - dark, wide, dark);
      draw.globalAlpha = PALE;
      draw.fillRect(left, floor - light, wide, light);
      draw.globalAlpha = 1;
    }
    scale(draw, colours, floor, high, most);
  }

  function blocks(draw, colours, x, floor, high, total) {
    const { frames } = state, shared = new Path2D();
    for (let i = 0; i < frames.length; i++) { // a look holds until the next
      const f = frames[i], left = x(f.time), wide = Math.max(x(frames[i + 1]?.time ?? f.time + 0.05) - left, 0.5);
      const [used, cached] = [high * f.used / total, high * f.cached / total];
      draw.fillStyle = colours.free;
      draw.fillRect(left, floor - high, wide, high);
      draw.fillStyle = colours.line;
      draw.fillRect(left, floor - used - cached, wide, cached);
      draw.fillStyle = GREY;
      draw.fillRect(left, floor - used, wide, used);
      if (f.shared) shared.rect(left, floor - high * f.shared / total, wide, high * f.shared / total);
    }
    draw.save();
    draw.clip(shared);
    draw.beginPath();
    draw.rect(GUTTER, floor - high, chart.width - GUTTER, high);
    hatch(draw, GUTTER, floor - high, chart.width - GUTTER, high, colours.paper, 6);
    draw.restore();
    scale(draw, colours, floor, high, total);
  }

  function queues(draw, colours, x, floor, high) {
    const { frames } = state, most = Math.max(1, ...frames.map((f) => Math.max(f.running, f.waiting)));
    for (const [name, colour, wide] of [["waiting", colours.muted, 1], ["running", colours.ink, 1.8]]) {
      draw.strokeStyle = colour;
      draw.lineWidth = wide;
      draw.setLineDash(name === "waiting" ? [4, 3] : []);
      draw.beginPath();
      frames.forEach((f, i) => {
        const y = floor - (high - 2) * f[name] / most;
        if (i) draw.lineTo(x(f.time), floor - (high - 2) * frames[i - 1][name] / most);
        draw.lineTo(x(f.time), y);
      });
      draw.stroke();
    }
    draw.setLineDash([]);
    scale(draw, colours, floor, high, most);
  }

  function drawList(frame) {
    const { texts } = state, longest = Math.max(1, ...frame.rows.map(([, prompt, most]) => prompt + most)), few = frame.rows.length <= FEW;
    const rest = frame.running - frame.rows.filter((row) => row[5] === "r").length;
    listHead.textContent = `Sequences${rest > 0 ? `, ${frame.rows.length} of those at hand (${rest} more run)` : ""}`;
    list.classList.toggle("nvx-m-few", few);
    const shown = frame.rows.map((row) => {
      const [id, prompt, most, tokens, cached, letter, characters] = row;
      if (!lines.has(id)) lines.set(id, line(id));
      const own = lines.get(id), share = (n) => `${100 * Math.max(0, n) / longest}%`;
      own.node.dataset.state = STATES[letter];
      own.parts[0].style.width = share(Math.min(cached, prompt));
      own.parts[1].style.width = share(prompt - Math.min(cached, prompt));
      own.parts[2].style.width = share(tokens - prompt);
      own.parts[3].style.width = share(prompt + most - tokens);
      own.status.textContent = `${STATES[letter]}, ${tokens - prompt} of ${most}`;
      const text = (texts[id] ?? "").slice(0, characters).replaceAll("\n", "⏎");
      const room = few ? 700 : Math.max(20, Math.floor(list.clientWidth / 7.4) - 6);
      own.text.textContent = text.length > room ? `…${text.slice(-room)}` : text || " ";
      own.text.scrollTop = own.text.scrollHeight;
      return own.node;
    });
    if (shown.length !== list.children.length || shown.some((node, i) => list.children[i] !== node)) list.replaceChildren(...shown);
    if (lines.size > 200) for (const id of [...lines.keys()].slice(0, 100)) if (!shown.includes(lines.get(id).node)) lines.delete(id);
  }

  function line(id) {
    const parts = ["computed", "prompt", "generated", "left"].map((name) => h("i", { class: `nvx-m-${name}` }));
    const status = h("span", { class: "nvx-m-status" }), text = h("div", { class: "nvx-m-text" });
    const chip = h("span", { class: "nvx-chip nvx-is-prefill" }, `${id}`);
    const node = h("div", { class: "nvx-m-line", role: "listitem" }, chip, h("div", { class: "nvx-m-bar", "aria-hidden": "true" }, ...parts), status, text);
    node.style.setProperty("--nvx-dark", promptColour(id));
    node.style.setProperty("--nvx-light", decodeColour(id));
    node.style.setProperty("--nvx-on", textOnPhase(id, "prefill"));
    return { node, parts, status, text };
  }

  function legend() {
    const sample = (kind, label) => h("span", {}, h("i", { class: `nvx-m-sample nvx-m-s-${kind}` }), ` ${label}`);
    return h("p", { class: "nvx-legend nvx-muted" }, sample("dark", "prompt tokens; blocks held"), sample("light", "fed back, generated"), sample("shared", "shared blocks"), sample("cached", "cached, free to take"),
      h("span", {}, "Line: running; grey and dashed: waiting"), h("span", {}, "Click into it first; then the keys: ← → look, space plays, end: live"));
  }

  return {
    draw,
    resize(width) {
      const wide = width >= 980, inner = width - 26, side = wide ? Math.round(inner * 0.5) : inner;
      root.classList.toggle("nvx-wide", wide);
      root.style.setProperty("--nvx-side", `${side}px`);
      chart.resize(wide ? inner - side - 20 : inner, STRIPS.reduce((sum, [, high]) => sum + high, 0) + 3 * GAP + 4);
    },
    update(data) {
      follow(() => {
        if (data.told < state.told) return; // the newest looks are already here
        state = { ...data };
        for (const message of waiting) take(state, message);
      });
    },
    destroy() { cancelAnimationFrame(drawing); steps.destroy(); model.off("msg:custom", hear); },
  };
});

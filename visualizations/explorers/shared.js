// What all explorers share: the way from Python's data to a view, the player, and the visual language on a canvas.
import { THEME } from "./theme.js";

// ---- data -------------------------------------------------------------------------------------------------------------

export function bytesOf(value) {
  if (value instanceof Uint8Array) return value;
  return value?.buffer ? new Uint8Array(value.buffer, value.byteOffset, value.byteLength) : new Uint8Array(value ?? 0);
}

export async function inflate(payload) {
  const stream = new Blob([bytesOf(payload)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

export const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

export const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

// Calls at most once in `milliseconds`, and always with the last arguments.
export function throttle(milliseconds, call) {
  let timer = null, last = null;
  const throttled = (...values) => {
    last = values;
    timer ??= setTimeout(() => { timer = null; call(...last); }, milliseconds);
  };
  throttled.cancel = () => { clearTimeout(timer); timer = null; };
  return throttled;
}

// ---- elements ---------------------------------------------------------------------------------------------------------

const FOCUSABLE = new Set(["button", "input", "select", "textarea"]);

// An element: h("button", { class: "nvx-x", onclick: f, "aria-label": "play" }, child, "text").
export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  // JupyterLab's shortcuts would take arrows and letters; the attribute counts only on the focused element itself.
  if (FOCUSABLE.has(tag) || "tabindex" in attributes) node.setAttribute("data-lm-suppress-shortcuts", "true");
  node.append(...children.filter((child) => child != null));
  return node;
}

const ICONS = {
  first: "M4 3h2v10H4zM13 3v10L6.5 8z", back: "M11.5 3v10L4.5 8z", play: "M4.5 2.5v11L13 8z", pause: "M4 3h3v10H4zM9 3h3v10H9z",
  forward: "M4.5 3v10l7-5z", last: "M10 3h2v10h-2zM3 3v10l6.5-5z",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const path = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "path"));
  path.setAttribute("d", ICONS[name]);
  return svg;
}

export function iconButton(name, label, onclick) {
  return h("button", { type: "button", class: "nvx-icon", "aria-label": label, title: label, onclick }, icon(name));
}

// Words beside the pointer: point(event, text), and "" to hide them. The node goes into the explorer's root.
export function tooltip(root) {
  const tip = h("div", { class: "nvx-tip", role: "status" });
  let pointed = "";
  function point(event, text) {
    if (text !== pointed) tip.textContent = pointed = text;
    tip.style.display = text ? "block" : "none";
    if (!text) return;
    const box = root.getBoundingClientRect();
    const x = event.clientX - box.left + 14, y = event.clientY - box.top + 16;
    tip.style.left = `${Math.max(4, Math.min(x, root.clientWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${y}px`;
  }
  return { tip, point };
}

// ---- light and dark ---------------------------------------------------------------------------------------------------

// JupyterLab and VS Code mark the body, the Sphinx book the root element; elsewhere the system decides.
export function currentMode() {
  const { body, documentElement } = document;
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false" ? "dark" : "light";
  if (body.classList.contains("vscode-dark")) return "dark";
  if (body.classList.contains("vscode-light")) return "light";
  if (["light", "dark"].includes(documentElement.dataset.theme)) return documentElement.dataset.theme;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

function watchMode(changed) {
  const observer = new MutationObserver(changed);
  observer.observe(document.body, { attributes: true, attributeFilter: ["class", "data-jp-theme-light"] });
  observer.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", changed);
  return () => { observer.disconnect(); system.removeEventListener("change", changed); };
}

// ---- the frame around a view --------------------------------------------------------------------------------------------

const ANSWER_MILLISECONDS = 20000; // a step of a large model on a CPU may take seconds; a dead kernel never answers

// Questions to Python, each with its answer. Python answers with {reply_to, ok | error}.
function questions(model) {
  const open = new Map();
  let last = 0;
  const answered = (message) => {
    if (!open.has(message.reply_to)) return;
    open.get(message.reply_to)(message);
    open.delete(message.reply_to);
  };
  model.on("msg:custom", answered);
  const ask = (message) => new Promise((resolve) => {
    if (model.kernel === false) return resolve({ error: "No kernel runs here: open the notebook to drive it. Scrubbing works." });
    const id = `${Date.now()}-${++last}`;
    open.set(id, resolve);
    model.send({ ...message, id });
    setTimeout(() => answered({ reply_to: id, error: "No kernel answers: run the notebook's cells again. Scrubbing works." }),
               ANSWER_MILLISECONDS);
  });
  return { ask, close: () => model.off("msg:custom", answered) };
}

// What a module exports: explorer((context) => view). base.py says what `context` and `view` hold.
export function explorer(build) {
  async function render({ model, el }) {
    const root = h("div", { class: "nvx-root", role: "group", "aria-label": model.get("label") });
    el.append(root);
    const asked = questions(model);
    const context = {
      model, root, data: await inflate(model.get("payload")), ask: asked.ask,
      get mode() { return root.dataset.mode; },
      get colours() { return THEME[root.dataset.mode]; },
      get step() { return model.get("step"); },
    };
    const dress = () => {
      root.dataset.mode = currentMode();
      for (const [name, colour] of Object.entries(context.colours)) root.style.setProperty(`--nvx-${name}`, colour);
    };
    dress();
    const view = build(context) ?? {};
    const redraw = () => view.draw?.(context.step);
    const unwatch = watchMode(() => { dress(); redraw(); });
    let width = 0;
    const observer = new ResizeObserver(() => {
      if (!root.clientWidth || root.clientWidth === width) return;
      width = root.clientWidth;
      view.resize?.(width);
      redraw();
      root.dataset.ready = "true";
    });
    observer.observe(root);
    let latest = 0;
    const changed = async () => {
      const mine = ++latest;
      const data = await inflate(model.get("payload"));
      if (mine !== latest) return; // a newer payload arrived while this one was unpacked
      context.data = data;
      view.update?.(data);
      redraw();
    };
    model.on("change:payload", changed);
    return () => { unwatch(); observer.disconnect(); model.off("change:payload", changed); asked.close(); view.destroy?.(); };
  }
  return { render };
}

// ---- the player -------------------------------------------------------------------------------------------------------

const TYPING = "input:not([type=range]), select, textarea";

// Buttons, slider and keys over steps 0 .. length - 1; arrows, page up and down, home, end and space work wherever the
// focus is inside the explorer, except in a text field. onStep(step) draws. atEnd() may be asked for one more step past the
// last (a live engine): a promise of whether there is one. speed: steps per second to begin with. describe(step) is what a screen reader says for the slider,
// position(step) what stands beside it.
export function player(context, { length, onStep, describe = (step) => `step ${step}`, atEnd = null, noun = "step", speed: first = 5,
                                  position = (step) => `${step} / ${Math.max(0, length - 1)}` }) {
  const { model, root } = context;
  let playing = null; // the timer
  const report = throttle(100, () => model.save_changes());
  const step = () => clamp(context.step, 0, Math.max(0, length - 1));

  const go = (next) => {
    next = clamp(next, 0, Math.max(0, length - 1));
    if (next !== context.step) {
      model.set("step", next); // the listener below draws
      if (model.get("follow")) report();
    }
  };
  const forward = async () => {
    if (step() < length - 1) { go(step() + 1); return true; }
    return atEnd ? await atEnd() : false;
  };

  const scrub = h("input", { type: "range", class: "nvx-scrub", min: 0, step: 1, "aria-label": noun, oninput: () => { pause(); go(+scrub.value); } });
  const speed = h("select", { class: "nvx-speed", "aria-label": `${noun}s per second`, title: `${noun}s per second` },
    ...[1, 2, 5, 10, 30].map((n) => h("option", { value: n, selected: n === first }, `${n}/s`)));
  const playButton = iconButton("play", "play", () => toggle());
  const where = h("output", { class: "nvx-position" });
  const node = h("div", { class: "nvx-player", role: "toolbar", "aria-label": "player" },
    iconButton("first", `first ${noun}`, () => { pause(); go(0); }),
    iconButton("back", `${noun} back`, () => { pause(); go(step() - 1); }),
    playButton,
    iconButton("forward", `${noun} forward`, () => { pause(); forward(); }),
    iconButton("last", `last ${noun}`, () => { pause(); go(length - 1); }),
    scrub, where, speed);

  function showPlaying() {
    playButton.replaceChildren(icon(playing ? "pause" : "play"));
    for (const name of ["aria-label", "title"]) playButton.setAttribute(name, playing ? "pause" : "play");
    root.dataset.playing = playing ? "true" : "false";
  }
  function pause() {
    if (!playing) return;
    clearTimeout(playing);
    playing = null;
    showPlaying();
  }
  function play() {
    if (step() >= length - 1 && !atEnd) go(0);
    const tick = async () => {
      const due = performance.now() + 1000 / +speed.value;
      const more = await forward();
      if (playing && more) playing = setTimeout(tick, Math.max(0, due - performance.now()));
      else pause();
    };
    playing = setTimeout(tick, 0);
    showPlaying();
  }
  const toggle = () => (playing ? pause() : play());

  function pressed(event) {
    if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || event.target.matches(TYPING)) return;
    if (event.key === " " && event.target.matches("button")) return; // the button's own key
    const moves = { ArrowRight: forward, ArrowLeft: () => go(step() - 1), Home: () => go(0), End: () => go(length - 1),
                    PageDown: () => go(step() + 10), PageUp: () => go(step() - 10), " ": toggle };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    if (event.key !== " ") pause();
    move();
  }
  root.addEventListener("keydown", pressed);

  function place() {
    scrub.value = step();
    scrub.setAttribute("aria-valuetext", describe(step()));
    where.textContent = position(step());
    root.dataset.step = step();
  }
  const shown = () => { place(); onStep(step()); };
  model.on("change:step", shown);
  const setLength = (n) => {
    length = n;
    scrub.max = Math.max(0, n - 1);
    for (const control of [scrub, ...node.querySelectorAll("button")]) control.disabled = n < 2 && !atEnd;
    place();
  };
  setLength(length);
  showPlaying();
  return { node, go, pause, setLength, get step() { return step(); }, get length() { return length; },
           destroy: () => { pause(); report.cancel(); model.off("change:step", shown); } };
}

// ---- the visual language on a canvas ------------------------------------------------------------------------------------

const place = (seqId) => seqId % THEME.prompt.length;

export const promptColour = (seqId) => THEME.prompt[place(seqId)];
export const decodeColour = (seqId) => THEME.decode[place(seqId)];
export const phaseColour = (seqId, phase) => (phase === "prefill" ? promptColour(seqId) : decodeColour(seqId));
export const textOnPhase = (seqId, phase) => (phase === "prefill" ? THEME.onPrompt : THEME.onDecode)[place(seqId)];

// A canvas drawn in CSS pixels, sharp on any screen. `label` is its text for screen readers; a keyboard can focus it when
// it is `focusable`.
export function surface(label, { focusable = false, ...attributes } = {}) {
  const canvas = h("canvas", { class: "nvx-canvas", role: "img", "aria-label": label, ...(focusable ? { tabindex: 0 } : {}), ...attributes });
  const draw = canvas.getContext("2d");
  const self = {
    canvas, draw, width: 0, height: 0,
    resize(width, height) {
      const ratio = window.devicePixelRatio || 1;
      if (self.width === width && self.height === height && self.ratio === ratio) return;
      Object.assign(self, { width, height, ratio });
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    },
    begin() { // a clean sheet with the text settings that all canvases share
      draw.setTransform(self.ratio, 0, 0, self.ratio, 0, 0);
      draw.clearRect(0, 0, self.width, self.height);
      draw.textBaseline = "middle";
      return draw;
    },
    // Where a mouse event lies, in the units that `draw` uses.
    at(event) {
      const box = canvas.getBoundingClientRect();
      return { x: (event.clientX - box.left) * self.width / box.width, y: (event.clientY - box.top) * self.height / box.height };
    },
  };
  return self;
}

export const font = (size, weight = 400) => `${weight} ${size}px system-ui, "DejaVu Sans", sans-serif`;

// Parallel diagonal lines over the current path: "/" marks what is shared.
export function hatch(draw, x, y, width, height, colour, gap = 5) {
  draw.save();
  draw.clip();
  draw.strokeStyle = colour;
  draw.lineWidth = 1.1;
  draw.beginPath();
  for (let at = gap / 2; at < width + height; at += gap) { draw.moveTo(x + at - height, y + height); draw.lineTo(x + at, y); }
  draw.stroke();
  draw.restore();
}

// A diagonal strike, for what was preempted.
export function strike(draw, x, y, width, height, colour, thickness = 2) {
  draw.strokeStyle = colour;
  draw.lineWidth = thickness;
  draw.beginPath();
  draw.moveTo(x, y);
  draw.lineTo(x + width, y + height);
  draw.stroke();
}

// Where the prompt and the filled part of a block end when none of its parts is too thin to see, as `_seen` in theme.py.
function seen(prompt, filled) {
  const wide = [prompt, Math.max(0, filled - prompt), 1 - Math.max(prompt, filled)].map((part) => (part > 0 ? Math.max(part, THEME.thinnest) : 0));
  wide[wide.indexOf(Math.max(...wide))] -= wide[0] + wide[1] + wide[2] - 1;
  return [wide[0], wide[0] + wide[1]];
}

// A block: a rounded square with its number, as `draw_block` in theme.py draws it. look: {state: "f"ree | "c"ached |
// "u"sed | "s"hared, seqId of its owner, prompt and filled: shares of its slots, references, lit, dim}. Without room for a
// number the square alone is drawn.
export function drawBlock(draw, x, y, size, number, look, colours) {
  const { state, seqId = 0, references = 1 } = look;
  const [prompt, filled] = seen(look.prompt ?? 1, look.filled ?? 1);
  const outline = new Path2D();
  outline.roundRect(x, y, size, size, THEME.rounding * size);
  draw.globalAlpha = look.dim ? 0.3 : 1;
  draw.fillStyle = state === "f" ? colours.free : colours.paper;
  draw.fill(outline);
  let ink = colours.muted;
  if (state === "u" || state === "s") {
    const dark = promptColour(seqId), light = decodeColour(seqId);
    draw.save();
    draw.clip(outline);
    draw.fillStyle = dark;
    draw.fillRect(x, y, size * prompt, size);
    draw.fillStyle = light;
    draw.fillRect(x + size * prompt, y, size * Math.max(0, filled - prompt), size);
    if (state === "s") {
      draw.strokeStyle = THEME.hatch[place(seqId)];
      draw.lineWidth = 1.2;
      draw.beginPath();
      for (let at = 2; at < 2 * size; at += Math.max(4, size / 6)) { draw.moveTo(x + at - size, y + size); draw.lineTo(x + at, y); }
      draw.stroke();
    }
    draw.restore();
    draw.strokeStyle = dark;
    draw.lineWidth = size > 16 ? 1.4 : 1;
    draw.stroke(outline);
    ink = prompt >= 0.7 ? THEME.onPrompt[place(seqId)] : prompt <= 0.3 && filled >= 0.7 ? THEME.onDecode[place(seqId)] : null;
  } else if (state === "c") {
    draw.strokeStyle = colours.muted;
    draw.lineWidth = 1.2;
    draw.stroke(outline);
  }
  if (size >= 16) {
    draw.textAlign = "center";
    draw.font = font(clamp(size * 0.36, 8, 12));
    const counted = references > 1 && size >= 22;
    const [tx, ty] = counted ? [x + size * 0.36, y + size * 0.7] : [x + size / 2, y + size / 2 + 0.5];
    if (ink === null) { // the number lies on an edge between two shades: on a label of its own
      const wide = draw.measureText(number).width + 5, tall = clamp(size * 0.46, 10, 15);
      draw.fillStyle = colours.paper;
      draw.beginPath();
      draw.roundRect(tx - wide / 2, ty - tall / 2 - 0.5, wide, tall, 3);
      draw.fill();
    } else if (state === "s") {
      draw.lineWidth = 2.6;
      draw.lineJoin = "round";
      draw.strokeStyle = promptColour(seqId);
      draw.strokeText(number, tx, ty);
    }
    draw.fillStyle = ink ?? colours.ink;
    draw.fillText(number, tx, ty);
    if (counted) {
      draw.font = font(clamp(size * 0.28, 8, 10), 600);
      const text = `×${references}`, wide = draw.measureText(text).width + 3;
      draw.fillStyle = colours.paper;
      draw.beginPath();
      draw.roundRect(x + size - wide - 1, y + 1, wide, size * 0.34, 2);
      draw.fill();
      draw.fillStyle = colours.ink;
      draw.fillText(text, x + size - wide / 2 - 1, y + 1.5 + size * 0.17);
    }
  }
  draw.globalAlpha = 1;
  if (look.lit) {
    draw.strokeStyle = colours.ink;
    draw.lineWidth = 2.4;
    draw.beginPath();
    draw.roundRect(x - 2, y - 2, size + 4, size + 4, THEME.rounding * size + 2);
    draw.stroke();
  }
}

// JourneyExplorer: one prompt through every room of the engine; at each stop the code that ran, the objects, the blocks.
import { clamp, drawBlock, explorer, h, player, surface } from "./shared.js";

const SHOWN_GROUPS = 12; // blocks of the sequence that are written out, token by token

// ---- reading the journey: pure --------------------------------------------------------------------------------------------

// The next stop in a room after `from`, around the end to the start; -1 when no stop is there.
export function nextIn(stops, room, from) {
  const order = [...stops.keys()].map((i) => (from + 1 + i) % stops.length);
  return order.find((i) => stops[i].room === room) ?? -1;
}

// The stop at which token `index` is first in the sequence; tokens of the prompt are there from the start.
export const stopOfToken = (stops, index) => Math.max(0, stops.findIndex((stop) => stop.tokens > index));

// The first stop of the engine step before or after the one of stop `from`.
export function stepFrom(stops, from, direction) {
  const wanted = stops[from].step + direction;
  if (wanted < stops[0].step) return 0;
  const found = stops.findIndex((stop) => stop.step === wanted);
  return found < 0 ? stops.length - 1 : found;
}

// What a token is at a stop: "later" (not drawn yet), "waiting" (for its key and value), "now" (in this step) or "cached".
export function tokenState(stop, index) {
  if (index >= stop.tokens) return "later";
  if (stop.scheduled && index >= stop.scheduled[0] && index < stop.scheduled[0] + stop.scheduled[1]) return "now";
  return index < stop.computed ? "cached" : "waiting";
}

// How physical block `number` looks at a stop, as `drawBlock` takes it; `place` is its place in stop.blocks.
export function blockLook(data, stop, number, place, before) {
  const size = data.block_size, logical = stop.table.indexOf(number), look = { state: stop.blocks[place], seqId: data.seq_id };
  if (logical >= 0) {
    const share = (tokens) => clamp(tokens - logical * size, 0, size) / size;
    const held = Math.max(stop.computed, stop.scheduled ? stop.scheduled[0] + stop.scheduled[1] : 0);
    Object.assign(look, { filled: share(held), prompt: share(Math.min(held, data.num_prompt_tokens)), lit: !before?.table.includes(number) });
  }
  return look;
}

export const visible = (word) => word.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ /, "·") || "∅";

// ---- the view ----------------------------------------------------------------------------------------------------------

export default explorer((context) => {
  const { data, root } = context, { stops, words } = data;
  root.classList.add("nvx-journey");
  root.style.setProperty("--nvx-dark", data.colours[0]);
  root.style.setProperty("--nvx-light", data.colours[1]);

  const rooms = new Map(data.rooms.map(([name, what]) => [name, h("button", { type: "button", class: "nvx-j-room", title: `${what}: go to the next stop here`,
    onclick: () => steps.go(nextIn(stops, name, steps.step)) }, h("b", {}, name), h("span", {}, what))]));
  const map = h("nav", { class: "nvx-j-map", "aria-label": "the rooms" },
    h("div", { class: "nvx-j-loop" }, h("span", {}, "the new token goes round again")), ...rooms.values());
  const says = h("p", { class: "nvx-j-says", "aria-live": "polite" });
  const where = h("h4", { class: "nvx-heading" }), count = h("span", { class: "nvx-j-count" });
  const code = h("ol", { class: "nvx-j-code", tabindex: 0, role: "region", "aria-label": "source code" });
  const values = h("dl", { class: "nvx-j-values" });
  const text = h("output", { class: "nvx-j-text" });
  const [strip, chips, groups] = tokenStrip();
  const cache = surface("blocks of the cache");
  const cacheWords = h("h4", { class: "nvx-heading" });
  const steps = player(context, { length: stops.length, onStep: draw, noun: "stop", describe: (i) => `${stops[i].room}: ${stops[i].says}` });
  root.append(h("h3", { class: "nvx-title" }, context.model.get("label")), map, steps.node, says,
    h("div", { class: "nvx-j-panes" },
      h("section", {}, h("div", { class: "nvx-j-where" }, where, count), code),
      h("section", {}, h("h4", { class: "nvx-heading" }, "The live objects, at this moment"), values)),
    h("div", { class: "nvx-j-panes" },
      h("section", {}, h("h4", { class: "nvx-heading" }, "The sequence, block by block"), strip,
        h("p", { class: "nvx-j-answer" }, h("span", { class: "nvx-muted" }, "text so far  "), text)),
      h("section", {}, cacheWords, cache.canvas, legend())));
  root.addEventListener("keydown", (event) => { // before the player, whose page keys move by ten
    const direction = { PageDown: 1, PageUp: -1 }[event.key];
    if (!direction || event.target === code) return;
    event.preventDefault();
    steps.pause();
    steps.go(stepFrom(stops, steps.step, direction));
  }, true);

  function tokenStrip() {
    const size = data.block_size, chips = [], groups = [];
    const total = Math.ceil(words.length / size), hidden = Math.max(0, total - SHOWN_GROUPS);
    const strip = h("div", { class: "nvx-j-strip" });
    for (let logical = 0; logical < total; logical++) {
      if (logical > 0 && logical <= hidden) { // the first block, then the last ones
        if (logical === hidden) strip.append(h("span", { class: "nvx-muted" }, `… ${hidden} more blocks …`));
        continue;
      }
      const name = h("span", { class: "nvx-j-block" }), group = h("div", { class: "nvx-j-group" }, name);
      for (let i = logical * size; i < Math.min(words.length, (logical + 1) * size); i++) {
        const chip = h("button", { type: "button", tabindex: -1, class: "nvx-j-token", title: `position ${i}: “${words[i]}”`,
          onclick: () => steps.go(stopOfToken(stops, i)) }, visible(words[i]));
        chips.push([i, chip]);
        group.append(chip);
      }
      for (let i = words.length; i < (logical + 1) * size; i++) group.append(h("span", { class: "nvx-j-slot", title: `position ${i}: empty` }));
      groups.push([logical, name, group]);
      strip.append(group);
    }
    return [strip, chips, groups];
  }

  function draw(index) {
    const stop = stops[clamp(index, 0, stops.length - 1)], before = stops[index - 1];
    for (const [name, button] of rooms) button.setAttribute("aria-current", name === stop.room ? "step" : "false");
    says.setAttribute("aria-live", root.dataset.playing === "true" ? "off" : "polite");
    says.textContent = stop.says;
    drawCode(stop);
    const old = new Map(before?.values);
    values.replaceChildren(...stop.values.flatMap(([name, value]) => [
      h("dt", {}, name), h("dd", { class: old.has(name) && old.get(name) !== value ? "nvx-j-changed" : "" }, value)]));
    for (const [i, chip] of chips)
      chip.className = `nvx-j-token nvx-j-${tokenState(stop, i)} ${i < data.num_prompt_tokens ? "nvx-j-prompt" : "nvx-j-drawn"}`;
    for (const [logical, name, group] of groups) {
      const block = stop.table[logical];
      name.textContent = block === undefined ? "no block" : `block ${block}`;
      group.classList.toggle("nvx-j-held", block !== undefined);
    }
    text.textContent = stop.text || "nothing yet";
    text.classList.toggle("nvx-muted", !stop.text);
    drawCache(stop, before);
  }

  let shownSource = null;
  function drawCode(stop) {
    const source = data.sources[stop.source], lit = new Set(stop.lit);
    const name = `${source.file}:${source.first}`;
    if (shownSource !== stop.source) {
      shownSource = stop.source;
      where.textContent = `${name}  ${stop.source}`;
      code.setAttribute("aria-label", `source code of ${stop.source}, ${name}`);
      code.replaceChildren(...source.lines.map((line, i) => h("li", { value: source.first + i }, h("span", { class: "nvx-j-number", "aria-hidden": "true" }, source.first + i), line || " ")));
    }
    count.textContent = stop.calls === 1 ? "lit: the lines that ran" : stop.calls ? `lit: the lines that ran · called ${stop.calls} times, once a layer` : "not called: a faster twin ran in its place";
    [...code.children].forEach((line, i) => line.classList.toggle("nvx-j-lit", lit.has(source.first + i)));
    const first = [...code.children].find((line) => line.classList.contains("nvx-j-lit"));
    if (first) code.scrollTop = Math.max(0, code.children[0].offsetHeight * (stop.lit[0] - source.first - 2));
  }

  function drawCache(stop, before) {
    if (!cache.width) return;
    const { pitch, columns } = grid(), draw = cache.begin();
    data.numbers.forEach((number, place) => drawBlock(draw, 3 + (place % columns) * pitch, 3 + Math.floor(place / columns) * pitch, pitch - 5, number,
      blockLook(data, stop, number, place, before), context.colours));
    const held = stop.table.length, shown = data.numbers.length < data.num_blocks ? `, ${data.numbers.length} of them drawn` : "";
    cacheWords.textContent = `The cache: ${held} of ${data.num_blocks} blocks hold the sequence${shown}`;
    cache.canvas.setAttribute("aria-label", `${cacheWords.textContent}. Its block table is ${stop.table.join(", ") || "empty"}.`);
  }

  const grid = () => {
    const pitch = clamp(Math.floor(Math.sqrt(cache.width * 150 / data.numbers.length)), 20, 38);
    return { pitch, columns: Math.max(1, Math.floor((cache.width - 2) / pitch)) };
  };

  function legend() {
    const sample = (look, words) => h("span", {}, h("i", { class: `nvx-j-sample nvx-j-${look}` }), words);
    return h("p", { class: "nvx-j-legend nvx-muted" }, sample("prompt", "prompt"), sample("drawn", "generated"), sample("outline", "cached, free to take"), sample("free", "free"),
      sample("new", "new at this stop"));
  }

  return {
    draw: () => draw(steps.step),
    resize(width) {
      root.classList.toggle("nvx-j-narrow", width < 900);
      cache.resize(Math.max(200, cache.canvas.parentElement.clientWidth - 1), 10);
      const { pitch, columns } = grid();
      cache.resize(cache.width, Math.ceil(data.numbers.length / columns) * pitch + 3);
    },
    destroy: () => steps.destroy(),
  };
});

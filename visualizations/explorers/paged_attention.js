// PagedAttentionExplorer: one query walks its block table; the block that is read, its keys' scores, and the running numbers.
import { clamp, count, drawBlock, explorer, font, h, player, promptColour, surface } from "./shared.js";
import { digits, states, whole } from "./softmax_states.js";
import { drawSoftmax } from "./softmax_chart.js";

const ENTRY = 32, TABLE_TOP = 26, CACHE_TOP = 118, CACHE_HIGH = 130, NAME_BELOW = 12; // CACHE_HIGH: what a large cache may take

// ---- reading: pure ------------------------------------------------------------------------------------------------------

// The walk: what `states` finds with a tile per block, each step also with its block and logical number (none before the first).
export function walk({ scores, values, block_table, block_size }) {
  return states(scores, values, scores.map((_, key) => key), block_size)
    .map((state, step) => ({ ...state, logical: step - 1, block: step ? block_table[step - 1] : null }));
}

// The key with the largest weight of those read so far: {key, share}; null before the first block.
export function strongest(scores, { to, highest, total }) {
  if (!to) return null;
  const key = scores.slice(0, to).reduce((best, score, i) => (score > scores[best] ? i : best), 0);
  return { key, share: Math.exp(scores[key] - highest) / total };
}

// What a step did, in sentences.
export function tellBlock(data, all, step) {
  const now = all[step], { block_size: size } = data;
  if (!step) return "Nothing has been read yet: the highest score is −∞, total and acc are 0. The first entry of the block table comes next.";
  const first = now.block * size, read = now.to - now.from;
  const says = [`Entry ${now.logical} of the table says block ${now.block}: ${count(read, "key")} ${read === 1 ? "is" : "are"} read, ${read === 1 ? `from slot ${first}` : `from slots ${first} to ${first + read - 1}`}.`];
  if (read < size) says.push(`The other ${count(size - read, "slot")} of the block ${size - read === 1 ? "lies" : "lie"} behind the last token and must not count.`);
  if (step > 1) says.push(now.rescale < 1 ? `A higher score is among them: total and acc are first multiplied by ${digits(now.rescale)}.` : "No higher score is among them: what was summed stays as it is.");
  if (step === all.length - 1) says.push("That was the last block: acc / total is the answer.");
  return says.join(" ");
}

// The largest squares with which the cache fits in `width` and, down to a smallest size, in `tallest`: {pitch, columns, height}.
export function squares(numBlocks, width, tallest) {
  for (let pitch = 34; ; pitch--) {
    const columns = Math.max(1, Math.floor(width / pitch)), height = Math.ceil(numBlocks / columns) * pitch;
    if (height <= tallest || pitch === 10) return { pitch, columns, height };
  }
}

const short = (word, most) => { const shown = word.replaceAll("\n", "⏎").trim() || "·"; return shown.length > most ? `${shown.slice(0, most - 1)}…` : shown; };

// ---- the view -----------------------------------------------------------------------------------------------------------

export default explorer((context) => {
  const { data, root } = context;
  const { scores, values, block_table: table, block_size: size, seq_id: seqId } = data;
  const all = walk(data), right = whole(scores, values), largest = Math.max(...right.map(Math.abs), ...all.flatMap(({ acc, total }) => acc.map((x) => Math.abs(x / (total || 1))))) || 1;
  const word = (key, most) => (data.words ? short(data.words[key], most) : `key ${key}`);
  const cache = surface("the block table, and the blocks of the cache"), chart = surface("scores of the keys read so far, and their weights");
  const answer = surface("the numbers of acc / total, and those of the final answer");
  const says = h("p", { class: "nvx-caption nvx-pa-says", "aria-live": "polite" }), cards = h("ol", { class: "nvx-path" });
  const answerHeading = h("h4", { class: "nvx-heading" });
  const steps = player(context, { length: all.length, onStep: draw, noun: "block", speed: 1, describe: (step) => tellBlock(data, all, step) });
  root.append(h("h3", { class: "nvx-title" }, context.model.get("label")), says, steps.node, cache.canvas, chart.canvas, cards, answerHeading, answer.canvas,
    h("p", { class: "nvx-legend nvx-muted" }, "Framed and dark: the block read now. Faint: not read, or of another sequence. Outlines: before rescaling. Click into it first; keys: ← → block, space plays."));

  function card(name, value, how) {
    return h("li", { class: "nvx-card" }, h("span", { class: "nvx-card-name" }, name), h("b", {}, value), h("span", { class: "nvx-muted" }, how));
  }

  // How a block of this sequence looks: read before, read now (framed), or still to be read (faint).
  function look(logical, now) {
    const filled = clamp(scores.length - logical * size, 0, size) / size, prompt = clamp(data.num_prompt - logical * size, 0, size) / size;
    return { state: "u", seqId, filled, prompt: Math.min(prompt, filled), dim: logical > now.logical, lit: logical === now.logical };
  }

  function drawCache(now) {
    const { colours } = context, draw = cache.begin(), { pitch, columns } = grid;
    const entry = Math.min(ENTRY, (cache.width - 4) / all.length);
    const at = (block) => ({ x: 2 + (block % columns) * pitch, y: CACHE_TOP + Math.floor(block / columns) * pitch });
    if (now.block !== null) { // from the entry to the block that it names
      const from = { x: 2 + now.logical * entry + (entry - 4) / 2, y: TABLE_TOP + entry - 2 }, to = at(now.block), x = to.x + (pitch - 4) / 2;
      draw.strokeStyle = promptColour(seqId);
      draw.lineWidth = 2;
      draw.beginPath();
      draw.moveTo(from.x, from.y);
      draw.bezierCurveTo(from.x, from.y + 34, x, to.y - 40, x, to.y - 4);
      draw.stroke();
    }
    draw.textAlign = "left";
    draw.font = font(11.5, 600);
    draw.lineWidth = 5;
    draw.lineJoin = "round";
    draw.strokeStyle = colours.paper; // the words stand on the line
    draw.fillStyle = colours.ink;
    for (const [words, y] of [[`block table of sequence ${seqId}: the order of its text`, 9], [`the cache: ${count(data.num_blocks, "block")} in the order of memory`, CACHE_TOP - 13]]) {
      draw.strokeText(words, 2, y);
      draw.fillText(words, 2, y);
    }
    table.slice(0, all.length - 1).forEach((block, logical) => {
      drawBlock(draw, 2 + logical * entry, TABLE_TOP, entry - 4, block, look(logical, now), colours);
      draw.fillStyle = colours.muted;
      draw.font = font(9.5);
      draw.textAlign = "center";
      if (logical !== now.logical) draw.fillText(`${logical}`, 2 + logical * entry + (entry - 4) / 2, TABLE_TOP + entry - 4 + NAME_BELOW);
    });
    const mine = new Map(table.slice(0, all.length - 1).map((block, logical) => [block, logical]));
    for (let block = 0; block < data.num_blocks; block++) {
      const { x, y } = at(block), owner = data.owners[block];
      const appears = mine.has(block) ? look(mine.get(block), now) : owner === undefined ? { state: "f" } : { state: "u", seqId: owner, dim: true };
      drawBlock(draw, x, y, pitch - 4, block, appears, colours);
    }
  }

  function drawAnswer(now) {
    const draw = answer.begin(), { colours } = context, middle = answer.height / 2, high = middle - 3, wide = (answer.width - 4) / right.length;
    draw.fillStyle = colours.line;
    draw.fillRect(2, middle, answer.width - 4, 1);
    right.forEach((end, d) => {
      const x = 2 + d * wide + wide * 0.14, tall = now.total ? now.acc[d] / now.total / largest * high : 0;
      draw.fillStyle = promptColour(seqId);
      draw.fillRect(x, middle - Math.max(tall, 0), wide * 0.72, Math.abs(tall));
      draw.strokeStyle = colours.ink;
      draw.lineWidth = 1.4;
      draw.beginPath();
      draw.moveTo(x - 0.5, middle - end / largest * high);
      draw.lineTo(x + wide * 0.72 + 0.5, middle - end / largest * high);
      draw.stroke();
    });
  }

  function draw() {
    if (!cache.width) return;
    const step = clamp(steps.step, 0, all.length - 1), now = all[step], most = strongest(scores, now);
    drawCache(now);
    drawSoftmax(chart, context.colours, { scores, keys: scores.map((_, key) => key), all, step, tile: size, seqId, unread: false, gap: 6,
                                          name: (key, at, wide) => (key % size === 0 ? `${key}` : "") });
    drawAnswer(now);
    says.textContent = tellBlock(data, all, step);
    says.setAttribute("aria-live", root.dataset.playing === "true" ? "off" : "polite");
    answerHeading.textContent = `acc / total, ${count(right.length, "number")}: bars now, dashes after the last block`;
    cards.replaceChildren(
      card("read now", step ? `block ${now.block}` : "–", step ? `table[${now.logical}], ${count(now.to - now.from, "key")}` : "no block yet"),
      card("highest", digits(now.highest), "of the scores so far"),
      card("rescale", step > 1 ? `× ${digits(now.rescale)}` : "–", "e^(old highest − new)"),
      card("total", digits(now.total), "total × rescale + weights"),
      card("most weight so far", most ? word(most.key, 9) : "–", most ? `${Math.round(100 * most.share)}% of the total, position ${most.key}` : "of no key yet"));
    root.dataset.result = step ? now.acc.map((x) => x / now.total).join(" ") : "";
  }

  let grid = null;
  function resize(width) {
    root.classList.toggle("nvx-narrow", width < 760);
    grid = squares(data.num_blocks, width - 30, CACHE_HIGH);
    cache.resize(width - 26, CACHE_TOP + grid.height + 4);
    chart.resize(width - 26, 230);
    answer.resize(width - 26, 80);
  }

  return { draw, resize, destroy: () => steps.destroy() };
});

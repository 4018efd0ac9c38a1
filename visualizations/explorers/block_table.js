// BlockTableExplorer: choose a token and see its logical block, the physical one, its slot, and everybody who reads it there.
import { THEME } from "./theme.js";
import { clamp, count, decodeColour, drawBlock, explorer, font, h, player, promptColour, surface, textOnPhase, tooltip } from "./shared.js";
import { aboutBlock, blockLooks, headline, held, listed, readRun } from "./run.js";
import { liveControls } from "./live.js";
import { aboutFolded, cacheGrid, cellAt, drawFolded } from "./cache_grid.js";

const TABLES_HIGH = 330, ROW_LABEL = 128, TABLE_AXIS = 14;
const TOKEN_HIGH = 20, TOKEN_ROW = 42, TOKEN_ROWS = 3, TOKENS_READ = 480; // the ribbon shows this many around the chosen one

// ---- reading: pure ------------------------------------------------------------------------------------------------------

// Where position p of a sequence with this block table lives; null when the table does not reach so far.
export function slotOf(table, position, size) {
  const logical = Math.floor(position / size), offset = position % size;
  if (!table || position < 0 || logical >= table.length) return null;
  return { logical, offset, block: table[logical], slot: table[logical] * size + offset };
}

// The tokens that every sequence drew: {seq_id: [[index of the record, token id], ...]}.
export function drawnTokens(records) {
  const drawn = new Map();
  records.forEach((record, index) => {
    for (const [id, token] of Object.entries(record.tokens)) {
      if (!drawn.has(+id)) drawn.set(+id, []);
      drawn.get(+id).push([index, token]);
    }
  });
  return drawn;
}

// How many tokens a sequence has after a record: its prompt, and what it drew until then.
export function lengthAt(run, drawn, id, index) {
  const record = run.records[index], here = record.context_lens[id] ?? 0;
  let length = run.meta.prompts?.[id] ?? here;
  for (const [at] of drawn.get(id) ?? []) if (at <= index) length++;
  return Math.max(length, here);
}

// The text of a token; null when the run does not say what its tokens are.
export function wordAt(texts, drawn, id, position) {
  const prompt = texts?.prompts?.[id];
  if (!prompt) return null;
  const token = position < prompt.length ? prompt[position] : drawn.get(id)?.[position - prompt.length]?.[1];
  return token === undefined ? null : texts.words[token] ?? null;
}

// Who held a block last before a record: {seqId, logical, index}, or null when the run does not know.
export function lastHolder(run, block, index) {
  for (let at = index; at >= 0; at--)
    for (const [id, table] of Object.entries(run.records[at].block_tables)) {
      const logical = table.indexOf(block);
      if (logical >= 0) return { seqId: +id, logical, index: at };
    }
  return null;
}

// How large the tables' blocks are, and which rows and logical blocks fit around the chosen one: {pitch, rows, firstRow,
// columns, first}.
export function tableLayout(width, numRows, longest, row = 0, logical = 0) {
  const room = width - ROW_LABEL - 6;
  const pitch = clamp(Math.min(Math.floor(TABLES_HIGH / Math.max(numRows, 1)), Math.floor(room / Math.max(longest, 1))), 15, 34);
  const rows = Math.min(Math.max(numRows, 1), Math.floor(TABLES_HIGH / pitch)), columns = Math.max(1, Math.floor(room / pitch));
  const window = (all, shown, at) => (all <= shown ? 0 : clamp(Math.floor((at - shown / 3) / 4) * 4, 0, all - shown));
  return { pitch, rows, firstRow: window(numRows, rows, row), columns, first: window(longest, columns, logical) };
}

// Rows of tokens as they flow: [{position, logical, x, row, width}]. A gap stands between blocks, and a row breaks inside a
// block only when the block is wider than a row.
export function flow(positions, size, widthOf, width) {
  const placed = [];
  let x = 0, row = 0;
  for (const [i, position] of positions.entries()) {
    const wide = widthOf(position);
    let needed = wide;
    if (x && position % size === 0) {
      x += 9;
      const block = positions.slice(i, i + size).reduce((sum, p) => sum + widthOf(p) + 2, -2);
      if (block <= width) needed = block;
    }
    if (x && x + needed > width) { x = 0; row++; }
    placed.push({ position, logical: Math.floor(position / size), x, row, width: wide });
    x += wide + 2;
  }
  return placed;
}

export const printable = (word) => word.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ /, "·") || "∅";

// ---- the view -----------------------------------------------------------------------------------------------------------

export default explorer((context) => {
  const { root } = context;
  root.style.setProperty("--nvx-dark", promptColour(0)); // of the legend
  root.style.setProperty("--nvx-light", decodeColour(0));
  root.style.setProperty("--nvx-stripe", THEME.hatch[0]);
  let run = readRun(context.data), drawn = drawnTokens(run.records), texts = context.data.texts;
  // What is chosen: a token (position null: always the newest), or a block that nobody need hold.
  let chosen = { seqId: context.data.chosen?.[0] ?? null, position: context.data.chosen?.[1] ?? null, block: null };
  const widths = new Map(); // of texts, in the ribbon's font
  const widthOfText = (text) => {
    if (!widths.has(text)) { ribbon.draw.font = font(11); widths.set(text, Math.max(18, Math.ceil(ribbon.draw.measureText(text).width) + 8)); }
    return widths.get(text);
  };
  const says = (index) => context.data.says?.[index] ?? headline(run.records[index]);
  let jump = null, chips = [], cells = [], line = [], grid = null;

  const tables = surface("block tables", { focusable: true });
  const cache = surface("blocks of the cache", { focusable: true });
  const order = surface("blocks in the order of their reuse");
  const ribbon = surface("tokens of the sequence", { focusable: true });
  const caption = h("p", { class: "nvx-caption" });
  const numbers = h("p", { class: "nvx-caption nvx-numbers" });
  const path = h("ol", { class: "nvx-path", "aria-live": "polite", "aria-label": "the way from the token to its slot" });
  const tablesHeading = h("h4", { class: "nvx-heading" }), cacheHeading = h("h4", { class: "nvx-heading" }), ribbonHeading = h("h4", { class: "nvx-heading" });
  const orderPart = h("div", { class: "nvx-bt-order" }, h("h4", { class: "nvx-heading" }, "Next to be reused, from the left"), order.canvas);
  const { tip, point } = tooltip(root);
  const controls = context.data.live ? liveControls(context, { chosen: () => chosen.seqId, follow: () => (jump = context.step) }) : null;
  const steps = player(context, {
    length: run.records.length, onStep: draw, describe: (step) => (run.records[step] ? says(step) : "nothing yet"),
    position: (step) => { const [here, end] = [run.records[step], run.records.at(-1)]; return here?.now ? "now" : `${here?.step ?? 0} / ${end?.step ?? 0}`; },
    atEnd: controls ? () => controls.stepOnce() : null, speed: context.data.says ? 1 : 5, // sentences take time to read
  });
  root.append(
    h("div", { class: "nvx-head" }, h("h3", { class: "nvx-title" }, context.model.get("label")), numbers), caption, steps.node, path,
    h("section", { class: "nvx-bt-ribbon" }, ribbonHeading, ribbon.canvas),
    h("div", { class: "nvx-panes" },
      h("section", { class: "nvx-pane" }, tablesHeading, tables.canvas),
      h("section", { class: "nvx-pane nvx-side" }, cacheHeading, cache.canvas, orderPart)),
    ...(controls ? [controls.node] : []), legend(), tip);

  // What is looked at after a record: {seqId, position, length, place (slotOf), block, look}; place is null where there is none.
  function looked(index) {
    const record = run.records[index], ids = Object.keys(record.block_tables).map(Number);
    const [focused, at] = (chosen.seqId === null && context.data.focus?.[index]) || []; // what the step itself is about
    const seqId = chosen.seqId ?? focused ?? ids[0] ?? run.ids[0] ?? null;
    const table = record.block_tables[seqId], length = seqId === null ? 0 : lengthAt(run, drawn, seqId, index);
    const computed = record.context_lens[seqId] ?? 0;
    const position = chosen.position ?? at ?? Math.max(0, (table ? Math.min(computed, length) : length) - 1);
    const place = position < length ? slotOf(table, position, run.meta.block_size) : null;
    return { seqId, position, length, table, computed, place, block: chosen.block ?? place?.block ?? null };
  }

  // ---- one step

  function draw(step) {
    const index = clamp(step, 0, run.records.length - 1), record = run.records[index];
    if (!tables.width || !record) return;
    const at = looked(index), looks = blockLooks(run, record);
    const stored = new Set(Object.values(record.block_tables).flat()).size, pointed = Object.values(record.block_tables).flat().length;
    caption.textContent = says(index);
    numbers.textContent = !pointed ? "" : pointed > stored ? `${pointed} entries of block tables, ${stored} blocks stored: sharing saves ${pointed - stored}`
      : `${count(pointed, "entry").replace("entrys", "entries")} of block tables, each a block of its own`;
    path.setAttribute("aria-live", root.dataset.playing === "true" ? "off" : "polite");
    drawPath(index, at, looks);
    drawRibbon(index, at, record);
    drawTables(at, record);
    drawCache(index, at, record, looks);
    drawOrder(at, record, looks);
    controls?.draw(steps.step, run.records.length, record);
  }

  function drawPath(index, at, looks) {
    const size = run.meta.block_size, { seqId, position, place } = at;
    const card = (name, big, small, kind = "") => h("li", { class: `nvx-card ${kind}` }, h("span", { class: "nvx-card-name" }, name), h("b", {}, big), h("span", { class: "nvx-muted" }, small));
    if (chosen.block !== null) return path.replaceChildren(...blockCards(index, chosen.block, looks[chosen.block], card));
    if (seqId === null) return path.replaceChildren(card("nothing to look at", "no sequence yet", "add a request to begin"));
    const word = wordAt(texts, drawn, seqId, position), what = word === null ? `token ${position}` : `“${printable(word)}”`;
    const first = card(`sequence ${seqId}`, position < at.length ? what : "not there yet", position < at.length ? `position ${position}${chosen.position === null ? ", the newest" : ""}` : `it has ${count(at.length, "token")} so far`);
    first.style.borderColor = promptColour(seqId);
    if (!place) {
      const why = position >= at.length ? `position ${position} is still to come` : at.table ? "drawn, and not in the cache yet: the next step computes it" : whyNone(index, seqId);
      return path.replaceChildren(first, card("no slot", "—", why, "nvx-card-wide"));
    }
    const owners = looks[place.block]?.owners ?? [];
    path.replaceChildren(first,
      card(`logical block`, `${place.logical}, offset ${place.offset}`, `${position} = ${place.logical} × ${size} + ${place.offset}`),
      card("physical block", `${place.block}`, `block_table[${place.logical}] = ${place.block}`),
      card("slot", `${place.slot}`, `${place.block} × ${size} + ${place.offset}` + (position >= at.computed ? ", still to be written" : "")),
      ownersCard(owners));
  }

  function ownersCard(owners) {
    return h("li", { class: "nvx-card" }, h("span", { class: "nvx-card-name" }, owners.length > 1 ? `owners: ${owners.length} references` : "owner"),
      h("span", { class: "nvx-bt-owners" }, ...owners.slice(0, 8).map((owner) => chip(owner.seqId)), owners.length > 8 ? `+${owners.length - 8}` : null),
      h("span", { class: "nvx-muted" }, owners.length > 1 ? "equal prefixes, stored once" : "nobody else reads it"));
  }

  function blockCards(index, block, look, card) {
    if (look.owners.length) {
      const [{ logical }] = look.owners, size = run.meta.block_size;
      return [card("physical block", `${block}`, look.state === "s" ? "shared" : "in use"), card("slots", `${block * size} to ${(block + 1) * size - 1}`, `${size} tokens`),
              card("logical block", `${logical}`, `of its owner${look.owners.length > 1 ? "s" : ""}`), ownersCard(look.owners)];
    }
    const turn = run.records[index].eviction_order?.indexOf(block) ?? -1, soon = turn < 0 ? "nobody holds it" : `place ${turn + 1} of ${run.records[index].eviction_order.length}`;
    if (look.state === "f") return [card("physical block", `${block}`, "free: nobody holds it, nothing in it"), card("in the line of reuse", soon, "empty blocks go first", "nvx-card-wide")];
    const holder = lastHolder(run, block, index), size = run.meta.block_size;
    const words = holder && texts?.prompts?.[holder.seqId]
      ? Array.from({ length: size }, (_, i) => wordAt(texts, drawn, holder.seqId, holder.logical * size + i) ?? "?").map((word) => word.trim() || printable(word)).join(" ") : "";
    return [card("physical block", `${block}`, "cached: free to take, its content can be found"), card("in the line of reuse", soon, "then its content is forgotten"),
            card("it still holds", words ? `“${words}”` : holder ? `logical block ${holder.logical}` : "a full block", holder ? `logical block ${holder.logical} of sequence ${holder.seqId}, which gave it back` : "of a sequence that this run does not show", "nvx-card-wide nvx-card-text")];
  }

  function whyNone(index, seqId) {
    const record = run.records[index], end = run.ended.get(seqId);
    if (end && end.index <= index) return "it has ended and gave its blocks back";
    if (record.preempted.includes(seqId)) return "preempted in this step: it gave all of its blocks back";
    return record.waiting.includes(seqId) ? "it waits, and holds no blocks" : "it has not arrived yet";
  }

  // The tokens of the sequence, block by block.
  function drawRibbon(index, at, record) {
    const { colours } = context, size = run.meta.block_size, draw = ribbon.begin();
    const { seqId, length, table } = at, capacity = Math.max(length, (table?.length ?? 0) * size);
    const reach = Math.ceil(TOKENS_READ / 2 / size) * size, middle = Math.floor(at.position / size) * size;
    const from = length <= TOKENS_READ ? 0 : clamp(middle - reach, 0, length - 1), to = Math.min(capacity, from + TOKENS_READ + size);
    ribbonHeading.textContent = seqId === null ? "No sequence yet" : `Sequence ${seqId}: ${count(length, "token")}, ${at.computed} of them in the cache`;
    draw.font = font(11);
    const words = new Map();
    const widthOf = (position) => {
      if (position >= length) return 15;
      const word = wordAt(texts, drawn, seqId, position), text = word === null ? `${position}` : printable(word);
      words.set(position, text);
      return widthOfText(text);
    };
    const placed = seqId === null ? [] : flow(Array.from({ length: to - from }, (_, i) => from + i), size, widthOf, ribbon.width - 4);
    const rowOf = placed.find((chip) => chip.position === at.position)?.row ?? 0, last = placed.at(-1)?.row ?? 0;
    const top = clamp(rowOf - 1, 0, Math.max(0, last - TOKEN_ROWS + 1));
    chips = placed.filter((chip) => chip.row >= top && chip.row < top + TOKEN_ROWS).map((chip) => ({ ...chip, x: chip.x + 2, y: (chip.row - top) * TOKEN_ROW + 16 }));
    let begun = null;
    for (const [i, chip] of chips.entries()) {
      const key = `${chip.row}:${chip.logical}`;
      if (key !== begun) { // the outline and the name of this stretch of a block
        begun = key;
        let end = chip;
        for (let j = i; j < chips.length && chips[j].row === chip.row && chips[j].logical === chip.logical; j++) end = chips[j];
        const block = table?.[chip.logical], wide = end.x + end.width - chip.x;
        draw.textAlign = "left";
        draw.font = font(10, block !== undefined && block === at.block ? 700 : 400);
        draw.fillStyle = block !== undefined && block === at.block ? colours.ink : colours.muted;
        const full = block === undefined ? "no block" : `${chip.logical} → block ${block}`, brief = block === undefined ? "–" : `${chip.logical}→${block}`;
        draw.fillText(draw.measureText(full).width <= wide ? full : brief, chip.x, chip.y - 9);
        draw.strokeStyle = block === undefined ? colours.line : promptColour(seqId);
        draw.lineWidth = block !== undefined && block === at.block ? 2 : 1;
        draw.beginPath();
        draw.moveTo(chip.x, chip.y + TOKEN_HIGH + 2.5);
        draw.lineTo(chip.x + wide, chip.y + TOKEN_HIGH + 2.5);
        draw.stroke();
      }
    }
    draw.textAlign = "center";
    draw.font = font(11);
    const prompt = run.meta.prompts?.[seqId] ?? length;
    for (const chip of chips) {
      draw.beginPath();
      draw.roundRect(chip.x, chip.y, chip.width, TOKEN_HIGH, 4);
      if (chip.position >= length) { // room for tokens to come
        draw.setLineDash([2, 2]);
        draw.strokeStyle = colours.line;
        draw.lineWidth = 1.2;
        draw.stroke();
        draw.setLineDash([]);
        continue;
      }
      const phase = chip.position < prompt ? "prefill" : "decode", shade = phase === "prefill" ? promptColour(seqId) : decodeColour(seqId);
      const inCache = chip.position < at.computed;
      if (inCache) { draw.fillStyle = shade; draw.fill(); }
      else { draw.strokeStyle = shade; draw.lineWidth = 1.5; draw.stroke(); }
      draw.fillStyle = inCache ? textOnPhase(seqId, phase) : colours.ink;
      draw.fillText(words.get(chip.position), chip.x + chip.width / 2, chip.y + TOKEN_HIGH / 2 + 0.5);
      if (chip.position === at.position && chosen.block === null) {
        draw.strokeStyle = colours.ink;
        draw.lineWidth = 2.2;
        draw.beginPath();
        draw.roundRect(chip.x - 1.5, chip.y - 1.5, chip.width + 3, TOKEN_HIGH + 3, 5);
        draw.stroke();
      }
    }
    const hidden = [top > 0 || from > 0 ? "earlier" : "", last >= top + TOKEN_ROWS || to < capacity ? "later" : ""].filter(Boolean).join(" and ");
    if (hidden) ribbonHeading.textContent += ` (${hidden} ones are not drawn)`;
    ribbon.canvas.setAttribute("aria-label", `Tokens of sequence ${seqId}. Position ${at.position} of ${length} is chosen. Shift with left and right chooses another.`);
  }

  function drawTables(at, record) {
    const { colours } = context, draw = tables.begin(), size = run.meta.block_size;
    const all = Object.entries(record.block_tables).map(([id, table]) => [+id, table]);
    const longest = Math.max(0, ...all.map(([, table]) => table.length)), mineAt = all.findIndex(([id]) => id === at.seqId);
    const { pitch, rows: numRows, firstRow, columns, first } = tableLayout(tables.width, all.length, longest, Math.max(0, mineAt), at.place?.logical);
    const rows = all.slice(firstRow, firstRow + numRows);
    tablesHeading.textContent = "Block tables: logical block → physical block" + (rows.length < all.length ? ` (${rows.length} of ${all.length} sequences)` : "");
    cells = [];
    draw.font = font(10);
    draw.fillStyle = colours.muted;
    draw.textAlign = "center";
    const apart = pitch >= 17 ? 1 : 4;
    for (let i = Math.ceil(first / apart) * apart; i < Math.min(longest, first + columns); i += apart)
      draw.fillText(i, ROW_LABEL + (i - first) * pitch + pitch / 2 - 1, TABLE_AXIS / 2);
    draw.textAlign = "right";
    if (rows.length) draw.fillText("logical block", ROW_LABEL - 8, TABLE_AXIS / 2);
    else { draw.textAlign = "left"; draw.font = font(12); draw.fillText("No sequence holds a block.", 4, TABLE_AXIS + 12); }
    rows.forEach(([id, table], row) => {
      const y = TABLE_AXIS + 2 + row * pitch, context_len = record.context_lens[id], prompt = run.meta.prompts?.[id] ?? context_len;
      const mine = id === at.seqId && chosen.block === null;
      if (mine) { draw.fillStyle = colours.free; draw.fillRect(0, y - 1, tables.width, pitch); }
      draw.textAlign = "right";
      draw.font = font(11.5, mine ? 650 : 400);
      draw.fillStyle = mine ? colours.ink : colours.muted;
      draw.fillText(`sequence ${id}: ${context_len}`, ROW_LABEL - 8, y + pitch / 2 - 1);
      for (let i = first; i < Math.min(table.length, first + columns); i++) {
        const filled = clamp(context_len - i * size, 0, size) / size, block = table[i];
        const x = ROW_LABEL + (i - first) * pitch;
        cells.push({ x, y, pitch, id, logical: i, block });
        drawBlock(draw, x, y, pitch - (pitch > 12 ? 4 : 2), block, { state: record.blocks[block], seqId: id, filled,
          prompt: Math.min(filled, clamp(prompt - i * size, 0, size) / size), references: record.ref_counts[block] ?? 1 }, colours);
      }
      const more = [first > 0 ? "‹" : "", table.length > first + columns ? "›" : ""];
      draw.fillStyle = colours.ink;
      draw.font = font(12);
      if (more[0] && table.length) draw.fillText(more[0], ROW_LABEL - 1, y + pitch / 2 - 1);
      if (more[1]) draw.fillText(more[1], tables.width - 1, y + pitch / 2 - 1);
    });
    for (const cell of cells) if (cell.block === at.block) ring(draw, cell.x, cell.y, cell.pitch, cell.id === at.seqId ? 2.4 : 1.6);
    tables.canvas.setAttribute("aria-label", `Block tables of ${count(all.length, "sequence")}. ` +
      (at.place ? `Sequence ${at.seqId}, logical block ${at.place.logical} is physical block ${at.place.block}. ` : "") + "Up and down choose a sequence, shift with up and down a block.");
  }

  function ring(draw, x, y, pitch, thick) {
    const side = pitch - (pitch > 12 ? 4 : 2);
    draw.strokeStyle = context.colours.ink;
    draw.lineWidth = thick;
    draw.beginPath();
    draw.roundRect(x - 2, y - 2, side + 4, side + 4, 4);
    draw.stroke();
  }

  // An arrow from the block that was copied to the new one.
  function drawCopy(draw, copied, cells, pitch) {
    const [from, to] = (copied ?? []).map((block) => cells.find((cell) => !cell.folded && cell.from === block));
    if (!from || !to) return;
    const middle = (cell) => [cell.x + pitch / 2, cell.y + 0.22 * pitch]; // above the number
    const [[x, y], [toX, toY]] = [middle(from), middle(to)], length = Math.hypot(toX - x, toY - y), short = 0.55 * pitch / length;
    const [endX, endY] = [toX - (toX - x) * short, toY - (toY - y) * short], angle = Math.atan2(toY - y, toX - x);
    draw.strokeStyle = draw.fillStyle = context.colours.ink;
    draw.lineWidth = 2;
    draw.beginPath();
    draw.moveTo(x, y);
    draw.lineTo(endX, endY);
    draw.stroke();
    draw.beginPath();
    draw.moveTo(endX, endY);
    for (const side of [-0.45, 0.45]) draw.lineTo(endX - 9 * Math.cos(angle + side), endY - 9 * Math.sin(angle + side));
    draw.fill();
  }

  function drawCache(index, at, record, looks) {
    const { pitch, cells } = grid, draw = cache.begin();
    for (const cell of cells) {
      if (cell.folded) { drawFolded(draw, cell, pitch, context.colours); continue; }
      const look = looks[cell.from];
      if (at.seqId !== null && look.owners.some((owner) => owner.seqId === at.seqId)) look.seqId = at.seqId;
      look.lit = cell.from === at.block;
      drawBlock(draw, cell.x + 3, cell.y + 3, pitch - 5, cell.from, look, context.colours);
    }
    drawCopy(draw, context.data.copied?.[index], cells, pitch);
    const of = (state) => record.blocks.split(state).length - 1;
    const words = `${held(record)} of ${record.blocks.length} blocks held` + (of("s") ? `, ${of("s")} shared` : "") + (of("c") ? `, ${of("c")} cached` : "");
    cacheHeading.textContent = `The cache: ${words}`;
    cache.canvas.setAttribute("aria-label", `The cache: ${words}. ${at.block === null ? "" : aboutBlock(at.block, looks[at.block], run.meta.block_size)} Comma and full stop choose a block.`);
  }

  function drawOrder(at, record, looks) {
    const blocks = record.eviction_order;
    orderPart.style.display = blocks?.length ? "" : "none";
    line = [];
    if (!blocks?.length) return;
    const draw = order.begin(), side = 27, fits = Math.floor((order.width - 40) / (side + 4));
    blocks.slice(0, fits).forEach((block, i) => {
      const x = 3 + i * (side + 4);
      line.push({ x, block });
      drawBlock(draw, x, 3, side, block, { ...looks[block], lit: block === at.block }, context.colours);
    });
    draw.textAlign = "left";
    draw.font = font(11);
    draw.fillStyle = context.colours.muted;
    if (blocks.length > fits) draw.fillText(`+${blocks.length - fits}`, 5 + fits * (side + 4), 3 + side / 2);
    order.canvas.setAttribute("aria-label", `Next to be reused: blocks ${listed(blocks)}.`);
  }

  function chip(id) {
    const node = h("span", { class: "nvx-chip nvx-is-prefill", title: `choose sequence ${id}` }, `${id}`);
    node.style.setProperty("--nvx-dark", promptColour(id));
    node.style.setProperty("--nvx-on", textOnPhase(id, "prefill"));
    node.dataset.seq = id;
    return node;
  }

  // ---- choosing

  function choose(next) {
    chosen = { seqId: null, position: null, block: null, ...next };
    draw(context.step);
  }
  const now = () => looked(clamp(steps.step, 0, run.records.length - 1));
  const chooseBlock = (block) => {
    const record = run.records[steps.step], mine = now().seqId;
    const owners = Object.entries(record.block_tables).filter(([, table]) => table.includes(block)).map(([id]) => +id);
    if (!owners.length) return choose({ block, seqId: mine });
    const seqId = owners.includes(mine) ? mine : owners[0];
    choose({ seqId, position: record.block_tables[seqId].indexOf(block) * run.meta.block_size });
  };
  const chooseSequence = (by) => {
    const ids = Object.keys(run.records[steps.step].block_tables).map(Number), all = ids.length ? ids : run.ids;
    const at = all.indexOf(now().seqId);
    if (all.length) choose({ seqId: all[(at + by + all.length) % all.length] });
  };
  const chooseToken = (by) => {
    const { seqId, position, length } = now();
    if (seqId !== null) choose({ seqId, position: clamp(position + by, 0, Math.max(0, length - 1)) });
  };
  root.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches("input:not([type=range]), select, textarea") || event.target.closest(".nvx-live") || !run.records.length) return;
    const size = run.meta.block_size, shown = grid.cells.filter((cell) => !cell.folded).map((cell) => cell.from);
    const at = shown.indexOf(now().block), blocks = shown.length;
    const moves = event.shiftKey
      ? { ArrowLeft: () => chooseToken(-1), ArrowRight: () => chooseToken(1), ArrowUp: () => chooseToken(-size), ArrowDown: () => chooseToken(size) }
      : { ArrowUp: () => chooseSequence(-1), ArrowDown: () => chooseSequence(1), Escape: () => choose({}),
          ",": () => chooseBlock(shown[(Math.max(at, 0) - 1 + blocks) % blocks]), ".": () => chooseBlock(shown[(at + 1) % blocks]) };
    if (!moves[event.key]) return;
    event.preventDefault();
    event.stopPropagation(); // the player would take shift with an arrow for an arrow
    moves[event.key]();
  }, true);
  root.addEventListener("click", (event) => { if (event.target.dataset.seq) choose({ seqId: +event.target.dataset.seq }); });

  const hit = {
    cell: (event) => { const { x, y } = tables.at(event); return cells.find((c) => x >= c.x - 1 && x < c.x + c.pitch - 1 && y >= c.y - 1 && y < c.y + c.pitch - 1); },
    token: (event) => { const { x, y } = ribbon.at(event); return chips.find((c) => x >= c.x && x <= c.x + c.width && y >= c.y && y <= c.y + TOKEN_HIGH); },
    cached: (event) => { const { x, y } = cache.at(event); return cellAt(grid, x - 1, y - 1); },
    line: (event) => { const { x } = order.at(event); return line.find((entry) => x >= entry.x && x < entry.x + 29)?.block; },
  };
  tables.canvas.addEventListener("click", (event) => { const cell = hit.cell(event); if (cell) choose({ seqId: cell.id, position: cell.logical * run.meta.block_size }); });
  ribbon.canvas.addEventListener("click", (event) => { const found = hit.token(event); if (found && found.position < now().length) choose({ seqId: now().seqId, position: found.position }); });
  cache.canvas.addEventListener("click", (event) => { const found = hit.cached(event); if (found && !found.folded) chooseBlock(found.from); });
  order.canvas.addEventListener("click", (event) => { const block = hit.line(event); if (block !== undefined) chooseBlock(block); });

  const about = (block) => aboutBlock(block, blockLooks(run, run.records[steps.step])[block], run.meta.block_size);
  tables.canvas.addEventListener("mousemove", (event) => { const cell = hit.cell(event); point(event, cell ? `sequence ${cell.id}, logical block ${cell.logical}: ${about(cell.block)}` : ""); });
  cache.canvas.addEventListener("mousemove", (event) => { const found = hit.cached(event); point(event, !found ? "" : found.folded ? aboutFolded(found) : about(found.from)); });
  order.canvas.addEventListener("mousemove", (event) => { const block = hit.line(event); point(event, block === undefined ? "" : about(block)); });
  ribbon.canvas.addEventListener("mousemove", (event) => {
    const found = hit.token(event), at = now();
    if (!found) return point(event, "");
    const place = slotOf(at.table, found.position, run.meta.block_size);
    point(event, `position ${found.position}: ` + (place ? `slot ${place.slot}, in block ${place.block}` : "no slot yet"));
  });
  for (const { canvas } of [tables, cache, order, ribbon]) canvas.addEventListener("mouseleave", () => point(null, ""));

  function legend() {
    const sample = (kind, words) => h("span", {}, h("i", { class: `nvx-sample nvx-is-${kind}` }), words);
    return h("p", { class: "nvx-legend nvx-muted" }, sample("prompt", "prompt"), sample("drawn", "generated"), sample("shared", "shared, ×references"), sample("cached", "cached, free to take"),
      sample("free", "free"), sample("chosen", "chosen"),
      h("span", {}, "Click into it first; then the keys: ← → step, space plays, ↑ ↓ sequence, shift ← → token, shift ↑ ↓ block of the sequence, [,] and [.] block before and after"));
  }

  // Rows of tokens that the longest sequence will need, so that the picture below keeps its place while the run goes on.
  const tokenRows = () => {
    const last = run.records.length - 1, size = run.meta.block_size;
    const rows = run.ids.slice(0, 64).map((id) => {
      const length = lengthAt(run, drawn, id, last);
      if (length > 200) return TOKEN_ROWS;
      const widthOf = (position) => widthOfText(printable(wordAt(texts, drawn, id, position) ?? `${position}`));
      return (flow(Array.from({ length: Math.ceil(length / size) * size }, (_, i) => i), size, widthOf, ribbon.width - 4).at(-1)?.row ?? 0) + 1;
    });
    return clamp(Math.max(1, ...rows), 1, TOKEN_ROWS);
  };
  const rowsNeeded = () => {
    const heights = run.records.map((record) => {
      const lengths = Object.values(record.block_tables).map((table) => table.length), { pitch, rows } = tableLayout(tables.width, lengths.length, Math.max(0, ...lengths));
      return rows * pitch;
    });
    return Math.max(40, ...heights) + TABLE_AXIS + 6;
  };

  return {
    draw,
    resize(width) {
      const wide = width >= 980, inner = width - 26, side = wide ? Math.round(inner * 0.4) : inner;
      root.classList.toggle("nvx-wide", wide);
      root.classList.toggle("nvx-narrow", width < 820);
      root.style.setProperty("--nvx-side", `${side}px`);
      tables.resize(wide ? inner - side - 20 : inner, 10);
      tables.resize(tables.width, rowsNeeded());
      grid = cacheGrid(run.records, side, 300);
      cache.resize(side, grid.height + 4);
      order.resize(side, 34);
      ribbon.resize(inner, 10);
      ribbon.resize(inner, tokenRows() * TOKEN_ROW);
    },
    update(data) {
      const atEnd = steps.step >= run.records.length - 1;
      run = readRun(data);
      drawn = drawnTokens(run.records);
      texts = data.texts;
      if (chosen.seqId !== null && !run.rows.has(chosen.seqId)) chosen = { seqId: null, position: null, block: null };
      if (chosen.block !== null && chosen.block >= (run.records[0]?.blocks.length ?? 0)) chosen.block = null;
      steps.setLength(run.records.length);
      this.resize(root.clientWidth);
      controls?.update(data.live);
      if (jump === context.step || atEnd || steps.step >= run.records.length) steps.go(run.records.length - 1);
      jump = null;
    },
    destroy() { steps.destroy(); controls?.destroy(); },
  };
});

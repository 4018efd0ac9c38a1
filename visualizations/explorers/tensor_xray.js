// TensorXRay: point at an entry of a step's tensors and see which token, position, slot and sequence it speaks of.
import { clamp, count, decodeColour, drawBlock, explorer, font, h, player, promptColour, surface, textOnPhase } from "./shared.js";

const TOKEN_TENSORS = ["input_ids", "positions", "slot_mapping"];
const GUTTER = 100, COLUMN = 44, LINE = 98, CELL = 19, MOST_LINES = 5;
const SEQ_ROW = 29, MOST_SEQS = 12, BLOCK = 26, BLOCKS_AT = 268, LAST_ROWS = 84;
const HEAD_SHOWN = 14, TAIL_SHOWN = 6, AROUND = 3; // of a long prompt's tokens

// ---- reading the tensors: pure --------------------------------------------------------------------------------------------

// Which sequence of the batch a row of input_ids belongs to.
export function sequenceOfRow(step, row) {
  const cu = step.tensors.cu_seqlens_q;
  for (let i = 0; i + 1 < cu.length; i++) if (row >= cu[i] && row < cu[i + 1]) return i;
  return -1;
}

// Everything that one row of input_ids stands for; `wrong` says where the tensors contradict each other.
export function tokenAt(step, row) {
  const t = step.tensors, size = step.block_size, seq = sequenceOfRow(step, row), owner = step.sequences[seq];
  if (!owner) return null;
  const position = t.positions[row], logical = Math.floor(position / size), block = t.block_tables[seq]?.[logical];
  const slot = t.slot_mapping[row], expected = block === undefined ? null : block * size + position % size;
  const own = owner.start + row - t.cu_seqlens_q[seq], wrong = [];
  if (position !== own) wrong.push(`positions says ${position}; the batch schedules position ${own} here`);
  if (slot !== expected && slot !== -1) wrong.push(`slot_mapping says ${slot}; the block table says ${expected}`);
  if (slot === -1 && position >= owner.num_cached_tokens) wrong.push("slot_mapping says -1, but this token is not in the cache yet");
  if (slot >= 0 && position < owner.num_cached_tokens) wrong.push("this token was found cached; writing it again touches a shared block");
  const last = t.last_rows.indexOf(row);
  return { row, seq, owner, token: t.input_ids[row], position, logical, offset: position % size, block, slot, expected, last, wrong,
           phase: position < owner.num_prompt_tokens ? "prefill" : "decode", pending: owner.pending && row === t.cu_seqlens_q[seq + 1] - 1 };
}

// How many rows of input_ids are contradicted by another tensor.
export function contradictions(step) {
  step.contradictions ??= step.tensors.input_ids.filter((_, row) => tokenAt(step, row)?.wrong.length).length;
  return step.contradictions;
}

export const key = (name, i, j = null) => (j === null ? `${name}:${i}` : `${name}:${i}:${j}`);

// What an entry is about: {rows of input_ids, seq, lit: Set of keys of entries that speak of the same, says}.
export function related(step, { name, i, j }) {
  const t = step.tensors, lit = new Set([key(name, i, j)]);
  const range = (seq) => Array.from({ length: Math.max(0, t.cu_seqlens_q[seq + 1] - t.cu_seqlens_q[seq]) }, (_, k) => t.cu_seqlens_q[seq] + k);
  const ofSequence = (seq) => [key("cu_seqlens_q", seq), key("cu_seqlens_q", seq + 1), key("context_lens", seq)].forEach((k) => lit.add(k));
  const light = (rows) => rows.forEach((row) => [...TOKEN_TENSORS, "token"].forEach((tensor) => lit.add(key(tensor, row))));
  if (TOKEN_TENSORS.includes(name) || name === "last_rows") {
    const row = name === "last_rows" ? t.last_rows[i] : i, at = tokenAt(step, row);
    if (!at) return { rows: [], seq: -1, lit, says: `row ${row} belongs to no sequence: cu_seqlens_q does not reach it` };
    light([row]);
    ofSequence(at.seq);
    lit.add(key("block_tables", at.seq, at.logical));
    if (at.last >= 0) lit.add(key("last_rows", at.last));
    const says = {
      input_ids: at.pending ? "the token that the step before is still drawing: its value is on the device only" : "the token that the embedding looks up for this row",
      positions: `where the token stands in its sequence: RoPE turns it by this, and it attends to positions 0 to ${at.position}`,
      slot_mapping: at.slot === -1 ? "not stored: its block was found in the prefix cache, and shared blocks are never written" : "where this token's key and value are written in the cache of every layer",
      last_rows: "the row whose hidden state becomes logits: this sequence draws its next token",
    }[name];
    return { rows: [row], seq: at.seq, lit, says };
  }
  if (name === "cu_seqlens_q") {
    const seq = Math.min(i, step.sequences.length - 1), rows = i < step.sequences.length ? range(seq) : [];
    light(rows);
    if (rows.length) ofSequence(seq);
    return { rows, seq, lit, says: i < step.sequences.length ? `the row where sequence ${step.sequences[seq].seq_id} begins; the next entry says where it ends` : "the number of all rows: where the last sequence ends" };
  }
  if (name === "context_lens") {
    const rows = range(i);
    light(rows);
    ofSequence(i);
    for (let b = 0; b < Math.ceil(t.context_lens[i] / step.block_size); b++) lit.add(key("block_tables", i, b));
    return { rows, seq: i, lit, says: `keys that the last of its rows sees: ${t.context_lens[i] - rows.length} already in the cache and ${rows.length} of this step` };
  }
  const rows = range(i).filter((row) => Math.floor(t.positions[row] / step.block_size) === j), first = j * step.block_size;
  if (first >= t.context_lens[i]) return { rows: [], seq: i, lit, says: "padding: rows are as long as the longest block table, and context_lens says where to stop" };
  light(rows);
  ofSequence(i);
  t.block_tables.forEach((table, other) => { if (table[j] === t.block_tables[i][j] && first < t.context_lens[other]) lit.add(key("block_tables", other, j)); });
  const until = Math.min(first + step.block_size, t.context_lens[i]) - 1;
  return { rows, seq: i, lit, says: `the physical block of positions ${first} to ${until}` + (rows.length ? `; ${count(rows.length, "row")} of this step ${rows.length === 1 ? "is" : "are"} there` : "; attention only reads it in this step") };
}

// The entry that an arrow leads to. Token tensors lie side by side, one column a row of input_ids; below them one line a sequence.
export function move(step, { name, i, j }, arrow) {
  const t = step.tensors, seqs = step.sequences.length, tokens = t.input_ids.length, across = { ArrowLeft: -1, ArrowRight: 1 }[arrow], down = { ArrowUp: -1, ArrowDown: 1 }[arrow];
  const at = TOKEN_TENSORS.indexOf(name);
  if (at >= 0) {
    if (across) return { name, i: clamp(i + across, 0, tokens - 1) };
    if (at + down < 0) return { name, i };
    return at + down < TOKEN_TENSORS.length ? { name: TOKEN_TENSORS[at + down], i } : { name: "cu_seqlens_q", i: Math.max(0, sequenceOfRow(step, i)) };
  }
  const seq = name === "last_rows" ? sequenceOfRow(step, t.last_rows[i]) : i;
  if (down) {
    if (seq + down < 0) return { name: "slot_mapping", i: t.cu_seqlens_q[0] };
    if (name === "last_rows") return { name, i: clamp(i + down, 0, t.last_rows.length - 1) };
    const lowest = name === "cu_seqlens_q" ? seqs : seqs - 1;
    return { name, i: clamp(seq + down, 0, lowest), ...(j === undefined ? {} : { j }) };
  }
  const here = clamp(seq, 0, seqs - 1), wide = t.block_tables[here].length, drawn = t.last_rows.findIndex((row) => sequenceOfRow(step, row) === here);
  const order = [{ name: "cu_seqlens_q", i: here }, { name: "context_lens", i: here }, ...Array.from({ length: wide }, (_, b) => ({ name: "block_tables", i: here, j: b })), ...(drawn >= 0 ? [{ name: "last_rows", i: drawn }] : [])];
  const from = name === "last_rows" ? order.length - 1 : order.findIndex((entry) => entry.name === name && entry.j === j);
  return order[clamp(from + across, 0, order.length - 1)];
}

// The rows of input_ids that are drawn: all of a short stretch; of a long one its head, its tail and what is chosen. null
// stands where some are left out.
export function shownRows(step, chosen) {
  const cu = step.tensors.cu_seqlens_q, shown = [];
  for (let seq = 0; seq + 1 < cu.length; seq++) {
    const [from, to] = [cu[seq], cu[seq + 1]], whole = to - from <= HEAD_SHOWN + TAIL_SHOWN + 2 * AROUND;
    for (let row = from; row < to; row++) {
      if (whole || row < from + HEAD_SHOWN || row >= to - TAIL_SHOWN || Math.abs(row - chosen) <= AROUND) shown.push(row);
      else if (shown.at(-1) !== null) shown.push(null);
    }
  }
  return shown;
}

export const brief = (word, longest) => {
  const seen = word.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ /, "·") || "∅";
  return seen.length > longest ? seen.slice(0, longest - 1) + "…" : seen;
};

// ---- the view -----------------------------------------------------------------------------------------------------------

export default explorer((context) => {
  const { root } = context;
  let { steps: recorded, words } = context.data;
  root.classList.add("nvx-tx");
  root.style.setProperty("--nvx-dark", promptColour(0)); // of the legend
  root.style.setProperty("--nvx-light", decodeColour(0));
  let chosen = { name: "slot_mapping", i: recorded[0].tensors.input_ids.length - 1 }, hovered = null, cells = { tokens: [], sequences: [] };

  const tokens = surface("tensors with an entry per token", { focusable: true });
  const sequences = surface("tensors with an entry per sequence", { focusable: true });
  const cards = h("ol", { class: "nvx-path", "aria-live": "polite", "aria-label": "what the entry says" });
  const says = h("p", { class: "nvx-tx-says", "aria-live": "polite" });
  const caption = h("p", { class: "nvx-caption" });
  const tokensHeading = h("h4", { class: "nvx-heading" }), sequencesHeading = h("h4", { class: "nvx-heading" });
  const steps = player(context, { length: recorded.length, onStep: draw, describe: (i) => sentence(recorded[i]) });
  if (recorded.length < 2) steps.node.style.display = "none";
  root.append(h("h3", { class: "nvx-title" }, context.model.get("label")), caption, steps.node, cards, says,
    h("section", { class: "nvx-tx-part" }, tokensHeading, tokens.canvas), h("section", { class: "nvx-tx-part" }, sequencesHeading, sequences.canvas), legend());

  function sentence(step) {
    const decodes = step.sequences.filter((seq) => seq.num_tokens === 1).length, rest = step.sequences.length - decodes;
    const parts = [decodes && `${count(decodes, "sequence")} with one token`, rest && `${count(rest, "prompt chunk")}`].filter(Boolean);
    return `${count(step.tensors.input_ids.length, "row")}, no padding: ${parts.join(" and ")}, laid end to end.`;
  }

  function present(entry, step) { // the same entry in another step, or the nearest one
    const t = step.tensors, { name } = entry, all = t[name];
    if (!all.length) return { name: "input_ids", i: 0 };
    const i = clamp(entry.i, 0, all.length - 1);
    return name === "block_tables" ? { name, i, j: clamp(entry.j ?? 0, 0, all[i].length - 1) } : { name, i };
  }

  function draw(at) {
    const step = recorded[clamp(at, 0, recorded.length - 1)];
    if (!tokens.width || !step) return;
    const entry = present(hovered ?? chosen, step), about = related(step, entry);
    const wrong = contradictions(step);
    caption.textContent = sentence(step) + (wrong ? ` ${count(wrong, "row")} in which the tensors contradict each other, underlined.` : "");
    drawTokens(step, entry, about);
    drawSequences(step, entry, about);
    drawCards(step, entry, about);
  }

  const wordOf = (token) => words[token] ?? null;
  const breakable = (name) => name.split(/(?=\[)/).flatMap((part, i) => (i ? [h("wbr"), part] : [part])); // before an index, if at all

  function drawCards(step, entry, about) {
    const t = step.tensors, value = entry.j === undefined ? t[entry.name][entry.i] : t[entry.name][entry.i][entry.j];
    const card = (name, big, small, colour = null) => {
      const node = h("li", { class: "nvx-card" }, h("span", { class: "nvx-card-name" }, ...breakable(name)), h("b", {}, `${big}`), h("span", { class: "nvx-muted" }, small));
      if (colour) node.style.borderColor = colour;
      return node;
    };
    for (const node of [cards, says]) node.setAttribute("aria-live", hovered || root.dataset.playing === "true" ? "off" : "polite");
    const path = `${entry.name}[${entry.i}${entry.j === undefined ? "" : `, ${entry.j}`}]`, first = card(path, value, step.dtypes[entry.name]);
    first.classList.add("nvx-tx-entry");
    const owner = step.sequences[about.seq], row = about.rows.at(entry.name === "cu_seqlens_q" ? 0 : -1), at = row === undefined ? null : tokenAt(step, row);
    const out = [first];
    if (owner) {
      const range = about.rows.length > 1 ? `rows ${about.rows[0]} to ${about.rows.at(-1)}` : row === undefined ? "no row of this step" : `row ${row}`;
      out.push(card("sequence", owner.seq_id, range, promptColour(owner.seq_id)));
    }
    if (at) {
      const which = about.rows.length > 1 ? (entry.name === "cu_seqlens_q" ? "its first token" : "its last token") : "token", word = wordOf(at.token);
      out.push(card(which, at.pending ? "still drawn" : word === null ? at.token : `“${brief(word, 12)}”`, `position ${at.position}` + (at.pending ? "" : `, id ${at.token}`)));
      out.push(card("block", at.block ?? "none", `block_tables[${at.seq}, ${at.logical}], as ${at.position} = ${at.logical} × ${step.block_size} + ${at.offset}`));
      out.push(card("slot", at.slot === -1 ? "not written" : at.slot, at.slot === -1 ? `it is in slot ${at.expected} already` : `${at.block} × ${step.block_size} + ${at.offset}` + (at.slot === at.expected ? "" : ` is ${at.expected}`)));
    }
    cards.replaceChildren(...out);
    const wrong = about.rows.flatMap((r) => tokenAt(step, r)?.wrong ?? []);
    says.classList.toggle("nvx-tx-wrong", wrong.length > 0);
    says.textContent = `${path} = ${value}: ${about.says}.` + (wrong.length ? ` Something is wrong here: ${wrong[0]}.` : "");
    tokens.canvas.setAttribute("aria-label", `Tensors with an entry per token. ${says.textContent} Arrows lead to other entries.`);
    sequences.canvas.setAttribute("aria-label", `Tensors with an entry per sequence. ${says.textContent} Arrows lead to other entries.`);
  }

  // One cell of a tensor. Lit: it speaks of what is chosen.
  function cell(draw, x, y, width, text, { lit, exact, shade = null, ink = null, faded = false, wrong = false }) {
    const { colours } = context;
    draw.beginPath();
    draw.roundRect(x, y, width, CELL - 2, 3);
    if (shade) { draw.fillStyle = shade; draw.fill(); }
    else if (lit) { draw.fillStyle = colours.free; draw.fill(); }
    if (exact || lit) {
      draw.strokeStyle = exact ? colours.ink : colours.muted;
      draw.lineWidth = exact ? 2.4 : 1.1;
      draw.stroke();
    }
    draw.font = font(11, exact ? 700 : 400);
    draw.fillStyle = ink ?? (faded ? colours.muted : colours.ink);
    draw.textAlign = "center";
    draw.fillText(text, x + width / 2, y + (CELL - 2) / 2 + 0.5);
    if (wrong) {
      draw.strokeStyle = "#d2570b";
      draw.lineWidth = 2;
      draw.beginPath();
      draw.moveTo(x + 4, y + CELL - 3);
      draw.lineTo(x + width - 4, y + CELL - 3);
      draw.stroke();
    }
  }

  const columns = () => Math.max(4, Math.floor((tokens.width - GUTTER) / COLUMN));
  const isAt = (entry, name, i, j) => entry.name === name && entry.i === i && entry.j === j;

  function drawTokens(step, entry, about) {
    const { colours } = context, draw = tokens.begin(), t = step.tensors, wide = columns();
    const chosenRow = about.rows[0] ?? t.cu_seqlens_q[Math.max(0, about.seq)] ?? 0;
    const shown = shownRows(step, chosenRow), lines = Math.ceil(shown.length / wide), at = Math.max(0, shown.indexOf(chosenRow));
    const top = lines <= MOST_LINES ? 0 : clamp(Math.floor(at / wide) - 1, 0, lines - MOST_LINES);
    const part = shown.slice(top * wide, (top + MOST_LINES) * wide), hidden = t.input_ids.length - part.filter((row) => row !== null).length;
    tokensHeading.textContent = `One entry per token: ${t.input_ids.length} rows` + (hidden > 0 ? `, ${hidden} of them not drawn` : "");
    cells.tokens = [];
    for (let line = 0; line * wide < part.length; line++) {
      draw.textAlign = "right";
      draw.font = font(11);
      draw.fillStyle = colours.muted;
      ["row", "token", ...TOKEN_TENSORS].forEach((name, i) => draw.fillText(name, GUTTER - 10, line * LINE + (i === 0 ? 7 : 14 + (i - 0.5) * CELL)));
    }
    part.forEach((row, place) => {
      const x = GUTTER + (place % wide) * COLUMN, y = Math.floor(place / wide) * LINE;
      if (row === null) {
        draw.fillStyle = colours.muted;
        draw.textAlign = "center";
        draw.font = font(13);
        draw.fillText("···", x + COLUMN / 2, y + 14 + 1.5 * CELL);
        return;
      }
      const token = tokenAt(step, row), begins = row === t.cu_seqlens_q[token.seq], width = COLUMN - 3;
      const shade = token.phase === "prefill" ? promptColour(token.owner.seq_id) : decodeColour(token.owner.seq_id);
      draw.font = font(9.5);
      draw.textAlign = "center";
      draw.fillStyle = colours.muted;
      draw.fillText(row, x + width / 2, y + 7);
      const word = token.pending ? "?" : wordOf(token.token);
      cell(draw, x, y + 14, width, word === null ? `#${token.owner.seq_id}` : brief(word, 6), { shade, ink: textOnPhase(token.owner.seq_id, token.phase), lit: about.lit.has(key("token", row)) });
      TOKEN_TENSORS.forEach((name, k) => {
        const top = y + 14 + (k + 1) * CELL, value = name === "input_ids" && token.pending ? "?" : t[name][row];
        cell(draw, x, top, width, `${value}`, { lit: about.lit.has(key(name, row)), exact: isAt(entry, name, row), faded: value === -1, wrong: name !== "input_ids" && token.wrong.some((why) => why.startsWith(name)) });
        cells.tokens.push({ x, y: top, width, height: CELL, entry: { name, i: row } });
      });
      cells.tokens.push({ x, y: y + 14, width, height: CELL, entry: { name: "input_ids", i: row } });
      if (begins) { // where a sequence begins, cu_seqlens_q points
        draw.fillStyle = promptColour(token.owner.seq_id);
        draw.fillRect(x - 2.5, y + 2, 2, 12 + 4 * CELL);
      }
    });
  }

  function drawSequences(step, entry, about) {
    const { colours } = context, draw = sequences.begin(), t = step.tensors, size = step.block_size, all = step.sequences.length;
    const first = all <= MOST_SEQS ? 0 : clamp(about.seq - 4, 0, all - MOST_SEQS), last = Math.min(all, first + MOST_SEQS);
    const room = sequences.width - BLOCKS_AT - LAST_ROWS, wide = Math.max(1, Math.floor(room / (BLOCK + 4)));
    const longest = t.block_tables[0]?.length ?? 0, chosenBlock = entry.j ?? (about.rows.length ? Math.floor(t.positions[about.rows[0]] / size) : 0);
    const from = longest <= wide ? 0 : clamp(chosenBlock - Math.floor(wide / 2), 0, longest - wide), shown = Math.min(wide, longest);
    sequencesHeading.textContent = `One entry per sequence: ${all} of them` + (last - first < all ? `, ${last - first} drawn` : "") + (shown < longest ? `; columns ${from} to ${from + shown - 1} of block_tables` : "");
    cells.sequences = [];
    const lastAt = BLOCKS_AT + Math.max(shown * (BLOCK + 4), 122) + 14;
    draw.font = font(11);
    draw.fillStyle = colours.muted;
    draw.textAlign = "center";
    draw.fillText("cu_seqlens_q", 138, 8);
    draw.fillText("context_lens", 218, 8);
    draw.textAlign = "left";
    draw.fillText(`block_tables [${all}, ${longest}]`, BLOCKS_AT, 8);
    draw.fillText("last_rows", lastAt, 8);
    const uses = new Map(); // how many sequences a block belongs to
    t.block_tables.forEach((table, seq) => new Set(table.slice(0, Math.ceil(t.context_lens[seq] / size))).forEach((block) => uses.set(block, (uses.get(block) ?? 0) + 1)));
    const put = (name, i, j, x, y, width, text, extra = {}) => {
      cell(draw, x, y, width, text, { lit: about.lit.has(key(name, i, j ?? null)), exact: isAt(entry, name, i, j), ...extra });
      cells.sequences.push({ x, y, width, height: CELL, entry: j === undefined ? { name, i } : { name, i, j } });
    };
    for (let seq = first; seq < last; seq++) {
      const y = 18 + (seq - first) * SEQ_ROW, owner = step.sequences[seq];
      draw.font = font(11.5, seq === about.seq ? 650 : 400);
      draw.textAlign = "right";
      draw.fillStyle = seq === about.seq ? colours.ink : colours.muted;
      draw.fillText(`sequence ${owner.seq_id}`, GUTTER - 10, y + SEQ_ROW / 2);
      put("cu_seqlens_q", seq, undefined, 116, y + 5, 44, `${t.cu_seqlens_q[seq]}`);
      put("context_lens", seq, undefined, 196, y + 5, 44, `${t.context_lens[seq]}`);
      for (let b = from; b < from + shown; b++) {
        const x = BLOCKS_AT + (b - from) * (BLOCK + 4), block = t.block_tables[seq][b], held = b * size < t.context_lens[seq];
        const share = (n) => clamp(n - b * size, 0, size) / size, filled = share(t.context_lens[seq]);
        if (held) drawBlock(draw, x, y + 2, BLOCK, block, { state: uses.get(block) > 1 ? "s" : "u", seqId: owner.seq_id, filled, prompt: Math.min(filled, share(owner.num_prompt_tokens)), references: uses.get(block) > 1 ? uses.get(block) : 1 }, colours);
        else {
          draw.setLineDash([2, 2]);
          draw.strokeStyle = colours.line;
          draw.lineWidth = 1.2;
          draw.beginPath();
          draw.roundRect(x, y + 2, BLOCK, BLOCK, 3);
          draw.stroke();
          draw.setLineDash([]);
          draw.fillStyle = colours.muted;
          draw.textAlign = "center";
          draw.font = font(9);
          draw.fillText(block, x + BLOCK / 2, y + 2 + BLOCK / 2);
        }
        if (about.lit.has(key("block_tables", seq, b))) {
          const exact = isAt(entry, "block_tables", seq, b);
          draw.strokeStyle = exact ? colours.ink : colours.muted;
          draw.lineWidth = exact ? 2.4 : 1.5;
          draw.beginPath();
          draw.roundRect(x - 1.5, y + 0.5, BLOCK + 3, BLOCK + 3, 4);
          draw.stroke();
        }
        cells.sequences.push({ x, y: y + 2, width: BLOCK, height: BLOCK, entry: { name: "block_tables", i: seq, j: b } });
      }
      const drawn = t.last_rows.findIndex((row) => sequenceOfRow(step, row) === seq);
      if (drawn >= 0) put("last_rows", drawn, undefined, lastAt, y + 5, 44, `${t.last_rows[drawn]}`);
      else { draw.fillStyle = colours.muted; draw.font = font(11); draw.textAlign = "left"; draw.fillText("none", lastAt + 8, y + SEQ_ROW / 2); }
    }
    if (last === all) put("cu_seqlens_q", all, undefined, 116, 18 + (last - first) * SEQ_ROW + 1, 44, `${t.cu_seqlens_q[all]}`);
  }

  // ---- pointing and choosing

  const under = (canvas, list) => (event) => { const { x, y } = canvas.at(event); return list().find((c) => x >= c.x && x <= c.x + c.width && y >= c.y && y <= c.y + c.height)?.entry ?? null; };
  const same = (a, b) => a === b || (a && b && a.name === b.name && a.i === b.i && a.j === b.j);
  for (const [surfaceOf, list] of [[tokens, () => cells.tokens], [sequences, () => cells.sequences]]) {
    const find = under(surfaceOf, list);
    surfaceOf.canvas.style.cursor = "pointer";
    surfaceOf.canvas.addEventListener("mousemove", (event) => { const entry = find(event); if (!same(entry, hovered)) { hovered = entry; draw(context.step); } });
    surfaceOf.canvas.addEventListener("mouseleave", () => { hovered = null; draw(context.step); });
    surfaceOf.canvas.addEventListener("click", (event) => { const entry = find(event); if (entry) { chosen = entry; draw(context.step); } });
    surfaceOf.canvas.addEventListener("keydown", (event) => { // arrows walk the entries here, and the steps everywhere else
      if (!event.key.startsWith("Arrow") || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      hovered = null;
      const step = recorded[steps.step];
      chosen = move(step, present(chosen, step), event.key);
      (TOKEN_TENSORS.includes(chosen.name) ? tokens : sequences).canvas.focus({ preventScroll: true });
      draw(context.step);
    });
  }

  function legend() {
    const sample = (kind, what) => h("span", {}, h("i", { class: `nvx-sample nvx-is-${kind}` }), what);
    return h("p", { class: "nvx-legend nvx-muted" }, sample("prompt", "prompt"), sample("drawn", "generated"), sample("lit", "speaks of the same"), sample("chosen", "chosen"),
      h("span", {}, "Click an entry, then walk with the arrows" + (recorded.length > 1 ? "; with the slider chosen, they step" : "")));
  }

  return {
    draw,
    resize(width) {
      const inner = width - 26;
      root.classList.toggle("nvx-narrow", width < 820);
      tokens.resize(inner, 10);
      const lines = Math.max(...recorded.map((step) => Math.ceil(Math.min(shownRows(step, 0).length + AROUND, step.tensors.input_ids.length) / columns())));
      tokens.resize(inner, clamp(lines, 1, MOST_LINES) * LINE - 4);
      const rows = Math.max(...recorded.map((step) => step.sequences.length));
      sequences.resize(inner, 18 + Math.min(rows, MOST_SEQS) * SEQ_ROW + 24);
    },
    update(data) {
      ({ steps: recorded, words } = data);
      steps.setLength(recorded.length);
      this.resize(root.clientWidth);
    },
    destroy: () => steps.destroy(),
  };
});

// SchedulerExplorer: who runs when, with how many tokens, on which blocks, and why. Replays a run or drives a live one.
import { clamp, count, decodeColour, drawBlock, explorer, font, h, phaseColour, player, promptColour, strike, surface, textOnPhase, tooltip } from "./shared.js";
import { aboutBlock, blockLooks, headline, held, readRun, reasons, tokensOf } from "./run.js";
import { liveControls } from "./live.js";
import { aboutFolded, cacheGrid, cellAt, drawFolded } from "./cache_grid.js";

const AXIS = 18, SMALLEST_COLUMN = 3, LARGEST_COLUMN = 30;

// Where rows and columns lie: {gutter, column, row, first (step shown at the left), visible (columns)}.
export function layout(width, rows, steps, step) {
  const row = clamp(Math.floor(384 / Math.max(rows, 1)), 6, 20);
  const gutter = row >= 12 ? 82 : 30;
  const column = clamp((width - gutter - 8) / Math.max(steps, 1), SMALLEST_COLUMN, LARGEST_COLUMN);
  const visible = Math.max(1, Math.min(steps, Math.floor((width - gutter - 8) / column)));
  const half = Math.max(1, Math.floor(visible / 2)); // the window moves by halves, so that most steps move only the cursor
  const first = clamp(Math.floor((step - half / 2) / half) * half, 0, steps - visible);
  return { gutter, column, row, first, visible, height: rows * row + AXIS };
}

export default explorer((context) => {
  const { root } = context;
  let run = readRun(context.data), selected = null, place = null, grid = null;

  const chart = surface("requests by steps", { focusable: true });
  const cache = surface("blocks of the cache");
  const bar = surface("token budget");
  const back = document.createElement("canvas"); // the chart without cursor
  let backKey = "";
  const caption = h("p", { class: "nvx-caption" });
  const numbers = h("p", { class: "nvx-caption nvx-numbers" });
  const why = h("ul", { class: "nvx-why", "aria-live": "polite", tabindex: 0, "aria-label": "why" });
  const queues = Object.fromEntries(["waiting", "running", "finished"].map((name) => [name, h("div", { class: "nvx-chips" })]));
  const cacheHeading = h("h4", { class: "nvx-heading" });
  const { tip, point } = tooltip(root);
  const controls = context.data.live ? liveControls(context, { chosen: () => selected, follow: () => (jump = context.step) }) : null;
  let jump = null; // to the end when the next data comes, unless the reader has gone elsewhere by then

  const steps = player(context, {
    length: run.records.length, onStep: draw, describe: (step) => (run.records[step] ? headline(run.records[step]) : "nothing yet"),
    position: (step) => { const [here, end] = [run.records[step], run.records.at(-1)]; return here?.now ? "now" : `${here?.step} / ${end.step}`; },
    atEnd: controls ? () => controls.stepOnce() : null,
  });
  root.append(
    h("div", { class: "nvx-head" }, h("h3", { class: "nvx-title" }, context.model.get("label")), numbers), caption, steps.node,
    h("div", { class: "nvx-panes" },
      h("section", { class: "nvx-pane" }, h("h4", { class: "nvx-heading" }, "Who ran when"), chart.canvas),
      h("section", { class: "nvx-pane nvx-side" }, cacheHeading, cache.canvas)),
    h("section", { class: "nvx-budget" }, h("h4", { class: "nvx-heading" }, "This step's token budget"), bar.canvas),
    h("div", { class: "nvx-panes" },
      h("section", { class: "nvx-pane" }, h("h4", { class: "nvx-heading" }, "Why"), why),
      h("section", { class: "nvx-pane nvx-side nvx-queues" },
        ...Object.entries(queues).map(([name, chips]) => h("div", {}, h("h4", { class: "nvx-heading" }, name), chips)))),
    ...(controls ? [controls.node] : []), legend(), tip);

  // ---- one step

  function draw(step) {
    const record = run.records[clamp(step, 0, run.records.length - 1)];
    if (!chart.width || !record) return;
    const index = run.records.indexOf(record);
    place = layout(chart.width, run.ids.length, run.records.length, index);
    drawChart(index);
    const looks = blockLooks(run, record);
    drawCache(record, looks);
    drawBudget(record);
    drawQueues(record, index);
    caption.textContent = headline(record);
    const total = run.totals[index];
    numbers.textContent = [count(total.computed, "token") + " computed so far", total.preemptions && count(total.preemptions, "preemption"),
      total.again && `${total.again} computed again`].filter(Boolean).join(" · ");
    why.setAttribute("aria-live", root.dataset.playing === "true" ? "off" : "polite");
    why.replaceChildren(...reasons(run, index).map(({ seqId, kind, text }) =>
      h("li", { class: seqId !== null && seqId === selected ? "nvx-chosen" : "" }, seqId === null ? null : chip(seqId, kind), ` ${text}`)));
    controls?.draw(steps.step, run.records.length, record);
  }

  function drawChart(index) {
    const { colours } = context, { gutter, column, row, first, visible } = place;
    const key = [chart.width, chart.height, chart.ratio, context.mode, first, visible, run.records.length, run.turn, selected].join();
    if (key !== backKey) {
      backKey = key;
      chart.begin();
      paintRows(chart.draw, colours);
      back.width = chart.canvas.width;
      back.height = chart.canvas.height;
      back.getContext("2d").drawImage(chart.canvas, 0, 0);
    }
    const draw = chart.begin();
    draw.drawImage(back, 0, 0, chart.width, chart.height);
    const x = gutter + (index - first) * column, bottom = run.ids.length * row;
    draw.globalAlpha = 0.62; // what is still to come
    draw.fillStyle = colours.paper;
    draw.fillRect(x + column, 0, (first + visible - index - 1) * column + 10, bottom);
    draw.globalAlpha = 1;
    draw.strokeStyle = colours.ink;
    draw.lineWidth = 1.5;
    draw.strokeRect(x - 0.5, 0.75, Math.max(column, 3) + 1, bottom - 1.5);
    chart.canvas.setAttribute("aria-label", `Requests by steps. ${headline(run.records[index])} ` +
      (selected === null ? "Up and down choose a sequence." : `Sequence ${selected} is chosen.`));
  }

  function paintRows(draw, colours) {
    const { gutter, column, row, first, visible } = place;
    const right = gutter + visible * column, pad = row >= 12 ? 2 : 0.5;
    draw.font = font(row >= 12 ? 11 : 9);
    draw.textAlign = "right";
    const every = Math.ceil(11 / row);
    run.ids.forEach((id, place) => {
      const middle = (place + 0.5) * row;
      if (id === selected) { draw.fillStyle = colours.free; draw.fillRect(0, place * row, right + 8, row); }
      if (place % every === 0 || id === selected) {
        draw.fillStyle = id === selected ? colours.ink : colours.muted;
        draw.fillText(row >= 12 ? `sequence ${id}` : id, gutter - 6, middle + 0.5);
      }
    });
    draw.textAlign = "center";
    for (let index = first; index < first + visible; index++) {
      const record = run.records[index], x = gutter + (index - first) * column;
      const wide = Math.max(column - (column > 5 ? 1.5 : 0), 1);
      const cell = (id) => [x, run.rows.get(id) * row + pad, wide, row - 2 * pad];
      draw.fillStyle = colours.muted;
      for (const id of record.waiting)
        if (!record.preempted.includes(id)) draw.fillRect(x, (run.rows.get(id) + 0.5) * row - 0.6, column, 1.3);
      for (const s of record.scheduled) {
        draw.fillStyle = phaseColour(s.seq_id, s.phase);
        draw.fillRect(...cell(s.seq_id));
        if (record.drafts?.[s.seq_id]) paintDrafts(draw, ...cell(s.seq_id), record.drafts[s.seq_id].length, record.accepted[s.seq_id]);
        if (column >= 17 && row >= 14 && s.phase === "prefill") {
          draw.fillStyle = textOnPhase(s.seq_id, s.phase);
          draw.font = font(10);
          draw.fillText(s.num_tokens, x + wide / 2, (run.rows.get(s.seq_id) + 0.5) * row + 0.5);
        }
      }
      for (const id of record.preempted) {
        const [left, top, width, height] = cell(id);
        draw.fillStyle = colours.paper;
        draw.fillRect(left, top, width, height);
        strike(draw, left, top, width, height, colours.ink, row >= 12 ? 2 : 1.4);
      }
    }
    for (const [id, end] of run.ended) {
      if (end.index < first || end.index >= first + visible) continue;
      const x = gutter + (end.index - first + 1) * column + Math.min(4, column / 2), y = (run.rows.get(id) + 0.5) * row;
      const radius = clamp(row / 5, 1.6, 3.2);
      if (end.reason === "abort") {
        strike(draw, x - radius, y - radius, 2 * radius, 2 * radius, colours.ink, 1.6);
        strike(draw, x - radius, y + radius, 2 * radius, -2 * radius, colours.ink, 1.6);
        continue;
      }
      draw.fillStyle = promptColour(id);
      draw.beginPath();
      draw.arc(x, y, radius, 0, 7);
      draw.fill();
    }
    draw.fillStyle = colours.muted;
    draw.font = font(10);
    const apart = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((n) => n * column >= 34) ?? 1000;
    for (let index = Math.ceil(first / apart) * apart; index < first + visible; index += apart)
      draw.fillText(run.records[index].now ? "now" : run.records[index].step, gutter + (index - first + 0.5) * column, run.ids.length * row + AXIS / 2 + 1);
    draw.textAlign = "right";
    if (run.ids.length) draw.fillText("step", gutter - 6, run.ids.length * row + AXIS / 2 + 1);
  }

  // Drafts are dotted, from the left; those that were refused are struck.
  function paintDrafts(draw, left, top, width, height, drafts, kept) {
    const pitch = width / (drafts + 1), radius = Math.min(pitch / 2.6, height / 5, 2.4);
    draw.fillStyle = draw.strokeStyle = context.colours.ink;
    draw.lineWidth = 1.2;
    for (let i = 0; i < drafts; i++) {
      const x = left + (i + 1) * pitch, y = top + height / 2;
      draw.beginPath();
      draw.arc(x, y, Math.max(radius, 0.6), 0, 7);
      draw.fill();
      if (i >= kept && radius > 1) { draw.beginPath(); draw.moveTo(x - radius, top + height - 2); draw.lineTo(x + radius, top + 2); draw.stroke(); }
    }
  }

  function drawCache(record, looks) {
    const { pitch, cells } = grid, draw = cache.begin();
    for (const cell of cells) {
      if (cell.folded) { drawFolded(draw, cell, pitch, context.colours); continue; }
      const look = looks[cell.from];
      if (selected !== null && look.owners.length) {
        const mine = look.owners.some((owner) => owner.seqId === selected);
        look.dim = !mine;
        if (mine) look.seqId = selected;
      }
      drawBlock(draw, cell.x + 2, cell.y + 2, pitch - 4, cell.from, look, context.colours);
    }
    const shared = record.blocks.split("s").length - 1, cached = record.blocks.split("c").length - 1;
    const words = `${held(record)} of ${record.blocks.length} blocks held` + (shared ? `, ${shared} shared` : "") + (cached ? `, ${cached} cached` : "");
    cacheHeading.textContent = `The cache: ${words}`;
    cache.canvas.setAttribute("aria-label", `The cache: ${words}.`);
  }

  function drawBudget(record) {
    const draw = bar.begin(), { colours } = context, high = 24;
    const most = Math.max(...run.records.map((one) => tokensOf(one))), whole = !most || record.token_budget <= 8 * most;
    const scale = bar.width / (whole ? record.token_budget : 4 * most); // of a budget far out of reach only the beginning
    draw.fillStyle = colours.free;
    draw.beginPath();
    draw.roundRect(0, 0, bar.width, high, 4);
    draw.fill();
    draw.save();
    draw.clip();
    let x = 0;
    draw.font = font(11);
    draw.textAlign = "center";
    for (const s of record.scheduled) {
      const wide = s.num_tokens * scale;
      draw.fillStyle = phaseColour(s.seq_id, s.phase);
      draw.fillRect(x, 0, wide - (wide > 4 ? 1 : 0), high);
      const text = wide > 96 ? `sequence ${s.seq_id}: ${s.num_tokens}` : wide > 17 ? `${s.seq_id}` : "";
      draw.fillStyle = textOnPhase(s.seq_id, s.phase);
      draw.fillText(text, x + wide / 2, high / 2 + 0.5);
      x += wide;
    }
    draw.restore();
    const used = tokensOf(record), left = (record.token_budget - used).toLocaleString("en");
    const words = used === record.token_budget ? "all used" : `${left} unused` + (whole ? "" : ", most of them beyond the bar's end");
    draw.fillStyle = colours.muted;
    draw.textAlign = "right";
    draw.font = font(11);
    if (bar.width - x > 80) draw.fillText(words, bar.width - 8, high / 2 + 0.5);
    bar.canvas.setAttribute("aria-label", `Token budget: ${used} of ${record.token_budget} tokens, ${words}.`);
  }

  function drawQueues(record, index) {
    const running = new Map(record.scheduled.map((s) => [s.seq_id, s.phase]));
    const gone = [...run.ended].filter(([, end]) => end.index <= index).map(([id, end]) => [id, end.reason === "abort" ? "aborted" : "finished"]);
    fill("waiting", record.waiting.map((id) => [id, record.preempted.includes(id) ? "preempted" : "waiting"]));
    fill("running", record.running.filter((id) => !(run.ended.get(id)?.index <= index)).map((id) => [id, running.get(id) === "prefill" ? "prefill" : "decode"]));
    fill("finished", gone.reverse());
  }

  function fill(name, entries) {
    const most = 30, more = entries.length > most ? [h("span", { class: "nvx-muted" }, `+${entries.length - most}`)] : [];
    const chips = entries.slice(0, most).map(([id, kind]) => chip(id, kind));
    queues[name].replaceChildren(...(chips.length ? [...chips, ...more] : [h("span", { class: "nvx-muted" }, "nobody")]));
  }

  function chip(id, kind) {
    const node = h("span", { class: `nvx-chip nvx-is-${kind}` + (id === selected ? " nvx-chosen" : ""), title: `sequence ${id}: ${kind}` }, `${id}`);
    node.style.setProperty("--nvx-dark", promptColour(id));
    node.style.setProperty("--nvx-light", decodeColour(id));
    node.style.setProperty("--nvx-on", textOnPhase(id, "prefill"));
    node.dataset.seq = id;
    return node;
  }

  // ---- pointing and choosing

  const choose = (id) => { selected = id === selected ? null : id; draw(context.step); };
  const choosePlace = (by) => {
    const at = selected === null ? (by > 0 ? -1 : run.ids.length) : run.rows.get(selected);
    selected = run.ids[clamp(at + by, 0, run.ids.length - 1)] ?? null;
    draw(context.step);
  };
  root.addEventListener("keydown", (event) => {
    if (event.target.matches("select, input:not([type=range])") || event.target.closest(".nvx-live")) return;
    if (event.key === "ArrowUp" || event.key === "ArrowDown") { event.preventDefault(); choosePlace(event.key === "ArrowUp" ? -1 : 1); }
    if (event.key === "Escape" && selected !== null) choose(selected);
  }, true);
  root.addEventListener("click", (event) => { if (event.target.dataset.seq) choose(+event.target.dataset.seq); });

  const under = (event) => {
    const { x, y } = chart.at(event), row = Math.floor(y / place.row);
    const index = Math.floor((x - place.gutter) / place.column) + place.first;
    return { id: run.ids[row], index: x >= place.gutter && index < run.records.length ? index : null };
  };
  chart.canvas.addEventListener("click", (event) => {
    const { id, index } = under(event);
    if (index === null) { if (id !== undefined) choose(id); return; }
    steps.pause();
    if (index === steps.step && id !== undefined) choose(id);
    steps.go(index);
  });
  chart.canvas.addEventListener("mousemove", (event) => {
    const { id, index } = under(event);
    point(event, id === undefined || index === null ? "" : cellWords(id, index));
  });
  cache.canvas.addEventListener("mousemove", (event) => {
    const { x, y } = cache.at(event), cell = cellAt(grid, x, y), record = run.records[steps.step];
    if (!cell || !record) return point(event, "");
    point(event, cell.folded ? aboutFolded(cell) : aboutBlock(cell.from, blockLooks(run, record)[cell.from], run.meta.block_size));
  });
  for (const { canvas } of [chart, cache]) canvas.addEventListener("mouseleave", () => point(null, ""));

  function cellWords(id, index) {
    const record = run.records[index], part = record.scheduled.find((s) => s.seq_id === id);
    const head = `sequence ${id}, ${record.now ? "now" : `step ${record.step}`}: `;
    if (record.preempted.includes(id)) return `${head}preempted`;
    if (part) return `${head}${count(part.num_tokens, "token")} from position ${part.start}; ${part.reason}`;
    if (record.left_waiting[id]) return `${head}waits, ${record.left_waiting[id]}`;
    if (record.waiting.includes(id)) return `${head}waits behind others`;
    if (record.running.includes(id)) return `${head}admitted, but nothing of it ran`;
    return "";
  }

  function legend() {
    const entries = [["prefill", "prompt tokens"], ["decode", "a generated token"], ["waiting", "waiting"], ["preempted", "preempted"]];
    return h("p", { class: "nvx-legend nvx-muted" },
      ...entries.map(([kind, words]) => h("span", {}, chip(0, kind), ` ${words}`)),
      ...(run.records.some((record) => Object.keys(record.drafts ?? {}).length) ? [h("span", {}, "dots: drafts, struck when refused")] : []),
      h("span", {}, "● finished"), h("span", {}, "Click into it first; then the keys: ← → step, ↑ ↓ choose, space plays, home, end"));
  }

  return {
    draw,
    resize(width) {
      const wide = width >= 980, inner = width - 26, side = wide ? Math.round(inner * 0.36) : inner;
      root.classList.toggle("nvx-wide", wide);
      root.style.setProperty("--nvx-side", `${side}px`);
      const main = wide ? inner - side - 20 : inner;
      chart.resize(main, layout(main, run.ids.length, run.records.length, 0).height);
      grid = cacheGrid(run.records, side, 400);
      cache.resize(side, grid.height + 4);
      bar.resize(inner, 24);
    },
    update(data) {
      const atEnd = steps.step >= run.records.length - 1;
      run = readRun(data);
      run.turn = data.live?.turn;
      if (selected !== null && !run.rows.has(selected)) selected = null;
      steps.setLength(run.records.length);
      this.resize(root.clientWidth);
      controls?.update(data.live);
      if (jump === context.step || atEnd || steps.step >= run.records.length) steps.go(run.records.length - 1);
      jump = null;
    },
    destroy() { steps.destroy(); controls?.destroy(); },
  };
});

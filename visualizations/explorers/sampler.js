// SamplerExplorer: scores, what each filter leaves of them, the race for one draw, and many draws counted.
import { clamp, decodeColour, explorer, font, h, player, promptColour, surface, tooltip } from "./shared.js";
import { OFF, distance, expectedDistance, exponential, gumbel, keyOf, probability, stagesOf, winner } from "./draws.js";

const STAGE = 47, LABELS = 70, GUTTER = 112, MARGIN = 92; // pixels: a row of bars, the words below, both sides
const RUNNERS = 12, LANE = 22, HEAD = 34;
const FRAME_MILLISECONDS = 10; // of drawing samples between two pictures

// [name, label, low, high, step, what it does]
const SETTINGS = [
  ["temperature", "temperature", 0, 2, 0.05, "divides the scores: below 1 sharpens, above 1 flattens, 0 takes the likeliest"],
  ["top_k", "top-k", 0, 100, 1, "keeps so many of the likeliest tokens; 0 keeps all"],
  ["top_p", "top-p", 0.01, 1, 0.01, "keeps the fewest tokens that add up to this; 1 keeps all"],
  ["min_p", "min-p", 0, 0.5, 0.01, "drops what is less likely than this times the likeliest; 0 keeps all"],
  ["repetition_penalty", "repetition penalty", 1, 2, 0.05, "divides the positive scores of tokens that were there before, and multiplies the others; 1 is off"],
];

export const spoken = (word) => word.replace(/^ /, "·").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
const cutTo = (text, longest) => (text.length > longest ? `${text.slice(0, longest - 1)}…` : text);
const percent = (p) => (p >= 0.0995 ? `${(100 * p).toFixed(0)}%` : p >= 0.00095 ? `${(100 * p).toFixed(1)}%` : p > 0 ? "<0.1%" : "0");

export default explorer((context) => {
  const { data, root } = context;
  const given = data.settings, seen = (row) => [...data.prompt, ...data.output.slice(0, row)];
  const settings = { ...given };
  let row = -1, stages = [], kind = "scores", seed = BigInt(data.seed);
  let draws = 0, counts = new Map(), history = [], last = 0, wanted = 0, frame = 0; // of the distribution at hand
  let chartNow = { ids: [] };

  const told = (step) => (data.output.length ? `the answer went on with ${quoted(data.output[step])}` : "a row of scores");
  const word = (id) => spoken(data.words[id] ?? `token ${id}`);
  const quoted = (id) => `“${(data.words[id] ?? `token ${id}`).replaceAll("\n", "⏎")}”`;
  const says = h("p", { class: "nvx-s-says", "aria-live": "polite" });
  const before = h("p", { class: "nvx-s-text" });
  const chart = surface("what each filter leaves"), race = surface("the race"), trend = surface("how the drawn shares converge");
  const raceHead = h("h4", { class: "nvx-heading" }), trendHead = h("h4", { class: "nvx-heading" });
  const result = h("p", { class: "nvx-s-result", "aria-live": "polite" });
  const { tip, point } = tooltip(root);

  // ---- controls

  const sliders = SETTINGS.filter(([name]) => name !== "repetition_penalty" || data.prompt.length || data.output.length)
    .map(([name, label, low, high, step, what]) => {
      const value = h("output", { class: "nvx-s-value" });
      const input = h("input", { type: "range", min: Math.min(low, given[name]), max: Math.max(high, given[name]), step, "aria-label": label, title: what,
        oninput: () => { settings[name] = +input.value; show(); changed(); } });
      const show = () => {
        value.textContent = settings[name] === OFF[name] ? `${OFF[name]}, off` : name === "temperature" && !settings[name] ? "0, greedy" : settings[name];
        input.setAttribute("aria-valuetext", value.textContent);
      };
      // These keys move this slider, not the step.
      input.addEventListener("keydown", (event) => event.key !== " " && event.stopPropagation());
      const set = () => { input.value = settings[name] = given[name]; show(); };
      return { name, input, show, set, off: () => { input.value = settings[name] = OFF[name]; show(); }, node: h("label", { class: "nvx-s-slider" }, h("span", {}, label), input, value) };
    });
  sliders.forEach((slider) => slider.set());
  const button = (label, title, onclick) => h("button", { type: "button", title, onclick }, label);
  const seedInput = h("input", { type: "text", inputmode: "numeric", class: "nvx-s-seed", value: data.seed, "aria-label": "seed of the noise", title: "seed of the noise",
    oninput: () => { if (/^\d{1,19}$/.test(seedInput.value.trim())) { seed = BigInt(seedInput.value.trim()); restart(); draw(); } } });
  const kinds = h("select", { "aria-label": "show the race as", title: "two pictures of one draw", onchange: () => { kind = kinds.value; drawRace(); } },
    h("option", { value: "scores" }, "scores + noise"), h("option", { value: "times" }, "arrival times"));
  const steps = player(context, { length: data.logits.length, onStep: () => draw(), noun: "token", describe: (step) => `token ${step}: ${told(step)}` });

  root.append(h("h3", { class: "nvx-title" }, context.model.get("label")), says,
    ...(data.logits.length > 1 ? [steps.node] : []), ...(data.prompt.length || data.output.length ? [before] : []),
    h("div", { class: "nvx-s-sliders" }, ...sliders.map((slider) => slider.node),
      h("div", { class: "nvx-s-presets" }, button("As given", "the settings this explorer began with", () => { sliders.forEach((s) => s.set()); changed(); }),
        button("All off", "temperature 1 and no filter: the model's own distribution", () => { sliders.forEach((s) => s.off()); changed(); }))),
    h("div", { class: "nvx-s-panes" },
      h("section", { class: "nvx-s-stages" }, h("h4", { class: "nvx-heading" }, "What each filter leaves"), chart.canvas),
      h("section", { class: "nvx-s-race" }, raceHead, race.canvas,
        h("div", { class: "nvx-row nvx-s-buttons" }, button("Draw", "one more token, with new noise", () => more(1)), button("+ 100", "draw a hundred more", () => more(100)),
          button("+ 10,000", "draw ten thousand more", () => more(10000)), button("Start over", "forget what was drawn", () => { restart(); draw(); }),
          kinds, h("label", {}, "seed ", seedInput)),
        result),
      h("section", { class: "nvx-s-trend" }, trendHead, trend.canvas)), tip);

  // ---- the distribution and its draws

  const stage = () => stages.at(-1);
  const key = (index) => keyOf(seed, row + index); // as the request's own draws: so many tokens before it

  // Another row or other settings: another distribution, so what was drawn before says nothing about it.
  function changed() { row = -1; draw(); }
  function restart() {
    cancelAnimationFrame(frame);
    draws = wanted = frame = 0;
    counts = new Map();
    history = [];
    more(1, false);
  }
  function more(number, animate = true) {
    wanted = draws + number;
    cancelAnimationFrame(frame);
    sample(!animate);
  }
  function sample(quiet) {
    const until = performance.now() + FRAME_MILLISECONDS, left = stage();
    while (draws < wanted && performance.now() < until) {
      last = left.kept === 1 ? 0 : winner(left, key(draws));
      counts.set(last, (counts.get(last) ?? 0) + 1);
      draws++;
      if (Math.log2(draws) * 2 >= history.length) history.push([draws, distance(left, counts, draws)]);
    }
    if (!quiet) { drawRace(); drawTrend(); }
    frame = draws < wanted ? requestAnimationFrame(() => sample(false)) : 0;
  }

  // ---- drawing

  function draw() {
    const now = clamp(steps.step, 0, data.logits.length - 1);
    if (now !== row) {
      row = now;
      stages = stagesOf(Float64Array.from(data.logits[row], (score) => score / data.units), seen(row), settings);
      restart();
    }
    drawText();
    drawStages();
    drawRace();
    drawTrend();
  }

  function drawText() {
    const left = stage(), own = stages[0];
    const changes = stages.slice(1).filter((s) => s.on).length;
    says.setAttribute("aria-live", root.dataset.playing === "true" ? "off" : "polite");
    says.textContent = settings.temperature === 0 ? `Greedy: the likeliest token, ${quoted(left.order[0])}, is taken without a draw.`
      : `${left.kept.toLocaleString("en")} of ${own.kept.toLocaleString("en")} tokens can be drawn` +
        (changes ? `; the likeliest, ${quoted(left.order[0])}, has ${percent(probability(left, 0))}, before the changes ${percent(probability(own, own.order.indexOf(left.order[0])))}.`
          : `, ${quoted(left.order[0])} most easily: ${percent(probability(left, 0))}.`);
    const text = [...data.prompt, ...data.output.slice(0, row)].slice(-data.context).map((id) => data.words[id] ?? "?").join("");
    const room = Math.floor(root.clientWidth / 10), tail = text.slice(-room).replaceAll("\n", "⏎");
    before.replaceChildren(h("span", { class: "nvx-muted" }, "after "), text.length > room ? `…${tail}` : tail, h("b", {}, " ? "));
  }

  // The likeliest tokens by the model's own distribution, in columns; one row a stage.
  function drawStages() {
    if (!chart.width) return;
    const { colours } = context, draw = chart.begin(), own = stages[0];
    const columns = clamp(Math.floor((chart.width - GUTTER - MARGIN) / 20), 6, Math.min(30, own.order.length));
    const pitch = (chart.width - GUTTER - MARGIN) / columns, ids = [...own.order.slice(0, columns)];
    const places = new Map([...new Set(stages.map((s) => s.order))].map((order) => [order, ids.map((id) => order.indexOf(id))]));
    const tables = stages.map((s) => places.get(s.order).map((rank) => probability(s, rank)));
    const tallest = Math.max(...tables.flat());
    chartNow = { ids, tables, pitch };
    stages.forEach((s, line) => {
      const floor = 6 + (line + 1) * STAGE - 8, setting = SETTINGS[[-1, 4, 0, 1, 2, 3][line]];
      draw.textAlign = "right";
      draw.fillStyle = s.on ? colours.ink : colours.muted;
      draw.font = font(12, s.on ? 600 : 400);
      draw.fillText(s.name, GUTTER - 10, floor - 20);
      draw.font = font(11);
      draw.fillStyle = colours.muted;
      draw.fillText(line === 0 ? "at temperature 1" : s.on ? settings[setting[0]] : "off", GUTTER - 10, floor - 5);
      draw.strokeStyle = colours.line;
      draw.lineWidth = 1;
      draw.beginPath();
      draw.moveTo(GUTTER, floor + 0.5);
      draw.lineTo(GUTTER + columns * pitch, floor + 0.5);
      draw.stroke();
      draw.globalAlpha = s.on ? 1 : 0.32;
      ids.forEach((_, i) => {
        const p = tables[line][i], x = GUTTER + i * pitch, high = Math.max((STAGE - 14) * p / tallest, p > 0 ? 1 : 0);
        draw.fillStyle = promptColour(data.colour);
        if (p > 0) draw.fillRect(x + pitch * 0.12, floor - high, pitch * 0.76, high);
        else {
          const fresh = line > 0 && tables[line - 1][i] > 0, arm = 3.5, middle = x + pitch / 2;
          draw.strokeStyle = fresh ? colours.ink : colours.line;
          draw.lineWidth = fresh ? 1.8 : 1.1;
          draw.beginPath();
          for (const way of [1, -1]) { draw.moveTo(middle - arm, floor - 8 - way * arm); draw.lineTo(middle + arm, floor - 8 + way * arm); }
          draw.stroke();
        }
      });
      draw.globalAlpha = 1;
      draw.textAlign = "left";
      draw.fillStyle = s.on ? colours.ink : colours.muted;
      if (s.on) {
        draw.fillText(`${s.kept.toLocaleString("en")} left`, chart.width - MARGIN + 10, floor - 20);
        draw.fillStyle = colours.muted;
        draw.fillText(`likeliest ${percent(probability(s, 0))}`, chart.width - MARGIN + 10, floor - 5);
      }
    });
    draw.font = '11px ui-monospace, "DejaVu Sans Mono", monospace';
    draw.textAlign = "right";
    const top = 6 + stages.length * STAGE + 2;
    ids.forEach((id, i) => {
      draw.save();
      draw.translate(GUTTER + (i + 0.5) * pitch + 3, top);
      draw.rotate(-Math.PI / 3);
      draw.fillStyle = tables.at(-1)[i] > 0 ? colours.ink : colours.muted;
      draw.fillText(cutTo(word(id), 10), 0, 0);
      draw.restore();
    });
    chart.canvas.setAttribute("aria-label", "What each filter leaves. " + stages.filter((s) => s.on).map((s) => `${s.name}: ${s.kept} tokens, ` +
      [0, 1, 2].filter((rank) => rank < s.kept).map((rank) => `${word(s.order[rank])} ${percent(probability(s, rank))}`).join(", ")).join("; ") + ".");
  }

  // One draw: every runner's score and noise, and beside it how often each was drawn so far.
  function drawRace() {
    if (!race.width) return;
    const { colours } = context, draw = race.begin(), left = stage(), noise = key(Math.max(draws - 1, 0)), greedy = settings.temperature === 0;
    const shown = [...Array(Math.min(RUNNERS, left.order.length)).keys()];
    if (last >= shown.length) shown[shown.length - 1] = last; // the winner is always seen
    const lanes = shown.map((rank) => {
      const id = left.order[rank], p = probability(left, rank), time = exponential(noise, id) / p;
      return { rank, id, p, score: Math.log(p), noise: gumbel(noise, id), time, share: (counts.get(rank) ?? 0) / draws };
    });
    const runners = lanes.filter(({ p }) => p > 0);
    const names = 92, gap = 26, tail = 92, wide = race.width - names - gap - tail, x0 = names, w0 = wide * 0.56, x1 = x0 + w0 + gap, w1 = wide * 0.44;
    const won = runners.find((runner) => runner.rank === last);
    const dark = promptColour(data.colour), light = decodeColour(data.colour);
    draw.font = font(11);
    draw.fillStyle = colours.muted;
    draw.textAlign = "left";
    draw.fillText(greedy ? "no noise: the largest score" : kind === "scores" ? "log-probability + Gumbel noise" : "arrival: noise ÷ probability", x0, 8);
    draw.fillText(`share of ${draws.toLocaleString("en")} drawn`, x1, 8);
    let scale;
    if (kind === "scores") {
      const ends = runners.flatMap(({ score, noise }) => [score, greedy ? score : score + noise]);
      const low = Math.max(Math.min(...ends), -14), high = Math.max(...ends) + 0.3;
      scale = (value) => x0 + w0 * clamp((value - low) / Math.max(high - low, 1e-9), 0, 1);
      ticks(low, high, scale);
    } else {
      const high = Math.max(3 * won.time, 1.2);
      scale = (value) => x0 + w0 * Math.min(value / high, 1);
      ticks(0, high, scale);
    }
    const most = Math.max(...runners.map(({ p, share }) => Math.max(p + 2 * Math.sqrt(p * (1 - p) / draws), share)), 1e-9) * 1.02;
    const across = (share) => x1 + w1 * Math.min(share / most, 1);
    ticks(0, most, across, (value) => percent(value));
    lanes.forEach((runner, lane) => {
      const y = HEAD + lane * LANE, middle = y + LANE / 2, best = runner.rank === last;
      if (best) { draw.fillStyle = colours.free; draw.beginPath(); draw.roundRect(0, y + 0.5, race.width, LANE - 1, 4); draw.fill(); }
      draw.textAlign = "right";
      draw.font = `${best ? 700 : 400} 11px ui-monospace, "DejaVu Sans Mono", monospace`;
      draw.fillStyle = runner.p > 0 ? colours.ink : colours.muted;
      draw.fillText(cutTo(word(runner.id), 12), names - 8, middle + 0.5);
      if (runner.p === 0) {
        draw.font = font(11);
        draw.textAlign = "left";
        draw.fillText("× taken out", x0 + 4, middle + 0.5);
        return;
      }
      if (kind === "scores") {
        const from = scale(runner.score), to = scale(greedy ? runner.score : runner.score + runner.noise);
        draw.fillStyle = runner.noise > 0 ? light : colours.line;
        draw.fillRect(Math.min(from, to), middle - 4, Math.abs(to - from), 8);
        draw.fillStyle = dark;
        draw.fillRect(from - 1.5, middle - 6.5, 3, 13);
        dot(to, middle, best);
      } else {
        const to = scale(runner.time), late = runner.time > 3 * won.time && to >= x0 + w0 - 1;
        draw.fillStyle = best ? dark : light;
        draw.fillRect(x0, middle - 6, to - x0, 12);
        if (!late) dot(to, middle, best);
        else { draw.textAlign = "right"; draw.fillStyle = "#1b1e22"; draw.font = font(10); draw.fillText(`${runner.time > 9999 ? "later" : runner.time.toFixed(1)} ▸`, x0 + w0 - 3, middle + 0.5); }
      }
      draw.fillStyle = best ? dark : light;
      draw.fillRect(x1, middle - 5, across(runner.share) - x1, 10);
      const spread = 2 * Math.sqrt(runner.p * (1 - runner.p) / draws);
      draw.strokeStyle = colours.ink;
      draw.lineWidth = 1.2;
      draw.beginPath();
      draw.moveTo(across(Math.max(runner.p - spread, 0)), middle);
      draw.lineTo(across(runner.p + spread), middle);
      draw.moveTo(across(runner.p), middle - 7);
      draw.lineTo(across(runner.p), middle + 7);
      draw.stroke();
      draw.textAlign = "right";
      draw.font = font(11);
      draw.fillStyle = colours.ink;
      draw.fillText(percent(runner.share), race.width - tail + 42, middle + 0.5);
      draw.fillStyle = colours.muted;
      draw.fillText(`of ${percent(runner.p)}`, race.width - 4, middle + 0.5);
    });
    function dot(x, y, best) {
      draw.beginPath();
      draw.arc(x, y, best ? 5 : 3.2, 0, 7);
      draw.fillStyle = best ? dark : colours.paper;
      draw.fill();
      draw.lineWidth = 1.5;
      draw.strokeStyle = dark;
      draw.stroke();
    }
    function ticks(low, high, place, say = (value) => `${+value.toFixed(2)}`) {
      const apart = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000].find((n) => (high - low) / n <= 4) ?? 10000;
      draw.textAlign = "center";
      draw.font = font(10);
      for (let value = Math.ceil(low / apart) * apart; value <= high; value += apart) {
        const x = place(value);
        draw.fillStyle = colours.line;
        draw.fillRect(x - 0.5, HEAD - 2, 1, lanes.length * LANE + 2);
        draw.fillStyle = colours.muted;
        draw.fillText(say(value), x, HEAD - 9);
      }
    }
    const drawn = quoted(left.order[last]);
    raceHead.textContent = greedy ? "No race: greedy" : `The race of draw ${draws.toLocaleString("en")}`;
    const own = data.output.length && draws === 1 && data.recorded && seed === BigInt(data.seed) ? data.output[row] : null;
    const same = own !== null && SETTINGS.every(([name]) => settings[name] === given[name]);
    result.textContent = `${greedy ? "Taken" : "Drawn"}: ${drawn}` + (own === null ? "" : left.order[last] === own ? ". So did the engine." : same ? `. The engine drew ${quoted(own)}.` : `. With its own settings, the engine drew ${quoted(own)}.`);
    const words = runners.slice(0, 4).map((r) => `${word(r.id)} drawn ${percent(r.share)}, expected ${percent(r.p)}`).join("; ");
    race.canvas.setAttribute("aria-label", `After ${draws} draws ${drawn} was the last. ${words}.`);
  }

  // How far the drawn shares are from the probabilities, over the number of draws, both on logarithmic axes.
  function drawTrend() {
    if (!trend.width) return;
    const { colours } = context, draw = trend.begin(), left = stage(), x0 = 40, bottom = trend.height - 18, right = trend.width - 10;
    const most = 10 ** Math.max(3, Math.ceil(Math.log10(Math.max(draws, 1)))), low = 10 ** Math.floor(Math.log10(Math.max(expectedDistance(left, most), 1e-4)) - 0.2);
    const x = (n) => x0 + (right - x0) * Math.log10(n) / Math.log10(most), y = (d) => 6 + (bottom - 6) * Math.log10(clamp(d, low, 1)) / Math.log10(low);
    draw.font = font(10);
    draw.lineWidth = 1;
    for (let d = 1; d >= low * 0.99; d /= 10) line([[x0, y(d)], [right, y(d)]], colours.line, () => { draw.textAlign = "right"; draw.fillText(`${+d.toPrecision(1)}`, x0 - 6, y(d)); });
    for (let n = 1; n <= most; n *= 10) line([[x(n), 6], [x(n), bottom]], colours.line, () => { draw.textAlign = n === most ? "right" : "center"; draw.fillText(n.toLocaleString("en"), n === most ? right : x(n), bottom + 10); });
    const ns = Array.from({ length: 25 }, (_, i) => most ** (i / 24));
    draw.setLineDash([5, 4]);
    line(ns.map((n) => [x(n), y(expectedDistance(left, n))]), colours.muted);
    draw.setLineDash([]);
    draw.lineWidth = 2;
    const seenSoFar = [...history, [draws, distance(left, counts, Math.max(draws, 1))]];
    if (draws) line(seenSoFar.map(([n, d]) => [x(n), y(d)]), promptColour(data.colour));
    const [, d] = seenSoFar.at(-1);
    draw.fillStyle = promptColour(data.colour);
    draw.beginPath();
    draw.arc(x(Math.max(draws, 1)), y(d), 3.5, 0, 7);
    draw.fill();
    trendHead.textContent = `After ${draws.toLocaleString("en")} ${draws === 1 ? "draw" : "draws"} the shares are ${d.toFixed(3)} from the probabilities; ${expectedDistance(left, draws).toFixed(3)} is usual (dashed)`;
    trend.canvas.setAttribute("aria-label", trendHead.textContent);
    function line(points, colour, label) {
      draw.strokeStyle = colour;
      draw.beginPath();
      points.forEach(([px, py], i) => (i ? draw.lineTo(px, py) : draw.moveTo(px, py)));
      draw.stroke();
      draw.fillStyle = colours.muted;
      label?.();
    }
  }

  chart.canvas.addEventListener("mousemove", (event) => {
    const { x, y } = chart.at(event), i = Math.floor((x - GUTTER) / chartNow.pitch), line = Math.floor((y - 6) / STAGE);
    const id = chartNow.ids[i], s = stages[line];
    point(event, id === undefined || x < GUTTER || !s ? "" : `${quoted(id)} (token ${id}), ${s.name}: ` +
      (chartNow.tables[line][i] > 0 ? `${(100 * chartNow.tables[line][i]).toFixed(2)}%` : "taken out"));
  });
  chart.canvas.addEventListener("mouseleave", () => point(null, ""));
  return {
    draw: () => draw(),
    resize(width) {
      const wide = width >= 980, inner = width - 26, main = wide ? Math.floor((inner - 24) * 0.52) : inner, side = wide ? inner - 24 - main : inner;
      root.classList.toggle("nvx-s-wide", wide);
      root.style.setProperty("--nvx-s-main", `${main}px`);
      chart.resize(main, 6 + 6 * STAGE + LABELS);
      race.resize(side, HEAD + RUNNERS * LANE + 2);
      trend.resize(main, 84);
    },
    destroy() { cancelAnimationFrame(frame); steps.destroy(); },
  };
});

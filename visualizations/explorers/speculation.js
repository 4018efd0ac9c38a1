// SpeculationExplorer: the text so far, this step's guesses, and both models' distributions at the position chosen.
import { clamp, count, decodeColour, explorer, h, player, promptColour, textOnPhase } from "./shared.js";

export const visible = (word) => word.replaceAll("\n", "⏎").replaceAll(" ", "·") || "∅";

// What happened to the guess at a position, in a sentence.
export function verdict(position) {
  if (position.guess === null) return `No guess was left for this position: the model drew “${visible(position.drawn)}” by itself.`;
  if (position.kept) return `The guess was “${visible(position.guess)}”, and the model drew the same: it is kept.`;
  return `The guess was “${visible(position.guess)}”, the model drew “${visible(position.drawn)}”: the guess and all behind it are struck.`;
}

export default explorer((context) => {
  const { data, root } = context;
  let chosen = 0;
  const says = h("p", { class: "nvx-caption", "aria-live": "polite" }), text = h("p", { class: "nvx-v-text" });
  const guesses = h("div", { class: "nvx-v-guesses", role: "listbox", tabindex: 0, "aria-label": "this step's guesses" });
  const told = h("p", { class: "nvx-v-told", "aria-live": "polite" }), bars = h("div", { class: "nvx-v-bars" });
  const headline = (step) => {
    const { positions, accepted, struck, before } = data.steps[step], made = accepted + struck.length;
    return `Step ${step}, after ${count(before, "token")}: ` + (made ? `${made} ${made === 1 ? "guess" : "guesses"}, ${accepted} kept; with the model's own token the text grows by ${data.steps[step].new}.`
      : "no guesses; the model draws one token.");
  };
  const steps = player(context, { length: data.steps.length, onStep: () => { chosen = 0; draw(); }, describe: headline });
  root.append(h("h3", { class: "nvx-title" }, context.model.get("label")), says, steps.node, text, guesses, told, bars,
    h("p", { class: "nvx-legend nvx-muted" }, "dotted: a guess; struck: refused; dark: the model's own token. Click into it first; keys: ← → step, ↑ ↓ choose a guess."));

  function piece(word, kind, pick) {
    const node = h("span", { class: `nvx-v-piece nvx-v-${kind}` }, visible(word));
    node.style.setProperty("--nvx-dark", promptColour(data.colour));
    node.style.setProperty("--nvx-light", decodeColour(data.colour));
    node.style.setProperty("--nvx-on", textOnPhase(data.colour, kind === "own" ? "prefill" : "decode"));
    if (pick !== undefined) {
      node.dataset.position = pick;
      node.setAttribute("role", "option");
      node.setAttribute("aria-selected", pick === chosen);
      if (pick === chosen) node.classList.add("nvx-v-chosen");
    }
    return node;
  }

  function bar(name, share, colour) {
    const fill = h("i", { class: "nvx-v-fill" });
    fill.style.width = `${Math.round(1000 * share) / 10}%`;
    fill.style.background = colour;
    return h("span", { class: "nvx-v-bar", title: `${name}: ${share}` }, fill, h("em", {}, share >= 0.001 ? share.toFixed(3) : "<0.001"));
  }

  function draw() {
    const step = data.steps[clamp(steps.step, 0, data.steps.length - 1)], position = step.positions[clamp(chosen, 0, step.positions.length - 1)];
    says.textContent = headline(steps.step);
    text.textContent = data.words.slice(0, step.before).join("") || "(the answer begins here)";
    const line = step.positions.map((p, i) => piece(p.kept ? p.guess : p.drawn, p.kept ? "kept" : "own", i));
    guesses.replaceChildren(...line, ...step.struck.map((word) => piece(word, "struck")));
    told.textContent = verdict(position);
    const two = position.bars.some(([, , draft]) => draft !== null);
    bars.replaceChildren(
      h("div", { class: "nvx-v-row nvx-muted" }, h("span", {}, "token"), h("span", {}, "the model"), h("span", {}, two ? "the drafter" : "")),
      ...position.bars.map(([word, own, draft, marked]) => h("div", { class: `nvx-v-row${marked ? " nvx-v-marked" : ""}` },
        h("span", { class: "nvx-v-word" }, visible(word) + (word === position.guess ? "  guess" : "") + (word === position.drawn ? "  drawn" : "")),
        bar("the model", own, promptColour(data.colour)), draft === null ? h("span", {}) : bar("the drafter", draft, decodeColour(data.colour)))));
  }

  guesses.addEventListener("click", (event) => { const at = event.target.dataset.position; if (at !== undefined) { chosen = +at; draw(); } });
  root.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return;
    event.preventDefault();
    chosen = clamp(chosen + (event.key === "ArrowDown" ? 1 : -1), 0, data.steps[steps.step].positions.length - 1);
    draw();
  }, true);

  return { draw, destroy: () => steps.destroy() };
});

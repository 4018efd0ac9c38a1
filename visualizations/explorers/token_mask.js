// TokenMaskExplorer: the text so far, the tokens that may follow, and both distributions: the model's, and behind the mask.
import { count, decodeColour, explorer, h, player, promptColour, textOnPhase } from "./shared.js";

export const tokenWords = (word) => word.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "·") || "∅";

// A share as a reader wants it: 72%, 0.7%, and no zero where something is left.
export function percentWords(share) {
  const percent = 100 * share;
  if (percent >= 99.95) return "100%";
  if (percent >= 1) return `${+percent.toPrecision(3)}%`;
  return percent >= 0.001 ? `${+percent.toPrecision(1)}%` : "under 0.001%";
}

// What the mask of a step does, in a sentence.
export function tellMask(step, vocabSize) {
  const drawn = step.rows.find(([, , , isDrawn]) => isDrawn), [first, , behind] = step.rows[0];
  const begins = `${count(step.allowed, "token")} of ${vocabSize.toLocaleString("en")} may come next`;
  const holds = `${step.allowed === 1 ? "it holds" : "they hold"} ${percentWords(step.kept)} of the probability`;
  if (behind === null) return `${begins}; ${holds}. The model's first choice, “${tokenWords(first)}”, is forbidden: it writes “${tokenWords(drawn[0])}”.`;
  if (first !== drawn[0]) return `${begins}; ${holds}. “${tokenWords(drawn[0])}” is drawn.`;
  return `${begins}; ${holds}. The model's first choice, “${tokenWords(first)}”, is among them.`;
}

export default explorer((context) => {
  const { data, root } = context;
  const says = h("p", { class: "nvx-caption", "aria-live": "polite" }), text = h("p", { class: "nvx-k-text" });
  const chips = h("div", { class: "nvx-k-chips", "aria-label": "tokens that may come next" }), rows = h("div", { class: "nvx-k-rows" });
  const at = (step) => Math.min(step, data.steps.length - 1);
  const steps = player(context, { length: data.steps.length, onStep: draw, noun: "token", describe: (step) => tellMask(data.steps[at(step)], data.vocab_size) });
  root.append(h("h3", { class: "nvx-title" }, context.model.get("label")), says, steps.node, text,
    h("p", { class: "nvx-heading" }, "May come next, likeliest first"), chips, rows,
    h("p", { class: "nvx-legend nvx-muted" }, "dark: drawn; struck: forbidden; · is a blank, ⏎ a new line. Click into it first; keys: ← → token, space plays."));

  function bar(name, share, colour) {
    const fill = h("i", { class: "nvx-k-fill" });
    fill.style.width = `${Math.round(1000 * share) / 10}%`;
    fill.style.background = colour;
    return h("span", { class: "nvx-k-bar", title: `${name}: ${share}` }, fill, h("em", {}, percentWords(share)));
  }

  function chip(word, isDrawn) {
    const node = h("span", { class: `nvx-k-chip${isDrawn ? " nvx-k-drawn" : ""}` }, tokenWords(word));
    node.style.setProperty("--nvx-own", isDrawn ? promptColour(data.colour) : decodeColour(data.colour));
    node.style.setProperty("--nvx-on", textOnPhase(data.colour, isDrawn ? "prefill" : "decode"));
    return node;
  }

  function draw() {
    const place = at(steps.step), step = data.steps[place], drawn = data.words[place], more = step.allowed - step.chips.length;
    says.textContent = tellMask(step, data.vocab_size);
    text.replaceChildren(data.words.slice(0, place).join("") || "(the answer begins here) ", h("mark", { class: "nvx-k-next" }, tokenWords(drawn)));
    chips.replaceChildren(...step.chips.map((word) => chip(word, word === drawn)), ...(more > 0 ? [h("span", { class: "nvx-muted" }, `and ${more.toLocaleString("en")} more`)] : []));
    rows.replaceChildren(
      h("div", { class: "nvx-k-row nvx-muted" }, h("span", {}, "token"), h("span", {}, "the model"), h("span", {}, "behind the mask")),
      ...step.rows.map(([word, own, masked, isDrawn]) => h("div", { class: `nvx-k-row${isDrawn ? " nvx-k-marked" : ""}` },
        h("span", { class: masked === null ? "nvx-k-word nvx-k-struck" : "nvx-k-word" }, tokenWords(word) + (isDrawn ? "  drawn" : "")),
        bar("the model", own, decodeColour(data.colour)),
        masked === null ? h("span", { class: "nvx-muted" }, "forbidden") : bar("behind the mask", masked, promptColour(data.colour)))));
    root.dataset.allowed = step.allowed;
  }

  return { draw, destroy: () => steps.destroy() };
});

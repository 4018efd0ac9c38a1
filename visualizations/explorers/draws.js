// From scores to a token, as nanovllm does it: the filters of layers/sampler.py, the noise of layers/noise.py, and the
// race between them. Nothing here draws on the screen.

// ---- filters --------------------------------------------------------------------------------------------------------------

// Scores after the repetition penalty; `seen` are the ids of the tokens so far. The scores stay as they are.
export function penalised(scores, seen, penalty) {
  if (penalty === 1) return scores;
  const changed = Float64Array.from(scores);
  for (const id of new Set(seen)) changed[id] = scores[id] > 0 ? scores[id] / penalty : scores[id] * penalty;
  return changed;
}

// Token ids, the likeliest first; of equals the lower id.
export function ranked(scores) {
  return Uint32Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a] || a - b);
}

// A softmax, the likeliest first: exp of how far each score lies below the best, and their sum. In this order every
// filter keeps a beginning, so what one leaves is a number of tokens and the sum of their weights.
function weighed(scores, order, temperature) {
  const weights = new Float64Array(order.length);
  let sum = 0;
  for (let rank = 0; rank < order.length; rank++) sum += weights[rank] = Math.exp((scores[order[rank]] - scores[order[0]]) / temperature);
  return { weights, kept: order.length, sum };
}

function cut({ weights }, kept) {
  let sum = 0;
  for (let rank = 0; rank < kept; rank++) sum += weights[rank];
  return { weights, kept, sum };
}

// By value, not by rank: ties with the k-th stay.
function topK(stage, k) {
  let kept = Math.min(k, stage.kept);
  while (kept < stage.kept && stage.weights[kept] === stage.weights[kept - 1]) kept++;
  return cut(stage, kept);
}

// Tokens stay while the likelier ones add up to less than p: the one that crosses it stays, too.
function topP(stage, p) {
  let kept = 0;
  for (let before = 0; kept < stage.kept && before < p; kept++) before += stage.weights[kept] / stage.sum;
  return cut(stage, Math.max(kept, 1));
}

function minP(stage, p) {
  let kept = stage.kept;
  while (kept > 1 && stage.weights[kept - 1] < p * stage.weights[0]) kept--;
  return cut(stage, kept);
}

export const OFF = { temperature: 1, top_k: 0, top_p: 1, min_p: 0, repetition_penalty: 1 };

// What each filter leaves, in the sampler's order: [{name, on, order, weights, kept, sum}]. The last is what is drawn from.
// Temperature 0 is greedy: one token stays, and the filters have nothing to do.
export function stagesOf(scores, seen, settings) {
  const { temperature, top_k, top_p, min_p, repetition_penalty } = settings;
  const own = ranked(scores), changed = penalised(scores, seen, repetition_penalty);
  const order = changed === scores ? own : ranked(changed), greedy = temperature === 0;
  const stages = [{ name: "model's own", on: true, order: own, ...weighed(scores, own, 1) }];
  const add = (name, on, next) => stages.push({ ...stages.at(-1), name, on, ...(on ? next() : {}) });
  add("repetition", repetition_penalty !== 1, () => ({ order, ...weighed(changed, order, 1) }));
  add("temperature", temperature !== 1, () => (greedy ? cut(weighed(changed, order, 1), 1) : weighed(changed, order, temperature)));
  add("top-k", top_k > 0 && !greedy, () => topK(stages.at(-1), top_k));
  add("top-p", top_p < 1 && !greedy, () => topP(stages.at(-1), top_p));
  add("min-p", min_p > 0 && !greedy, () => minP(stages.at(-1), min_p));
  return stages;
}

export const probability = (stage, rank) => (rank < stage.kept ? stage.weights[rank] / stage.sum : 0);

// ---- noise ----------------------------------------------------------------------------------------------------------------

const wrap64 = (x) => BigInt.asUintN(64, x);

function mix64(x) {
  x = wrap64((x ^ (x >> 30n)) * 0xbf58476d1ce4e5b9n);
  x = wrap64((x ^ (x >> 27n)) * 0x94d049bb133111ebn);
  return x ^ (x >> 31n);
}

function mix32(x) {
  x = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
  x = Math.imul(x ^ (x >>> 15), 0xd35a2d97);
  return x ^ (x >>> 15);
}

// The key of a request's draw: its seed and how many tokens it drew before. [low, high], as int32.
export function keyOf(seed, offset) {
  const key = mix64(wrap64(mix64(wrap64(BigInt(seed))) + BigInt(offset) * 0x9e3779b97f4a7c15n));
  return [Number(BigInt.asIntN(32, key)), Number(BigInt.asIntN(32, key >> 32n))];
}

// A uniform number for each token, in (0, 1), as float32 has it: 1 - u of the engine's u.
export function uniform([low, high], id) {
  const bits = mix32(mix32((id + low) | 0) ^ high) >>> 0;
  return Math.min(Math.fround(Math.fround(Math.fround(bits) + 0.5) * 2 ** -32), 1 - 2 ** -24);
}

// How long a runner of speed 1 takes: exponentially distributed. Minus its logarithm is the Gumbel noise.
export const exponential = (key, id) => -Math.log1p(-uniform(key, id));
export const gumbel = (key, id) => -Math.log(exponential(key, id));

// The draw: every token left runs with its probability as speed, and the first to arrive is taken. Returns its rank.
// The same as the largest score + Gumbel noise, and most runners can be passed over: none is faster than its uniform number.
export function winner(stage, key) {
  const { order, weights, kept } = stage;
  let first = Infinity, won = 0;
  for (let rank = 0; rank < kept; rank++) {
    const bar = first * weights[rank];
    if (uniform(key, order[rank]) > bar) continue;
    const time = exponential(key, order[rank]);
    if (time < bar) { first = time / weights[rank]; won = rank; }
  }
  return won;
}

// ---- many draws -------------------------------------------------------------------------------------------------------------

// Half the sum of |drawn share - probability|: 0 when they agree, 1 when they have nothing in common.
export function distance(stage, counts, draws) {
  let sum = 0;
  for (let rank = 0; rank < stage.kept; rank++) sum += Math.abs((counts.get(rank) ?? 0) / draws - probability(stage, rank));
  return sum / 2;
}

// What the distance is on average after so many fair draws, for many of them: it falls with the root of their number.
export function expectedDistance(stage, draws) {
  let sum = 0;
  for (let rank = 0; rank < stage.kept; rank++) {
    const p = probability(stage, rank), rare = draws * p;
    sum += rare < 1 ? 2 * p * Math.exp(-rare) : Math.sqrt((2 * p * (1 - p)) / (Math.PI * draws));
  }
  return sum / 2;
}

// What a step must read, compute and send; step_cost.py says the same and explains it.
export function stepCost(shape, device, { sequences, context, tokens = 1, weightBytes = 2, cacheBytes = 2, ranks = 1, latency = 10e-6 }) {
  const n = sequences * tokens, head = shape.hidden * shape.vocab, pairs = n * (context + (tokens + 1) / 2);
  const matrices = Math.max(shape.layer_weights * weightBytes / device.read, 2 * shape.layer_weights * n / device.flops);
  const logits = Math.max(head * weightBytes / device.read, 2 * head * sequences / device.flops);
  const keys = sequences * (context + tokens) * shape.cache_numbers * cacheBytes, holders = Math.min(ranks, shape.kv_heads);
  const attention = Math.max(keys / holders / device.read, 4 * shape.layers * shape.heads * shape.head_dim * pairs / ranks / device.flops);
  const sent = 2 * (ranks - 1) / ranks * n * shape.hidden * 2;
  const sums = ranks > 1 ? (2 * shape.layers + 1) * (latency + sent / device.link) : 0;
  return { matrices: (matrices + logits) / ranks, attention, sums };
}

export function workOf(shape, { sequences, context, tokens = 1, weightBytes = 2, cacheBytes = 2 }) {
  const n = sequences * tokens, head = shape.hidden * shape.vocab, pairs = n * (context + (tokens + 1) / 2);
  return { flops: 2 * shape.layer_weights * n + 2 * head * sequences + 4 * shape.layers * shape.heads * shape.head_dim * pairs,
           bytes: (shape.layer_weights + head) * weightBytes + sequences * (context + tokens) * shape.cache_numbers * cacheBytes };
}

export const total = (parts) => Object.values(parts).reduce((sum, seconds) => sum + seconds, 0);

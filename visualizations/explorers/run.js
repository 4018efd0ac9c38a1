// Reading a run: what the scheduler's and the block table's explorers both ask of the recorded steps. Nothing here draws.
import { count } from "./shared.js";

// data: {meta, records} as sources.py packs them. Adds what is asked for at every step: which sequences there are, when
// each ended, and running totals.
export function readRun(data) {
  const { meta, records } = data;
  const seen = new Set(Object.keys(meta.prompts ?? {}).map(Number));
  const ended = new Map(); // seq_id -> {index, reason, tokens generated}
  const generated = new Map();
  const furthest = new Map(); // seq_id -> tokens computed so far, to notice what is computed again
  const totals = [];
  let preemptions = 0, again = 0, computed = 0, alive = new Set();
  records.forEach((record, index) => {
    const now = new Set([...record.running, ...record.waiting]);
    for (const id of [...now, ...record.preempted, ...record.finished.map((f) => f.seq_id)]) seen.add(id);
    for (const { seq_id, start, num_tokens } of record.scheduled) {
      seen.add(seq_id);
      computed += num_tokens;
      const before = furthest.get(seq_id) ?? 0;
      again += Math.max(0, Math.min(before, start + num_tokens) - start);
      const refused = (record.drafts?.[seq_id]?.length ?? 0) - (record.accepted?.[seq_id] ?? 0); // never counted as computed
      furthest.set(seq_id, Math.max(before, start + num_tokens - refused));
    }
    for (const id of Object.keys(record.tokens)) generated.set(+id, (generated.get(+id) ?? 0) + 1 + (record.accepted?.[id] ?? 0));
    for (const { seq_id, reason } of record.finished) ended.set(seq_id, { index, reason, generated: generated.get(seq_id) ?? 0 });
    for (const id of alive)
      if (!now.has(id) && !ended.has(id)) ended.set(id, { index, reason: "abort", generated: generated.get(id) ?? 0 });
    preemptions += record.preempted.length;
    alive = now;
    totals.push({ preemptions, again, computed });
  });
  const ids = [...seen].sort((a, b) => a - b);
  return { meta, records, ids, rows: new Map(ids.map((id, row) => [id, row])), ended, totals };
}

export const held = (record) => [...record.blocks].filter((state) => state === "u" || state === "s").length;

export const tokensOf = (record, phase) =>
  record.scheduled.reduce((sum, s) => sum + (phase === undefined || s.phase === phase ? s.num_tokens : 0), 0);

// One line on the step as a whole.
export function headline(record) {
  if (record.now) return "Now: what has changed since the last step.";
  const prompt = tokensOf(record, "prefill"), decode = tokensOf(record, "decode");
  const parts = [prompt && count(prompt, "prompt token"), decode && `${decode} fed back while decoding`].filter(Boolean);
  return `Step ${record.step} computes ${prompt + decode} of at most ${count(record.token_budget, "token")}: ${parts.join(" and ")}.`;
}

const ENDS = { length: "reached its length limit", stop: "drew a token that ends it", abort: "was aborted" };

// Why this step is what it is: [{seqId (null: nobody in particular), kind, text}], what is rare first.
export function reasons(run, index) {
  const record = run.records[index], lines = [];
  const say = (seqId, kind, text) => lines.push({ seqId, kind, text });
  for (const id of record.preempted)
    say(id, "preempted", `is preempted${record.preemption_reasons?.[id] ? `: ${record.preemption_reasons[id]}` : ""}. ` +
      "It gives all of its blocks back and is computed again later.");
  for (const [id, end] of run.ended)
    if (end.index === index)
      say(id, "finished", `${ENDS[end.reason] ?? end.reason} after ${count(end.generated, "generated token")}; its blocks are free to take.`);
  const decoding = [];
  for (const { seq_id, phase, start, num_tokens, reason } of record.scheduled) {
    if (record.drafts?.[seq_id])
      say(seq_id, "decode", `checks ${count(record.drafts[seq_id].length, "draft")}, of which ${record.accepted[seq_id]} are kept.`);
    else if (phase === "decode") decoding.push(seq_id);
    else say(seq_id, "prefill", `${reason}. It computes ${count(num_tokens, "token")}, from position ${start}.`);
  }
  for (const [id, why] of Object.entries(record.left_waiting)) say(+id, "waiting", `waits: ${why}.`);
  const behind = record.waiting.filter((id) => !(id in record.left_waiting) && !record.preempted.includes(id));
  if (behind.length && Object.keys(record.left_waiting).length)
    say(null, "waiting", `${behind.length} more ${behind.length === 1 ? "waits" : "wait"} behind.`);
  else if (behind.length && record.preempted.length)
    say(null, "waiting", "Nobody is admitted in a step that had to preempt.");
  else if (behind.length && record.now)
    say(null, "waiting", `${count(behind.length, "sequence")} waiting for the next step: ${listed(behind)}.`);
  if (decoding.length) say(null, "decode", `Decoding, one token each: ${listed(decoding)}.`);
  if (!lines.length) say(null, "idle", record.now ? "Nothing is queued. Add a request to begin." : "Nothing else happened.");
  return lines;
}

export function listed(ids, most = 16) {
  const shown = ids.slice(0, most).join(", ");
  return ids.length > most ? `${shown} and ${ids.length - most} more` : shown;
}

// How each physical block looks after a step: {state, seqId, prompt, filled, references, owners, logical}, as `drawBlock` takes it.
// owners: [{seqId, logical}], the first being the one whose colour it carries.
export function blockLooks(run, record) {
  const size = run.meta.block_size;
  const looks = Array.from(record.blocks, (state) => ({ state, references: 1, owners: [] }));
  for (const [id, table] of Object.entries(record.block_tables)) {
    const context = record.context_lens[id], prompt = run.meta.prompts?.[id] ?? context;
    table.forEach((block, logical) => {
      const look = looks[block];
      look.owners.push({ seqId: +id, logical });
      if (look.owners.length > 1) return;
      look.seqId = +id;
      look.filled = share(context - logical * size, size);
      look.prompt = Math.min(look.filled, share(prompt - logical * size, size));
    });
  }
  for (const [block, references] of Object.entries(record.ref_counts)) looks[block].references = references;
  return looks;
}

const share = (tokens, size) => Math.min(Math.max(tokens, 0), size) / size;

// The sentence for a block, for tooltips and screen readers.
export function aboutBlock(block, look, size) {
  if (look.state === "f") return `Block ${block} is free and empty.`;
  if (look.state === "c") return `Block ${block} is free to take, and until then its content can be found again.`;
  const [{ seqId, logical }] = look.owners.length ? look.owners : [{ seqId: "?", logical: 0 }];
  const filled = Math.round((look.filled ?? 0) * size);
  const whose = look.owners.length > 1 ? `shared by sequences ${listed(look.owners.map((o) => o.seqId))}` : `held by sequence ${seqId}`;
  return `Block ${block} is ${whose}: logical block ${logical}, ${filled} of ${size} slots filled.`;
}

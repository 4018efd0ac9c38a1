"""From queued sequences to drawn tokens, step by step. It knows token ids and no text.

In the order in which a step meets them:

- `llm_engine`: the loop. `input_processor` checks requests, `turn` lets one thread in at a time, `step_in_flight` is a step
  under way, `listener` what others are told of it.
- `sequence`, `block_manager`, `sequence_queues`, `scheduler`, `scheduled_batch`: what runs in a step. No torch.
- `runner` is what the loop asks for; `model_runner` does it on one device, with `step_inputs` (the tensors of a step),
  `launched` (what comes back), `logprobs`, `cache_size` and, on a GPU, the graphs: `cuda_graphs` with `decode_rows` for steps
  that only decode, `step_graphs` for those with prompts in them.
- `token_matcher`, `token_bitmasks`, `device_masks`: answers that must have a shape.
- `drafts` and the files named after it, `draft_records`, `device_drafters`, `step_times`, `token_cost`: speculative decoding.
  The rest works without them.
"""

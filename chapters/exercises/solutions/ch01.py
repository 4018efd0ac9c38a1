"""Solutions of chapter 01."""


def tokens_computed(num_prompt, num_output, preempted_after):
    lost = sum(num_prompt + drawn - 1 for drawn in preempted_after)  # the token just drawn was not in the cache yet
    return num_prompt + num_output - 1 + lost


def generate(forward, new_cache, prompt, num_output):
    cache, output, piece = new_cache(), [], prompt
    while len(output) < num_output:
        token = forward(piece, cache)
        output.append(token)
        piece = [token]
    return output


def finish_reason(seq, eos_token_ids, max_model_len):
    params, token = seq.sampling_params, seq.token_ids[-1]
    if token in params.stop_token_ids or (token in eos_token_ids and not params.ignore_eos):
        return "stop"
    if seq.num_output_tokens >= params.max_tokens or len(seq) >= max_model_len:
        return "length"
    return None

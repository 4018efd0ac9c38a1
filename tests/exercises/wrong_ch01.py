"""Plausible wrong answers to chapter 01: name of the check -> functions that must fail it, each with a hint of its own."""


def forgets_the_preemptions(num_prompt, num_output, preempted_after):
    return num_prompt + num_output - 1


def repeats_the_prompt_only(num_prompt, num_output, preempted_after):
    return num_prompt + num_output - 1 + num_prompt * len(preempted_after)


def feeds_the_last_token_back(num_prompt, num_output, preempted_after):
    return num_prompt + num_output + sum(num_prompt + drawn - 1 for drawn in preempted_after)


def repeats_the_token_just_drawn(num_prompt, num_output, preempted_after):
    return num_prompt + num_output - 1 + sum(num_prompt + drawn for drawn in preempted_after)


def feeds_everything_again(forward, new_cache, prompt, num_output):
    tokens, cache = list(prompt), new_cache()
    for _ in range(num_output):
        tokens.append(forward(tokens, cache))
    return tokens[len(prompt):]


shared_cache = None


def keeps_one_cache_for_all(forward, new_cache, prompt, num_output):
    global shared_cache
    shared_cache = shared_cache if shared_cache is not None else new_cache()
    output, piece = [], prompt
    for _ in range(num_output):
        output.append(forward(piece, shared_cache))
        piece = output[-1:]
    return output


def never_uses_the_cache(forward, new_cache, prompt, num_output):
    tokens = list(prompt)
    for _ in range(num_output):
        tokens.append(forward(tokens))
    return tokens[len(prompt):]


def looks_at_the_whole_text(seq, eos_token_ids, max_model_len):
    if set(seq.token_ids) & set(eos_token_ids):
        return "stop"
    return "length" if seq.num_output_tokens >= seq.sampling_params.max_tokens else None


def length_first(seq, eos_token_ids, max_model_len):
    params = seq.sampling_params
    if seq.num_output_tokens >= params.max_tokens or len(seq) >= max_model_len:
        return "length"
    last = seq.token_ids[-1]
    return "stop" if last in params.stop_token_ids or (last in eos_token_ids and not params.ignore_eos) else None


def ignores_every_stop(seq, eos_token_ids, max_model_len):
    params, last = seq.sampling_params, seq.token_ids[-1]
    if not params.ignore_eos and (last in eos_token_ids or last in params.stop_token_ids):
        return "stop"
    return "length" if seq.num_output_tokens >= params.max_tokens or len(seq) >= max_model_len else None


WRONG = {
    "check_tokens_computed": (forgets_the_preemptions, repeats_the_prompt_only, feeds_the_last_token_back,
                              repeats_the_token_just_drawn),
    "check_cached_loop": (feeds_everything_again, keeps_one_cache_for_all, never_uses_the_cache),
    "check_finish_reason": (looks_at_the_whole_text, length_first, ignores_every_stop),
}

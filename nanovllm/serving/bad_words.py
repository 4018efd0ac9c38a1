"""Words that must not be written, as the tokens that would write them."""

from dataclasses import replace

from nanovllm.sampling_params import SamplingParams
from nanovllm.serving.tokenizer import Tokenizer
from nanovllm.utils.checks import check_characters, check_request


def with_bad_words_ids(params: SamplingParams, tokenizer: Tokenizer | None) -> SamplingParams:
    """`params` with its `bad_words` as `bad_words_ids`: each at the beginning of a text and behind a space, as in vLLM.

    Raises InvalidRequest without a tokenizer, and for a word that it cannot encode.
    """
    if not params.bad_words:
        return params
    check_request(tokenizer is not None, "bad_words", params.bad_words, "empty for a model without a tokenizer",
                  "use bad_words_ids")
    assert tokenizer is not None
    for word in params.bad_words:
        check_characters("bad_words", word)
    texts = [space + word.lstrip() for word in params.bad_words for space in ("", " ")]
    found = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    return replace(params, bad_words=(), bad_words_ids=tuple(dict.fromkeys((*params.bad_words_ids, *found))))

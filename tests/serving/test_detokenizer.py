"""Text from tokens, piece by piece: it adds up to the whole text, and a token costs the same however many came before it."""

import random

import pytest
from transformers.convert_slow_tokenizer import bytes_to_unicode

from nanovllm.config import OFFLINE_MODEL
from nanovllm.serving.detokenizer import IncrementalDetokenizer
from nanovllm.serving.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer(OFFLINE_MODEL)
BYTES = [TOKENIZER.get_vocab()[character] for _, character in sorted(bytes_to_unicode().items())]
SPECIAL = TOKENIZER.encode("<|im_start|><|im_end|>", add_special_tokens=False)
WORDS = TOKENIZER.encode("Once upon a time, é 日本 🦊 fox")


def odd_tokens(rng: random.Random) -> list[int]:
    """Characters, whole and cut, bytes that are none, tokens without text, and words."""
    ids: list[int] = []
    for _ in range(rng.randint(1, 14)):
        kind = rng.randrange(4)
        if kind == 0:
            ids += [BYTES[byte] for byte in rng.choice("éü日🦊a\u2028").encode()][:rng.choice([1, 2, 3, 4, 4])]
        elif kind == 1:
            ids += [BYTES[rng.choice([0x80, 0xbf, 0xc3, 0xe3, 0xf0, 0xff, 0x41, 0xe2, 0x81])] for _ in range(rng.randint(1, 6))]
        elif kind == 2:
            ids += [rng.choice(SPECIAL)] * rng.choice([1, 3, 20])
        else:
            ids.append(rng.choice(WORDS))
    return ids


@pytest.mark.parametrize("skips", [True, False])
def test_pieces_of_odd_bytes_add_up_to_the_whole_text(skips):
    for seed in range(1500):
        rng = random.Random(seed)
        ids, decoder, pieces, at = odd_tokens(rng), IncrementalDetokenizer(TOKENIZER, skips), [], 0
        while at < len(ids):
            size = rng.choice([1, 1, 2, 5])
            pieces.append(decoder.push(ids[at:at + size]))
            at += size
        pieces.append(decoder.push([], final=True))
        whole = TOKENIZER.decode(ids, skip_special_tokens=skips, clean_up_tokenization_spaces=False)
        assert "".join(pieces) == decoder.text == whole, f"seed {seed}: {ids}"


class Counting:
    """A tokenizer that counts the tokens it is asked to decode."""

    def __init__(self):
        self.num_decoded = 0

    def decode(self, ids, **options):
        self.num_decoded += len(ids)
        return TOKENIZER.decode(ids, **options)


@pytest.mark.parametrize("token", [WORDS[0], BYTES[0x80], BYTES[0xe3], SPECIAL[0]], ids=["word", "no start", "cut", "no text"])
def test_a_token_costs_the_same_however_many_came_before(token):
    """The server's engine thread does this for everybody: 20,000 lone bytes once took it 40 s."""
    tokenizer = Counting()
    decoder = IncrementalDetokenizer(tokenizer)
    for _ in range(3000):
        decoder.push([token])
    assert tokenizer.num_decoded < 3000 * 40
    decoder.push([], final=True)
    assert decoder.text == TOKENIZER.decode([token] * 3000, skip_special_tokens=True, clean_up_tokenization_spaces=False)

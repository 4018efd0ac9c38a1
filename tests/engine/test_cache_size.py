"""What sampling needs at its worst is set aside before the cache is sized: counted in the tensors that it makes."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from nanovllm import SamplingParams
from nanovllm.engine import cache_size
from nanovllm.engine.logprobs import sampled_report
from nanovllm.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from nanovllm.engine.sequence import Sequence
from nanovllm.layers.logits_processors import LogitsProcessors
from nanovllm.layers.sampler import Sampler, SamplingBatch
from nanovllm.layers.sampling_memory import sample_worst
from nanovllm.speculative_config import SpeculativeConfig

OPTIONS = [dict(top_k=50), dict(top_p=0.9), dict(min_p=0.05), dict(repetition_penalty=1.2), dict(presence_penalty=0.5),
           dict(frequency_penalty=0.5), dict(logit_bias={3: 1.0}), dict(logprobs=20), dict(min_tokens=2, stop_token_ids=[1, 2]),
           dict(allowed_token_ids=list(range(5, 900))), dict(bad_words_ids=[[4], [4, 5], [7, 5]])]
EVERYTHING = {name: value for option in OPTIONS for name, value in option.items()}


class Memory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made in it. peak: the most that there were at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = WeakTensorKeyDictionary(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.alive[tensor] = tensor.untyped_storage()
        storages = {storage.data_ptr(): storage.nbytes() for storage in self.alive.values()}
        self.peak = max(self.peak, sum(storages.values()))
        return result


def worst(num_rows, vocab_size, longest):
    logits = torch.zeros(num_rows, vocab_size)
    with Memory() as memory:
        sample_worst(Sampler(), logits, longest)
    return memory.peak


@pytest.mark.parametrize("options", [*OPTIONS, EVERYTHING], ids=lambda options: "+".join(options)[:30])
@pytest.mark.parametrize(("num_rows", "vocab_size", "longest"), [(6, 9000, 40), (150, 1500, 12)])
def test_no_request_takes_more_than_was_set_aside(options, num_rows, vocab_size, longest):
    params = SamplingParams(temperature=0.7, max_tokens=longest, **options)
    seqs = [Sequence(i, list(range(longest - 1)), params) for i in range(num_rows)]
    batch = ScheduledBatch([ScheduledSequence(seq, 0, longest - 1, "") for seq in seqs])
    model_logits = torch.randn(num_rows, vocab_size)
    with Memory() as memory:
        logits = model_logits.clone()  # counted in `worst`, too
        processors = LogitsProcessors.from_rows([params] * num_rows, [seq.token_ids[:-1] for seq in seqs],
                                                [longest - 1] * num_rows, torch.full((num_rows,), 7), (0,), vocab_size)
        seeds = list(range(num_rows))
        token_ids = Sampler()(logits, SamplingBatch.from_params([params] * num_rows, seeds, seeds, processors=processors))
        sampled_report(batch, logits, token_ids)
    assert memory.peak <= worst(num_rows, vocab_size, longest) * 1.02


def test_it_grows_with_rows_and_vocabulary_and_not_for_those_who_ask_for_little():
    small, wide, tall = worst(64, 4000, 16), worst(64, 8000, 16), worst(128, 4000, 16)
    assert wide == pytest.approx(2 * small, rel=0.05) and small < tall < 2.1 * small
    logits = torch.zeros(64, 4000)
    with Memory() as plain:
        Sampler()(logits, SamplingBatch.from_params([SamplingParams(temperature=0)] * 64, [0] * 64, [0] * 64))
    assert plain.peak < small / 50


def test_the_memory_that_is_measured_is_that_of_the_worst_step(monkeypatch):
    """`fit_blocks` runs it, with as many rows as may run and as many tokens before each as may be."""
    from nanovllm import LLM
    asked = []
    with LLM(device="cpu", num_kvcache_blocks=8, max_num_seqs=7, max_model_len=90) as llm:
        for name, value in dict(empty_cache=None, reset_peak_memory_stats=None, memory_allocated=0, max_memory_allocated=0,
                                mem_get_info=(2**34, 2**34)).items():
            monkeypatch.setattr(torch.cuda, name, lambda *a, value=value: value)
        runner = llm.engine.model_runner

        def sampler(logits, batch):
            asked.append((logits.shape, batch.filters.rows.shape, batch.processors.penalties.history.shape))
            return runner.sampler(logits, batch)

        cache_size._free_memory(runner.model, sampler, runner.cache_shape, llm.config)
        llm.config.speculative_config = SpeculativeConfig(disable_by_batch_size=5)  # each draft is drawn for, too
        cache_size._free_memory(runner.model, sampler, runner.cache_shape, llm.config)
    vocab_size = llm.config.hf_config.vocab_size
    assert asked == [((7, vocab_size), (7,), (7, 90)), ((12, vocab_size), (12,), (12, 90))]

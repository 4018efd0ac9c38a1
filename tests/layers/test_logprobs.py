"""Log-probabilities and ranks against their definition."""

import pytest
import torch

from nanovllm.layers.logprobs import top_logprobs


@pytest.mark.parametrize("k", [0, 1, 5, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_top_logprobs_are_the_logs_of_the_softmax_best_first(k, dtype):
    torch.manual_seed(k)
    logits = (4 * torch.randn(7, 60)).to(dtype)
    chosen = torch.randint(60, (7,))
    top = top_logprobs(logits, chosen, k)
    probs = logits.double().softmax(-1)
    assert top.token_ids.shape == top.logprobs.shape == (7, 1 + k)
    for row in range(7):
        assert top.token_ids[row, 0] == chosen[row]
        assert top.ranks[row] == 1 + (probs[row] > probs[row, chosen[row]]).sum()
        expected = probs[row, top.token_ids[row]].log()
        torch.testing.assert_close(top.logprobs[row].double(), expected, atol=1e-5, rtol=1e-5)
        best = sorted(probs[row].tolist(), reverse=True)[:k]
        torch.testing.assert_close(probs[row, top.token_ids[row, 1:]], torch.tensor(best, dtype=torch.float64))


def test_the_best_token_has_rank_one_even_when_it_shares_it():
    top = top_logprobs(torch.tensor([[1.0, 3.0, 3.0]]), torch.tensor([2]), 1)
    assert top.ranks.tolist() == [1] and top.logprobs[0, 0] == top.logprobs[0, 1]

"""The knobs of a simulated fleet. Imports no torch."""

from dataclasses import dataclass

from nanovllm.fleet.router import Policy
from nanovllm.utils.checks import check


@dataclass(frozen=True, kw_only=True)
class FleetConfig:
    """Two runs that differ in one of them can be compared: `replace(config, router=...)`.

    num_replicas: engines. num_blocks: KV cache of each, in blocks of the cost model's block_size; None is the recorded
        GPU's. max_num_batched_tokens, max_num_seqs, max_model_len, enable_prefix_caching: as for `LLM`.
    router, max_imbalance: see `Router`.
    prefill_replicas: this many of the replicas only compute prompts and the first token, the others only decode
        (DistServe, Zhong et al. 2024); 0: every replica does both. In between, keys and values travel at
        `transfer_bytes_per_s`, one request at a time per prefill replica, after `transfer_latency_s`. The defaults are a
        400 Gbit/s network card's.
    """

    num_replicas: int = 2
    num_blocks: int | None = None
    max_num_batched_tokens: int = 16384
    max_num_seqs: int = 512
    max_model_len: int = 40_960
    enable_prefix_caching: bool = True
    router: Policy = "prefix_aware"
    max_imbalance: int = 8
    prefill_replicas: int = 0
    transfer_bytes_per_s: float = 50e9
    transfer_latency_s: float = 1e-3

    def __post_init__(self) -> None:
        check(self.num_replicas >= 1, "num_replicas", self.num_replicas, "1 or more", "start at least one engine")
        check(0 <= self.prefill_replicas < self.num_replicas, "prefill_replicas", self.prefill_replicas,
              f"from 0 to {self.num_replicas - 1}, below num_replicas", "leave at least one replica to decode")
        check(self.transfer_bytes_per_s > 0, "transfer_bytes_per_s", self.transfer_bytes_per_s, "above 0", "raise it")

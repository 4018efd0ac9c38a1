"""One example of every figure, from small data that is always the same. Used by the tests and the baseline images."""

import numpy as np

import visualizations as v
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.fleet.arrivals import Traffic
from nanovllm.fleet.fleet_config import FleetConfig
from nanovllm.fleet.fleet_report import FleetReport
from nanovllm.fleet.simulated_fleet import compare
from nanovllm.sampling_params import SamplingParams
from nanovllm.tracing.step_record import StepRecord
from nanovllm.tracing.trace import Trace
from visualizations.figures.name_map import Place
from visualizations.figures.shape_flow import Stop


def serve(prompts: list[list[int]], max_tokens: int, *, num_blocks: int = 32, block_size: int = 4, budget: int = 12,
          prefix_caching: bool = True) -> tuple[Trace, BlockManager, list[Sequence]]:
    """Serve `prompts` by a model that always says 7, and record every step, each 10 ms long."""
    manager = BlockManager(num_blocks, block_size, prefix_caching)
    scheduler = Scheduler(manager, max_num_batched_tokens=budget, max_model_len=256)
    trace = Trace({"block_size": block_size, "num_blocks": num_blocks, "token_budget": budget, "model": "always-seven",
                   "prompts": {i: len(p) for i, p in enumerate(prompts)},
                   "arrivals": {i: 0.001 * i for i in range(len(prompts))}})
    sequences = [Sequence(i, prompt, SamplingParams(max_tokens=max_tokens)) for i, prompt in enumerate(prompts)]
    for seq in sequences:
        scheduler.add(seq)
    while scheduler.has_unfinished:
        batch = scheduler.schedule()
        tokens = [7] * sum(item.samples for item in batch.items)
        finished = scheduler.update(batch, tokens)
        now = 0.01 * len(trace)
        phases = {name: [now + 0.0025 * i, 0.0025] for i, name in enumerate(("schedule", "launch", "collect", "update"))}
        trace.append(StepRecord.of_step(scheduler, len(trace), now, 0.01, batch, tokens, finished, phases))
    return trace, manager, sequences


def shared() -> tuple[Trace, BlockManager, list[Sequence]]:
    """Three prompts of 14 tokens, the first 8 alike: two blocks of 4 are shared."""
    return serve([[*range(10, 18), *range(20 * i, 20 * i + 6)] for i in range(1, 4)], max_tokens=6)


def preempted() -> Trace:
    """A cache too small for the three: somebody is thrown out and comes back."""
    return serve([[30 * i + j for j in range(8)] for i in range(1, 4)], max_tokens=12, num_blocks=10, prefix_caching=False)[0]


def profiled(captured: bool) -> Trace:
    """A step of 0.2 ms that launches forty kernels one by one, or all at once."""
    trace = Trace()
    trace.append(StepRecord(0, 0.0, 2e-4 if not captured else 9e-5, 8, [], {}, [], [], [], [], {}, {}, {}, {}, "", {},
                            phases={"launch": [5e-6, 2e-4]}))
    for i in range(40):
        start = 1.5e-5 + (i * 1.5e-6 if captured else i * 4.4e-6)
        trace.operations.append({"track": "GPU 0, stream 7", "name": f"kernel {i}", "time": start, "duration": 1.3e-6})
        if not captured or i == 0:
            trace.operations.append({"track": "launches", "name": "cudaLaunchKernel", "time": start - 8e-6, "duration": 3e-6})
    return trace


def fleets(**changes) -> tuple[FleetReport, FleetReport]:
    """The same chats in two fleets of three engines that differ in their router."""
    chats = Traffic(rate=30, num_conversations=40, system_prompts=3, system_tokens=1024, prompt_tokens=200, output_tokens=80,
                    turns=2, think_seconds=0.4, seed=3)
    return compare(FleetConfig(num_replicas=3, router="round_robin") if not changes else FleetConfig(**changes), chats,
                   router="prefix_aware")


def _probabilities() -> np.ndarray:
    logits = 4 * np.cos(np.arange(60) * 1.7) - np.arange(60) / 12
    return np.exp(logits) / np.exp(logits).sum()


def _stages() -> dict[str, np.ndarray]:
    return v.sampling_stages(np.log(_probabilities()), SamplingParams(temperature=0.7, top_k=12, top_p=0.9, min_p=0.08))


def _two_levels() -> tuple[BlockManager, list[Sequence]]:
    """Prompts that part twice; the last of them still runs beside the second, so that some blocks are shared."""
    head = list(range(8))
    _, manager, sequences = serve([head + [50] * 4 + [60, 61, 62, 63], head + [50] * 4 + [70, 71, 72, 73, 74],
                                   head + [80, 81, 82, 83], [90, 91, 92, 93, 94, 95, 96, 97]], max_tokens=2)
    for seq in sequences[1:3]:
        manager.allocate(seq, manager.find_cached_prefix(seq))
    return manager, sequences


WORDS = "the a fox hen kite lantern and ran to see who had come so late at night".split()
LAYERS = {"embed_tokens": 0.0} | {f"layers.{i}": 2e-7 * 1.35**i for i in range(12)} | {"norm": 9e-6, "lm_head": 1.4e-5}
PLACES = [Place(f"self_attn.{part}_proj.weight", (rows, 1024), f"self_attn.{held}_proj.weight", start, start + rows, of)
          for part, held, start, rows, of in (("k", "qkv", 2048, 1024, 4096), ("o", "o", 0, 1024, 1024),
                                              ("q", "qkv", 0, 2048, 4096), ("v", "qkv", 3072, 1024, 4096))]
FLOW = [Stop("input_layernorm", {"": (9, 1024)}, True), Stop("qkv_proj", {"q": (9, 2048), "k": (9, 1024), "v": (9, 1024)}),
        Stop("rotary", {"q": (9, 16, 128), "k": (9, 8, 128)}), Stop("attn", {"": (9, 2048)}), Stop("o_proj", {"": (9, 1024)}),
        Stop("post_attention_layernorm", {"": (9, 1024)}, True), Stop("gate_up_proj", {"gate": (9, 3072), "up": (9, 3072)}),
        Stop("act_fn", {"": (9, 3072)}), Stop("down_proj", {"": (9, 1024)})]
HEADER = {name: {"data_offsets": [1000 * start, 1000 * stop]} for name, start, stop in (
    ("model.embed_tokens.weight", 0, 900), ("model.layers.0.input_layernorm.weight", 900, 901),
    ("model.layers.0.mlp.down_proj.weight", 901, 1300), ("model.layers.0.mlp.up_proj.weight", 1300, 1700),
    ("model.layers.0.self_attn.q_proj.weight", 1700, 2100), ("model.layers.1.mlp.down_proj.weight", 2100, 3300),
    ("model.norm.weight", 3300, 3301))}

# name -> a figure drawn on `ax` or on its own
FIGURES = {
    "acceptance": lambda ax=None: v.plot_acceptance(
        {"draft model": [[40, 34], [34, 25], [25, 15]], "look-up": [[20, 4]]}, ax=ax),
    "ablation": lambda ax=None: v.plot_ablation({"everything": [4100, 4210, 4180], "no CUDA graphs": [1900, 1850, 1960],
                                                 "no prefix cache": [3300, 3350, 3310], "no fused kernels": [3600, 3610, 3655]},
                                                unit="tokens/s", ax=ax),
    "automaton": lambda ax=None: v.plot_automaton(  # a loop, a way back, an arrow within a column, several characters
        [{"f": 1, "h": 3}, {"o": 2}, {"x": 5}, {"e": 4}, {"n": 5}, {"!": 5, "i": 6, "o": 6, "&": 0}, {"n": 7, "a": 4}, {}],
        {5, 7}, marked={5}, ax=ax),
    "attention_mask": lambda ax=None: v.plot_attention_mask([0, 1, 2, 8, 20], [14, 9, 16, 12], seq_ids=[0, 1, 2, 3], ax=ax),
    "batch_composition": lambda ax=None: v.plot_batch_composition(shared()[0], ax=ax),
    "bits": lambda ax=None: v.plot_bits(range(16), [(i * 2654435761) % 2**32 for i in range(16)], names=("token id", "bits"),
                                        ax=ax),
    "block_tables": lambda ax=None: v.plot_block_tables(shared()[0], shared()[0][4], ax=ax),
    "by_position": lambda ax=None: v.plot_by_position([1e-7, 0, 2e-7, 0.4, 0.9, 0.3, 0.7], tolerance=1e-5, tokens=WORDS[:7],
                                                      ax=ax),
    "cache_occupancy": lambda ax=None: v.plot_cache_occupancy(shared()[0], ax=ax),
    "checkpoint_file": lambda ax=None: v.plot_checkpoint_file(HEADER, 3000, ax=ax),
    "curves": lambda ax=None: v.plot_curves(
        {"first token": {8: 134, 16: 33, 32: 19, 64: 16}, "longest gap": {8: 12, 16: 13, 32: 16, 64: 23}}, knob="token budget",
        outcome="milliseconds", title="Two wishes, one knob", caption="Right: sooner begun, and less even.", log=True, ax=ax),
    "draft_check": lambda ax=None: v.plot_draft_check([11, 12, 13, 14], [11, 12, 99, 14, 15], ax=ax),
    "exponential_race": lambda ax=None: v.plot_exponential_race(
        [0.9, 0.31, 2.2, float("inf"), 1.4, 0.55], [0.2, 0.3, 0.1, 0, 0.15, 0.25], lambda i: WORDS[i], ax=ax),
    "exponents": lambda ax=None: v.plot_exponents({-28: 3, -20: 9, -15: 400, -6: 90_000, -3: 500_000, 0: 70_000, 4: 12}, ax=ax),
    "fleet": lambda ax=None: v.plot_fleet(dict(zip(("round robin", "prefix aware"), fleets())), ax=ax),
    "fragmentation": lambda ax=None: v.plot_fragmentation([310, 95, 700, 41, 260, 512, 130, 77], block_size=16, max_len=1024,
                                                          ax=ax),
    "gpu_timeline": lambda ax=None: v.plot_gpu_timeline({"eager": (profiled(False), 0), "captured": (profiled(True), 0)},
                                                        ax=ax),
    "journey": lambda ax=None: v.plot_journey(ax=ax),
    "head_groups": lambda ax=None: v.plot_head_groups(8, 4, ax=ax),
    "heat_maps": lambda ax=None: v.plot_heat_maps(
        {name: [[float("nan") if k > q else 1 / (1 + abs(q - k - back)) for k in range(8)] for q in range(8)]
         for back, name in enumerate(("itself", "the one before"))}, rows=WORDS[:8], outlines=[(0, 0, 4, 4)], xlabel="key",
        ylabel="", title="Two heads", caption="Dark: a large share.", ax=ax),
    "memory_hierarchy": lambda ax=None: v.plot_memory_hierarchy(ax=ax),
    "part_shares": lambda ax=None: v.plot_part_shares(
        {"small": {"vocabulary": 30, "attention": 25, "feed-forward": 45}, "large": {"vocabulary": 8, "attention": 26,
         "feed-forward": 66}}, of="all parameters", title="Where the parameters are", caption="The norms are too few to see.",
        ax=ax),
    "places": lambda ax=None: v.plot_places([0, 1, 9, 12], [20, *range(4, 12), 7, 8, 9], ax=ax),
    "latencies": lambda ax=None: v.plot_latencies(v.trace_latencies(preempted()), ax=ax),
    "ladder": lambda ax=None: v.plot_ladder(
        {"plain": 25.4, "+ paged attention": 2425.0, "+ fused kernels": 8636.0, "+ graphs": 33085.0, "+ nothing": 33000.0},
        unit="tokens/s", title="A stage at a time", source="Made up", ax=ax),
    "life_of_request": lambda ax=None: v.plot_life_of_request(preempted(), 2, ax=ax),
    "load_test": lambda ax=None: v.plot_load_test(
        fleets()[0].requests, failed=[0.4, 1.1], limits={"ttft": 40, "e2el": 900}, ax=ax),
    "lines": lambda ax=None: v.plot_lines({"top_k": [20] * 12, "top_p": [16, 1, 2, 1, 1, 87, 1, 1, 1, 2, 1, 1]}, over="token",
                                          outcome="tokens left", title="How many may be drawn", caption="Two ways.", log="y",
                                          ax=ax),
    "matrices": lambda ax=None: v.plot_matrices({"rank 0": [[1, 2], [3, np.nan]], "y": [[-1, 0], [2, 4]]}, title="Two matrices",
                                                caption="Nothing stands where there is no number.", ax=ax),
    "memory_budget": lambda ax=None: v.plot_memory_budget(
        {"Qwen3-0.6B": {"weights": 1_192_099_840, "activations": 3 << 30, "KV cache": 122 << 30},
         "beside another engine": {"weights": 1_192_099_840, "activations": 3 << 30, "KV cache": 40 << 30}},
        139 << 30, bytes_per_token=114_688, ax=ax),
    "name_map": lambda ax=None: v.plot_name_map(PLACES, prefix="self_attn.", ax=ax),
    "next_token": lambda ax=None: v.plot_next_token(_probabilities(), lambda i: WORDS[i % len(WORDS)], drawn=19, ax=ax),
    "one_query": lambda ax=None: v.plot_one_query([0.5, -1.0, 2.0, 1.2], ["Once", " upon", " a", " time", " there", " was"],
                                                 ax=ax),
    "online_softmax": lambda ax=None: v.plot_online_softmax([1.0, 0.3, -1, 0.8, 0.2, 1.9, 0.1, 0.5, 0, 1.2, -0.5, 0.3, 2.8, 1,
                                                             0.4, 2.0], 4, ax=ax),
    "operations": lambda ax=None: v.plot_operations(
        [("x", "x", ()), ("w", "weight", ()), ("square", "x * x", ("x",)), ("mean", "mean", ("square",)),
         ("eps", "+ 1e-6", ("mean",)), ("root", "rsqrt", ("eps",)), ("times", "x * ...", ("x", "root")),
         ("out", "* weight", ("times", "w")), ("both", "+ x * x", ("out", "square"))], ax=ax),
    "overlap": lambda ax=None: v.plot_overlap(
        {"in turn": [(lane, step, 10 * step + start, 10 * step + end) for step in range(4)
                     for lane, start, end in (("host", 0, 3), ("device", 3, 10))],
         "ahead": [*(("host", step, 7 * step, 7 * step + 3) for step in range(4)),
                   *(("device", step, 7 * step + 3, 7 * step + 10) for step in range(4))]}, ax=ax),
    "padding_waste": lambda ax=None: v.plot_padding_waste([1, 2, 4, 8, 16, 24, 32, 40, 48], range(1, 52), ax=ax),
    "parity": lambda ax=None: v.plot_parity(LAYERS, tolerance=1e-4, ax=ax),
    "prefix_tree": lambda ax=None: v.plot_prefix_tree(*_two_levels(), decode=lambda ids: " ".join(WORDS[i % 16] for i in ids),
                                                      ax=ax),
    "found_tokens": lambda ax=None: v.plot_found_tokens({0: 0, 1: 40, 2: 40}, {0: 54, 1: 54, 2: 60}, ax=ax),
    "reuse_order": lambda ax=None: v.plot_reuse_order(
        {"after a b": [(2, False), (3, False), (1, True), (0, True)], "after c": [(4, False), (1, True), (0, True)]}, ax=ax),
    "rank_processes": lambda ax=None: v.plot_rank_processes(ax=ax),
    "request_timeline": lambda ax=None: v.plot_request_timeline(preempted(), ax=ax),
    "roofline": lambda ax=None: v.plot_roofline(
        [v.Measured("decode attention", 2.1e9, 0.73e9, 0.182e-3), v.Measured("prefill attention", 275e9, 0.9e9, 1.109e-3),
         v.Measured("projection, 64 rows", 3.2e9, 0.052e9, 0.03e-3)],
        peak_flops=989e12, bandwidth=4.22e12, device="an H200, bf16", ax=ax),
    "ring": lambda ax=None: v.plot_ring(4, ax=ax),
    "rope": lambda ax=None: v.plot_rope(128, 1e6, ax=ax),
    "rounds": lambda ax=None: v.plot_rounds([(0, 8), (8, 12), (12, 13), None, (0, 8), (10, 14), (14, 15)], 12, ax=ax),
    "routing": lambda ax=None: v.plot_routing(
        [{i % 8: 0.7, (i * 5 + 3) % 7: 0.3} if i % 8 != (i * 5 + 3) % 7 else {i % 8: 1.0} for i in range(16)], 8,
        tokens=WORDS[:16], ax=ax),
    "sampling_filters": lambda ax=None: v.plot_sampling_filters(_stages(), lambda i: WORDS[i % len(WORDS)], ax=ax),
    "serving_threads": lambda ax=None: v.plot_serving_threads(ax=ax),
    "shape_flow": lambda ax=None: v.plot_shape_flow(FLOW, ax=ax),
    "side_by_side": lambda ax=None: v.plot_side_by_side(
        {"many": {"ours": 80.0, "theirs": 64.0, "plain": 21.0}, "one alone": {"ours": 35.0, "theirs": 41.5}},
        unit="% of the limit", limit=100, words={"many": {"ours": "30 k tok/s"}}, ax=ax),
    "quantized_block": lambda ax=None: v.plot_quantized_block(
        [0.31, -0.2, 0.04, 0.12], [0.3, -0.2, 0.0, 0.1], scale=0.1, least=-0.2, bits=3, ax=ax),
    "slot_scatter": lambda ax=None: v.plot_slot_scatter(
        [22, 45, -1, 64, 65, 66, 67], 8, owners=[0, 1, 2, 3, 3, 3, 3], blocks=[2, 5, 8], light=(0, 1),
        held={slot: slot // 24 if slot != 16 else None for slot in [*range(16, 22), *range(40, 45)]}, ax=ax),
    "step_parts": lambda ax=None: v.plot_step_parts(
        {"theirs": {"attention": 5.3, "matmuls": 0.7, "GPU waits for the host": 1.0},
         "ours": {"attention": 4.8, "matmuls": 0.7}},
        floors={"theirs": 5.0, "ours": 5.0}, ax=ax),
    "step_tensors": lambda ax=None: v.plot_step_tensors(
        {"input_ids": [261, 985, 30, 41, 52, 0], "positions": [58, 20, 4, 5, 6, 0], "slot_mapping": [58, 84, -1, 37, 38, -1]},
        [0, 1, 2, 2, 2, None], light=(0, 1), ax=ax),
    "stretches": lambda ax=None: v.plot_stretches(
        {"full": [(i, 250 * i, 250, 60 + 37 * i) for i in range(4)], "half gone": [(1, 250, 250, 97), (3, 750, 250, 171)]},
        1000, ax=ax),
    "tensor_split": lambda ax=None: v.plot_tensor_split(1024, 3072, ax=ax),
    "wheel": lambda ax=None: v.plot_wheel([0.3, 0.005, 0.25, 0.095, 0.2, 0.15], lambda i: WORDS[i], [0.1, 0.5, 0.93], ax=ax),
    "work": lambda ax=None: v.plot_work(40, 20, ax=ax),
    "work_shares": lambda ax=None: v.plot_work_shares([700, 120, 90, 350], 8, ax=ax),
}

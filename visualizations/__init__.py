"""Pictures of a running engine. Every `plot_*` returns a matplotlib `Figure`, and draws on `ax` when it is given one; the
explorers are widgets that step, play and drive. `Simulation` runs the real scheduler without a model.

They read a `Trace`, live objects or plain measurements, and import no torch; `theme.using(theme.DARK)` draws for dark
pages. `nanovllm` never imports this package; chapters import both.
"""

from nanovllm.fleet.simulation import Simulation
from visualizations.explorers.allocation import AllocationFilm
from visualizations.explorers.base import standalone_html
from visualizations.explorers.block_table import BlockTableExplorer
from visualizations.explorers.fleet import FleetExplorer
from visualizations.explorers.graph_timeline import GraphTimelineExplorer
from visualizations.explorers.journey import JourneyExplorer
from visualizations.explorers.monitor import BatchMonitor
from visualizations.explorers.online_softmax import OnlineSoftmaxExplorer
from visualizations.explorers.paged_attention import PagedAttentionExplorer
from visualizations.explorers.parallel_cost import ParallelCostExplorer
from visualizations.explorers.roofline import RooflineExplorer
from visualizations.explorers.sampler import RecordedLogits, SamplerExplorer, record_logits
from visualizations.explorers.scheduler import SchedulerExplorer
from visualizations.explorers.speculation import RecordedSpeculation, SpeculationExplorer, record_speculation
from visualizations.explorers.tensor_record import watch_tensors, x_ray
from visualizations.explorers.tensor_xray import TensorXRay
from visualizations.explorers.token_mask import RecordedMasks, TokenMaskExplorer, record_masks
from visualizations.figures.ablation import plot_ablation
from visualizations.figures.acceptance import plot_acceptance
from visualizations.figures.attention_mask import plot_attention_mask
from visualizations.figures.automaton import plot_automaton
from visualizations.figures.batch_composition import plot_batch_composition
from visualizations.figures.block_table import plot_block_tables
from visualizations.figures.by_position import plot_by_position
from visualizations.figures.cache_occupancy import plot_cache_occupancy
from visualizations.figures.checkpoint_file import plot_checkpoint_file
from visualizations.figures.curves import plot_curves
from visualizations.figures.draft_check import plot_draft_check
from visualizations.figures.draws import plot_bits, plot_wheel
from visualizations.figures.exponential_race import plot_exponential_race
from visualizations.figures.exponents import plot_exponents
from visualizations.figures.fleet import plot_fleet
from visualizations.figures.found_tokens import plot_found_tokens
from visualizations.figures.fragmentation import plot_fragmentation
from visualizations.figures.gpu_timeline import plot_gpu_timeline
from visualizations.figures.head_groups import plot_head_groups
from visualizations.figures.heat_maps import plot_heat_maps
from visualizations.figures.journey import plot_journey
from visualizations.figures.ladder import plot_ladder
from visualizations.figures.latency import plot_latencies, trace_latencies
from visualizations.figures.life_of_request import plot_life_of_request
from visualizations.figures.lines import plot_lines, plot_matrices
from visualizations.figures.load import plot_load_test
from visualizations.figures.memory_budget import plot_memory_budget
from visualizations.figures.memory_hierarchy import plot_memory_hierarchy
from visualizations.figures.name_map import name_map, plot_name_map
from visualizations.figures.next_token import plot_next_token
from visualizations.figures.one_query import plot_one_query
from visualizations.figures.online_softmax import plot_online_softmax
from visualizations.figures.operations import plot_operations
from visualizations.figures.overlap import plot_overlap
from visualizations.figures.padding_waste import plot_padding_waste
from visualizations.figures.parity import plot_parity
from visualizations.figures.part_shares import plot_part_shares
from visualizations.figures.places import plot_places
from visualizations.figures.prefix_tree import plot_prefix_tree
from visualizations.figures.quantized_block import plot_quantized_block
from visualizations.figures.rank_processes import plot_rank_processes
from visualizations.figures.reuse_order import plot_reuse_order
from visualizations.figures.ring import plot_ring
from visualizations.figures.roofline import Measured, plot_roofline
from visualizations.figures.rope import plot_rope
from visualizations.figures.rounds import plot_rounds
from visualizations.figures.routing import plot_routing, record_routing
from visualizations.figures.sampling_filters import plot_sampling_filters, sampling_stages
from visualizations.figures.serving_threads import plot_serving_threads
from visualizations.figures.shape_flow import plot_shape_flow, record_flow
from visualizations.figures.side_by_side import plot_side_by_side
from visualizations.figures.slot_scatter import plot_slot_scatter
from visualizations.figures.step_parts import plot_step_parts
from visualizations.figures.step_tensors import plot_step_tensors
from visualizations.figures.stretches import plot_stretches
from visualizations.figures.tensor_split import plot_tensor_split
from visualizations.figures.timeline import plot_request_timeline
from visualizations.figures.work import plot_work
from visualizations.figures.work_shares import plot_work_shares
from visualizations.listing import Listing, listing

__all__ = [
    "AllocationFilm", "BatchMonitor", "BlockTableExplorer", "FleetExplorer", "GraphTimelineExplorer", "JourneyExplorer",
    "Listing", "Measured", "OnlineSoftmaxExplorer", "PagedAttentionExplorer",
    "ParallelCostExplorer", "RecordedLogits", "RecordedMasks", "RecordedSpeculation",
    "RooflineExplorer", "SamplerExplorer", "SchedulerExplorer", "Simulation", "SpeculationExplorer", "TensorXRay",
    "TokenMaskExplorer", "listing", "name_map", "plot_ablation", "plot_acceptance", "plot_attention_mask",
    "plot_automaton", "plot_batch_composition", "plot_bits", "plot_block_tables", "plot_by_position",
    "plot_cache_occupancy", "plot_checkpoint_file", "plot_curves", "plot_draft_check", "plot_exponential_race",
    "plot_exponents", "plot_fleet", "plot_found_tokens", "plot_fragmentation", "plot_gpu_timeline", "plot_head_groups",
    "plot_heat_maps", "plot_journey", "plot_ladder", "plot_latencies", "plot_life_of_request", "plot_lines",
    "plot_load_test", "plot_matrices", "plot_memory_budget", "plot_memory_hierarchy", "plot_name_map", "plot_next_token",
    "plot_one_query",
    "plot_online_softmax", "plot_operations", "plot_overlap", "plot_padding_waste", "plot_parity", "plot_part_shares",
    "plot_places", "plot_prefix_tree", "plot_quantized_block",
    "plot_rank_processes", "plot_request_timeline", "plot_reuse_order", "plot_ring",
    "plot_roofline", "plot_rope", "plot_rounds", "plot_routing", "plot_sampling_filters", "plot_serving_threads",
    "plot_shape_flow", "plot_side_by_side", "plot_slot_scatter", "plot_step_parts", "plot_step_tensors", "plot_stretches",
    "plot_tensor_split", "plot_wheel", "plot_work", "plot_work_shares", "record_flow", "record_journey", "record_logits",
    "record_masks", "record_routing", "record_speculation", "sampling_stages", "standalone_html", "trace_latencies",
    "watch_tensors", "x_ray",
]


def __getattr__(name: str) -> object:
    """`record_journey` walks through the model's layers and needs torch; whoever does not ask for it loads none."""
    if name == "record_journey":
        from visualizations.explorers.journey_record import record_journey

        return record_journey
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

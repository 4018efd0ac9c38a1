"""Pictures of a running engine. Every `plot_*` returns a matplotlib `Figure`, and draws on `ax` when it is given one; the
explorers are widgets that step, play and drive. `Simulation` runs the real scheduler without a model.

They read a `Trace`, live objects or plain measurements, and import no torch; `theme.using(theme.DARK)` draws for dark
pages. `nanovllm` never imports this package; chapters import both.
"""

from visualizations.ablation import plot_ablation
from visualizations.attention_mask import plot_attention_mask
from visualizations.batch_composition import plot_batch_composition
from visualizations.block_table import plot_block_tables
from visualizations.by_position import plot_by_position
from visualizations.cache_occupancy import plot_cache_occupancy
from visualizations.checkpoint_file import plot_checkpoint_file
from visualizations.curves import plot_curves
from visualizations.explorers.base import standalone_html
from visualizations.explorers.block_table import BlockTableExplorer
from visualizations.explorers.graph_timeline import GraphTimelineExplorer
from visualizations.explorers.journey import JourneyExplorer
from visualizations.explorers.monitor import BatchMonitor
from visualizations.explorers.sampler import RecordedLogits, SamplerExplorer, record_logits
from visualizations.explorers.scheduler import SchedulerExplorer
from visualizations.explorers.tensor_record import watch_tensors, x_ray
from visualizations.explorers.tensor_xray import TensorXRay
from visualizations.exponential_race import plot_exponential_race
from visualizations.fragmentation import plot_fragmentation
from visualizations.gpu_timeline import plot_gpu_timeline
from visualizations.journey import plot_journey
from visualizations.latency import plot_latencies, trace_latencies
from visualizations.life_of_request import plot_life_of_request
from visualizations.memory_budget import plot_memory_budget
from visualizations.name_map import name_map, plot_name_map
from visualizations.next_token import plot_next_token
from visualizations.online_softmax import plot_online_softmax
from visualizations.operations import plot_operations
from visualizations.overlap import plot_overlap
from visualizations.padding_waste import plot_padding_waste
from visualizations.parity import plot_parity
from visualizations.prefix_tree import plot_prefix_tree
from visualizations.roofline import Measured, plot_roofline
from visualizations.rope import plot_rope
from visualizations.rounds import plot_rounds
from visualizations.sampling_filters import plot_sampling_filters, sampling_stages
from visualizations.shape_flow import plot_shape_flow, record_flow
from visualizations.side_by_side import plot_side_by_side
from visualizations.simulation import Simulation
from visualizations.slot_scatter import plot_slot_scatter
from visualizations.step_parts import plot_step_parts
from visualizations.step_tensors import plot_step_tensors
from visualizations.stretches import plot_stretches
from visualizations.tensor_split import plot_tensor_split
from visualizations.timeline import plot_request_timeline
from visualizations.work import plot_work
from visualizations.work_shares import plot_work_shares

__all__ = [
    "BatchMonitor", "BlockTableExplorer", "GraphTimelineExplorer", "JourneyExplorer", "Measured", "RecordedLogits",
    "SamplerExplorer", "SchedulerExplorer", "Simulation", "TensorXRay", "name_map", "plot_ablation",
    "plot_attention_mask", "plot_batch_composition", "plot_block_tables", "plot_by_position", "plot_cache_occupancy",
    "plot_checkpoint_file", "plot_curves", "plot_exponential_race", "plot_fragmentation", "plot_gpu_timeline",
    "plot_journey", "plot_latencies", "plot_life_of_request", "plot_memory_budget", "plot_name_map", "plot_next_token",
    "plot_online_softmax", "plot_operations", "plot_overlap", "plot_padding_waste", "plot_parity", "plot_prefix_tree",
    "plot_request_timeline", "plot_roofline", "plot_rope", "plot_rounds", "plot_sampling_filters", "plot_shape_flow",
    "plot_side_by_side", "plot_slot_scatter", "plot_step_parts", "plot_step_tensors", "plot_stretches",
    "plot_tensor_split", "plot_work", "plot_work_shares", "record_flow", "record_journey", "record_logits",
    "sampling_stages", "standalone_html", "trace_latencies", "watch_tensors", "x_ray",
]


def __getattr__(name: str):
    """`record_journey` walks through the model's layers and needs torch; whoever does not ask for it loads none."""
    if name == "record_journey":
        from visualizations.explorers.journey_record import record_journey

        return record_journey
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

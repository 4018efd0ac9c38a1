"""Pictures of a running engine. Every figure reads a `StepRecord` or a `Trace` and returns a matplotlib `Figure`.

`nanovllm` never imports this package; chapters import both.
"""

from visualizations.batch_composition import plot_batch_composition
from visualizations.block_table import plot_block_tables
from visualizations.cache_occupancy import plot_cache_occupancy
from visualizations.journey import plot_journey
from visualizations.next_token import plot_next_token
from visualizations.timeline import plot_request_timeline

__all__ = ["plot_batch_composition", "plot_block_tables", "plot_cache_occupancy", "plot_journey", "plot_next_token",
           "plot_request_timeline"]

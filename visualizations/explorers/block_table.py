"""BlockTableExplorer: from a token to the slot that holds its key and value, and to everybody who reads it there."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from nanovllm.tracing.trace import Trace
from nanovllm.utils.checks import check
from visualizations import theme
from visualizations.explorers.run_explorer import RunExplorer
from visualizations.explorers.sources import Books, Recording, texts_of
from visualizations.figures.block_table import plot_block_tables

STILL_TABLES = 10   # sequences in the still picture
STILL_BLOCKS = 120  # with more, the still leaves the cache out


class BlockTableExplorer(RunExplorer):
    """Choose a token: its logical block, the block table's entry, the physical slot, and who shares it; step by step.

        BlockTableExplorer(trace, tokens={0: prompt_token_ids}, decode=tokenizer_decode)   # replay; both may be left out
        BlockTableExplorer(Simulation(num_blocks=16))              # drive the scheduler alone, with made-up tokens
        BlockTableExplorer(llm)                                    # drive a live engine, from where it is
        BlockTableExplorer(block_manager, [seq, other])            # books kept by hand: `refresh` looks at them again

    Below the tables stands the line of blocks that will be reused next. seq_id, position: the token chosen at first;
    None is the last of the first running sequence. tokens: {seq_id: prompt token ids} of a trace, decode: token id ->
    text, to show what the tokens say. Raises ValueError for what is no source and for a token that no step has.
    """

    module = "block_table.js"
    eviction = True

    def __init__(self, source: Any, sequences: list[Any] | None = None, *, tokens: dict[int, list[int]] | None = None,
                 decode: Callable[[int], str] | None = None, step: int = 0, seq_id: int | None = None,
                 position: int | None = None, label: str = "From a token to its slot in the cache",
                 follow: bool = False) -> None:
        if sequences is not None:
            source = Books(source, sequences, decode)
        elif isinstance(source, Trace):
            source = Recording(source, tokens, decode)
        self._chosen = (seq_id, position)
        super().__init__(source, label=label, step=step, follow=follow)
        known = self.source.trace.meta["prompts"]
        check(seq_id is None or seq_id in known, "seq_id", seq_id, f"one of {sorted(known)}", "choose a request of this run")

    def _data(self) -> dict[str, Any]:
        data = super()._data() | {"texts": texts_of(self.source), "chosen": self._chosen}
        return data | ({"says": self.source.says} if isinstance(self.source, Books) else {})

    def refresh(self, says: str = "The books, looked at again.") -> None:
        """Show what happened to the source elsewhere; says: what was done, when the books are kept by hand."""
        if isinstance(self.source, Books):
            self.source.look(says)
        super().refresh()

    def summary(self) -> str:
        trace = self.source.trace
        return (f"{self.label}: {trace!r}, {trace.meta['num_blocks']} blocks of {trace.meta['block_size']} tokens. Run this "
                "cell in JupyterLab to choose tokens and blocks.")

    def figure(self) -> Figure:
        """The block tables after the step shown (a step later than the last one is the last), above the whole cache."""
        trace = self.source.trace
        if not len(trace):
            fig, ax = theme.canvas(None, 10, 1.2)
            theme.no_axes(ax)
            theme.title(ax, self.label, "Nothing has run yet.")
            return fig
        record = trace[min(self.step, len(trace) - 1)]
        shown = dict(list(record.block_tables.items())[:STILL_TABLES])
        whole = len(shown) == len(record.block_tables) and len(record.blocks) <= STILL_BLOCKS
        return plot_block_tables(trace, replace(record, block_tables=shown), physical=whole)

"""BlockTableExplorer: from a token to the slot that holds its key and value, and to everybody who reads it there."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from nanovllm.tracing.step_record import StepRecord
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
        books = self.source
        return data | ({"says": books.says, "focus": books.focus, "copied": books.copied} if isinstance(books, Books) else {})

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
        """The block tables after the step shown (a step later than the last one is the last), above the whole cache.

        The chosen token's block is ringed, and the caption says how to get there.
        """
        trace = self.source.trace
        if not len(trace):
            fig, ax = theme.canvas(None, 10, 1.2)
            theme.no_axes(ax)
            theme.title(ax, self.label, "Nothing has run yet.")
            return fig
        step = min(self.step, len(trace) - 1)
        record = trace[step]
        shown = dict(list(record.block_tables.items())[:STILL_TABLES])
        whole = len(shown) == len(record.block_tables) and len(record.blocks) <= STILL_BLOCKS
        books = self.source if isinstance(self.source, Books) else None
        block, way = self._way(record, *(self._chosen if self._chosen[1] is not None or not books else
                                         books.focus.get(step, (None, None))))
        return plot_block_tables(trace, replace(record, block_tables=shown), physical=whole, lit=block,
                                 copied=books.copied.get(step) if books else None, caption=books.says[step] if books else way)

    def _way(self, record: StepRecord, seq_id: int | None, position: int | None) -> tuple[int | None, str | None]:
        """The block that holds a token, and in words how to find its slot; (None, None) where no token is chosen or held."""
        size = self.source.trace.meta["block_size"]
        if seq_id is None or position is None or not 0 <= position < record.context_lens.get(seq_id, 0):
            return None, None
        logical, offset = divmod(position, size)
        block = record.block_tables[seq_id][logical]
        others = [i for i, table in record.block_tables.items() if block in table and i != seq_id]
        return block, (f"Sequence {seq_id}, position {position} = {logical} × {size} + {offset}: entry {logical} of its table "
                       f"is block {block} (ringed), and the slot is {block} × {size} + {offset} = {block * size + offset}."
                       + (f" Sequence{'s' if len(others) > 1 else ''} {' and '.join(map(str, others))} read"
                          f"{'' if len(others) > 1 else 's'} it there, too." if others else ""))

"""Which sequence has which row of the decode batch, and which rows the host must write before a step."""

from heapq import heappop, heappush

import numpy as np

from nanovllm.engine.scheduled_batch import ScheduledSequence
from nanovllm.utils.filters import NO_TOP_K

RECORD_SIZE = 10  # of `utils.row_state.RECORD`, which is not imported since it needs torch
UNKNOWN = -2  # a row that the device must be given anew


class DecodeRows:
    """The host's picture of the rows in `utils.row_state.RowState`.

    A sequence keeps its row for as long as it decodes. A new one takes the lowest empty row, and when so many have left
    that a smaller batch would do, those at the end move into the gaps. The device advances every row by one token per
    step. All other changes are found here, by comparing the position at which each sequence is to run with the position
    that its row will have. A row that differs is written anew, whatever the reason, so no notice of prompts, preemptions
    or steps rolled back is needed.

    Imports no torch. sizes: the batch sizes that can run, in rising order (see `cuda_graphs.batch_sizes`).
    """

    def __init__(self, sizes: list[int], block_size: int, max_blocks: int):
        self.block_size, self.max_blocks = block_size, max_blocks
        self._sizes = np.array(sizes)
        self._cached = np.full(sizes[-1], -1)  # the position of each row when the next step begins
        self.reset()
        self._cached[:] = -1  # the device's rows are empty, too

    def size_for(self, num_rows: int) -> int:
        """The smallest batch that holds so many rows."""
        return int(self._sizes[np.searchsorted(self._sizes, num_rows)])

    def invalidate(self) -> None:
        """The sequences ran elsewhere: every row still in use will be written anew."""
        self._cached[self._cached >= 0] = UNKNOWN

    def reset(self) -> None:
        """Take every row from its sequence, after a step that failed, perhaps within `assign`: all will be written anew."""
        self.row_of: dict[int, int] = {}  # by seq_id; replaced, never changed in place: the runner keeps the last one
        self.rows = np.zeros(0, np.int64)  # of the batch's items, in their order
        self.resampled: list[int] = []  # items whose draw takes more than a mask, temperature and filters
        self.any_filtered = False
        self._seq_ids: list[int] = []
        self._is_draft = np.zeros(0, bool)
        self._size = int(self._sizes[0])
        self._cached[:] = UNKNOWN
        self._empty = list(range(len(self._cached)))  # a heap

    def assign(self, items: list[ScheduledSequence], drawn_by: dict[int, int]) -> tuple[int, np.ndarray, np.ndarray]:
        """Give each item its row; returns (batch size, records, entries), which `write_rows` takes.

        items: all with one token, and sampling. drawn_by: by seq_id, the index of its token among the last step's.
        """
        seq_ids = [item.seq.seq_id for item in items]
        if seq_ids != self._seq_ids:
            self._reassign(seq_ids)
            self._is_draft = np.array(seq_ids) < 0  # its input is a guess, whatever its row drew before (see `draft_rows`)
            self.resampled = [i for i, item in enumerate(items) if not item.seq.sampling_params.draws_from_logits]
            self.any_filtered = any(item.seq.sampling_params.filtered for item in items)
        starts, rows = np.array([item.start for item in items]), self.rows
        fresh = (self._cached[rows] != starts) | self._is_draft
        grown = (starts % self.block_size == 0) & ~fresh
        records: list[tuple[int, ...]] = []
        entries: list[tuple[int, int]] = []
        for i in np.flatnonzero(fresh).tolist():
            row = int(rows[i])
            records.append(self.record(row, items[i], drawn_by))
            entries += enumerate(items[i].seq.block_table, row * self.max_blocks)
        for i in np.flatnonzero(grown).tolist():
            block = items[i].start // self.block_size
            entries.append((int(rows[i]) * self.max_blocks + block, items[i].seq.block_table[block]))
        vacant = self._cached == UNKNOWN
        vacant[rows] = False
        records += [(row, -1, 0, 0, 0, 0, *NO_FILTERS, 0) for row in np.flatnonzero(vacant).tolist()]
        self._cached[vacant] = -1
        self._cached[rows] = starts + 1
        return self._size, np.array(records, np.int64).reshape(-1, RECORD_SIZE), np.array(entries, np.int64).reshape(-1, 2)

    def _reassign(self, seq_ids: list[int]) -> None:
        """Rows for a batch of other sequences than the last. Rows that change hands become UNKNOWN."""
        row_of, staying = {}, set(seq_ids)
        for seq_id, row in self.row_of.items():
            if seq_id in staying:
                row_of[seq_id] = row
            else:
                self._release_row(row)
        for seq_id in seq_ids:
            if seq_id not in row_of:
                row_of[seq_id] = self._claim_row()
        self._size = self.size_for(len(seq_ids))
        for seq_id, row in row_of.items():
            if row >= self._size:
                # The row left behind stays empty, since new sequences have theirs by now; its token can still be read.
                row_of[seq_id] = self._claim_row()
                self._release_row(row)
        self.row_of, self._seq_ids = row_of, seq_ids
        self.rows = np.array([row_of[seq_id] for seq_id in seq_ids])

    def _claim_row(self) -> int:
        row = heappop(self._empty)
        self._cached[row] = UNKNOWN
        return row

    def _release_row(self, row: int) -> None:
        heappush(self._empty, row)
        self._cached[row] = UNKNOWN

    @staticmethod
    def record(row: int, item: ScheduledSequence, drawn_by: dict[int, int]) -> tuple[int, ...]:
        """In the order of `utils.row_state.RECORD`."""
        seq = item.seq
        token = -1 - drawn_by[seq.seq_id] if seq.num_pending_tokens else seq.token_ids[-1]
        params = seq.sampling_params
        filters = NO_FILTERS
        if params.filtered:
            filters = (params.top_k if params.top_k > 0 else NO_TOP_K, _bits(params.top_p), _bits(params.min_p))
        return (row, item.start, seq.num_cached_tokens, seq.num_prompt_tokens, seq.seed, _bits(params.temperature), *filters,
                token)


def _bits(number: float) -> int:
    """The number as float32, and its bits as a whole number."""
    return int(np.float32(number).view(np.int32))


NO_FILTERS = (NO_TOP_K, _bits(1), _bits(0))

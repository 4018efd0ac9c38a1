"""One step on two ranks: which process does what, who is told what, and where the ranks wait for each other."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visualizations import theme
from visualizations.figures.lanes import Handed, Together, Work, draw_lanes

CALLER, HOST_0, GPU_0, GPU_1, HOST_1 = range(5)
LANES = (("caller", "schedules for all:\na cell, or a thread"), ("rank 0", "a process: Worker\nand ModelRunner"),
         ("GPU 0", "half of the weights,\nand of the cache"), ("GPU 1", "the other half"),
         ("rank 1", "a process: Worker\nand ModelRunner"))


@theme.in_both_modes
def plot_rank_processes(*, ax: Axes | None = None) -> Figure:
    """One decode step on two ranks: the caller's one message, the ranks' work and their sums, and the tokens' way back.

    Colours are ranks, light for a rank's host and dark for its GPU; grey is what both do together.
    """
    works = [Work(CALLER, 0, 12, "schedule", "other"), Work(CALLER, 12, 23, "message", "other"),
             Work(CALLER, 23, 93, "collect: waits for both, and looks at the heartbeats", "waits"),
             Work(CALLER, 93, 105, "compare,\nupdate", "other")]
    for rank, host, gpu in ((0, HOST_0, GPU_0), (1, HOST_1, GPU_1)):
        works += [Work(host, 25, 33, "read", owner=rank), Work(host, 33, 42, "launch", owner=rank),
                  Work(host, 42, 84, "waits for its GPU", "waits"), Work(host, 84, 92, "reply", owner=rank)]
        for start, end, text in ((37, 45, "embed"), (48, 56, "attn"), (59, 67, "mlp"), (70, 84, "…, head,\ndraw")):
            works.append(Work(gpu, start, end, text, "device", rank))
        works += [Work(gpu, start, start + 3, "", "sum") for start in (45, 56, 67)]
    sums = [arrow for at in (46.5, 57.5, 68.5)
            for arrow in (Handed((GPU_1, at), (GPU_0, at)), Handed((GPU_0, at), (GPU_1, at), 2))]
    arrows = [Handed((CALLER, 19), (HOST_0, 27), 1), Handed((CALLER, 15.5), (HOST_1, 27), 1), *sums,
              Handed((HOST_0, 88), (CALLER, 94.5), 3), Handed((HOST_1, 90), (CALLER, 97.5), 3)]
    return draw_lanes(LANES, works, arrows, [Together(HOST_0, GPU_0), Together(GPU_1, HOST_1)], until=105,
                      title="Who does what in a step of two ranks",
                      caption="The caller sends both ranks the same message (1) and hears from both (3). "
                              "In the grey stretches each waits for the other: a sum (2).", ax=ax)

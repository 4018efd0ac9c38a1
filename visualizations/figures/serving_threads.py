"""One turn of the engine's loop when it is served: which thread does what, what it hands on, and what waits for what."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visualizations import theme
from visualizations.figures.lanes import Handed, Together, Work, draw_lanes

CLIENT, LOOP, HELPERS, ENGINE, GPU = range(5)
LANES = (("clients", "anywhere"), ("event loop", "a thread: HTTP,\nFastAPI, AsyncLLM"),
         ("helper threads", "asyncio.to_thread"), ("engine thread", "alone steps the\nengine"),
         ("GPU", "one step after\nthe other"))


@theme.in_both_modes
def plot_serving_threads(*, ax: Axes | None = None) -> Figure:
    """`nanovllm serve` on a GPU, with two steps in flight: a request comes in while the words of others go out.

    Colours are steps, light for the engine thread's part and dark for the GPU's. Time runs to the right, without a scale.
    """
    works = [Work(CLIENT, 0, 8, "POST", "other"), Work(CLIENT, 8, 91, "wait for words", "waits"),
             Work(CLIENT, 91, 100, "words", "other"),
             Work(LOOP, 3, 11, "parse,\ncheck", "other"), Work(LOOP, 21, 29, "submit", "other"),
             Work(LOOP, 31, 80, "free for other requests: it never waits for a step", "free"),
             Work(LOOP, 82, 93, "events", "other"),
             Work(HELPERS, 10, 22, "template,\ntokens", "other"),
             Work(ENGINE, 0, 25, "the turn before", "other"), Work(ENGINE, 25, 35, "run com-\nmands", "other"),
             Work(ENGINE, 35, 44.5, "schedule\n8", owner=0), Work(ENGINE, 44.5, 52, "launch\n8", owner=0),
             Work(ENGINE, 52, 65, "collect 7:\nwaits", "waits"), Work(ENGINE, 65, 73, "update\n7", owner=1),
             Work(ENGINE, 73, 78.5, "text\n7", owner=1), Work(ENGINE, 78.5, 86.5, "deliver\n7", owner=1),
             Work(ENGINE, 86.5, 100, "the next turn", "other"),
             Work(GPU, 0, 22, "step 6", "device", 0), Work(GPU, 22, 65, "step 7", "device", 1),
             Work(GPU, 65, 100, "step 8", "device", 0)]
    arrows = [Handed((CLIENT, 5), (LOOP, 5), 1), Handed((LOOP, 9), (HELPERS, 13), 2), Handed((HELPERS, 20), (LOOP, 23), 3),
              Handed((LOOP, 27), (ENGINE, 29), 4), Handed((ENGINE, 49), (GPU, 66.5), 5), Handed((GPU, 63.5), (ENGINE, 63.5), 6),
              Handed((ENGINE, 83), (LOOP, 85.5), 7), Handed((LOOP, 90), (CLIENT, 94), 8)]
    return draw_lanes(LANES, works, arrows, [Together(LOOP, ENGINE, "one process", HELPERS)], until=100,
                      title="Who does what when the engine is served",
                      caption="One turn of the engine's loop. Numbers in boxes are steps; dotted: waits. "
                              "A request comes in by arrows 1 to 4, words of others go out by 6 to 8.", ax=ax)

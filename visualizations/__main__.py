"""`python -m visualizations TRACE -o report.html`: a recorded run as one page, with nothing to install or to reach."""

import argparse
import sys
from pathlib import Path

import matplotlib

from nanovllm.tracing.trace import Trace


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m visualizations", description="Make a report of a run that "
                                     "`with llm.trace('run.trace'): ...` or `trace.save('run.trace')` recorded.")
    parser.add_argument("trace", type=Path, metavar="TRACE")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page (default: %(default)s)")
    parser.add_argument("--steps", metavar="FROM:TO", type=_steps, help="the steps that the pictures show, counted as Python "
                        "slices are; default: the first 200")
    parser.add_argument("--title", help="default: the trace's name")
    parser.add_argument("--perfetto", type=Path, metavar="FILE", help="write the run for https://ui.perfetto.dev, too; .gz "
                        "compresses it")
    options = parser.parse_args(arguments)
    matplotlib.use("Agg")
    from visualizations.report import report_html

    try:
        trace = Trace.load(options.trace)
        page = report_html(trace, options.title or options.trace.name, options.steps)
        options.output.write_text(page, encoding="utf-8")
        if options.perfetto:
            trace.to_perfetto(options.perfetto)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: {len(page.encode()) / 2**20:.1f} MiB, {trace!r}")
    return 0


def _steps(text: str) -> slice:
    start, _, stop = text.partition(":")
    try:
        return slice(int(start) if start else None, int(stop) if stop else None)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: must be two whole numbers, as in 200:400; leave one out for an end") \
            from None


if __name__ == "__main__":
    sys.exit(main())

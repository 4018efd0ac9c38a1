"""Where you are in the course, from a terminal.

    python -m chapters                what is solved, and what comes next
    python -m chapters open [04]      that chapter in JupyterLab; without a number, the next one with something to solve
    python -m chapters check 04       run its checks on the answers in your notebook, as saved (one of them: check 04 share)
    python -m chapters capstone       your scheduler, block manager, sampler and drafter serve the demo's chats
    python -m chapters forget         start over: forgets what was solved, and touches no notebook

A check that passes, here or in a notebook, is noted in a file of your own (its place is printed below the table).
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from chapters.contents import HERE, Chapter, chapter_of, chapters
from chapters.exercises.progress import Progress

CAPSTONE = "capstone.serve"  # its name among what is solved
NO_READER = 128 + 13  # what a shell reports of a program that SIGPIPE ended: nobody reads on (python -m chapters | head)


def table(progress: Progress, folder: Path = HERE) -> str:
    """A line for each chapter: its number, what is solved, how long it takes, and its question."""
    solved = progress.solved()
    lines = []
    for chapter in chapters(folder):
        marks = "".join("●" if key in solved else "○" for key in keys_of(chapter))
        about = chapter.question or chapter.title
        lines.append(f"{chapter.number:>2}  {marks:<11}  {chapter.minutes:>3} min  {about}")
    lines.append(f"    {'●' if CAPSTONE in solved else '○':<11}           the capstone: an engine of your own parts")
    return "\n".join(lines)


def keys_of(chapter: Chapter) -> list[str]:
    """The names under which its exercises are noted, in order."""
    return [f"{chapter.module_name}.{exercise.name}" for exercise in chapter.exercises]


def next_chapter(progress: Progress, folder: Path = HERE) -> tuple[Chapter, str] | None:
    """The first chapter with an exercise that is not solved, and that exercise's title; None when all are."""
    solved = progress.solved()
    for chapter in chapters(folder):
        for key, exercise in zip(keys_of(chapter), chapter.exercises, strict=True):
            if key not in solved:
                return chapter, exercise.title
    return None


def check(number: str, only: str | None, progress: Progress, folder: Path) -> int:
    from chapters.answers import verdicts

    chapter = chapter_of(number, folder)
    if not chapter.exercises:
        print(f"chapter {chapter.number} has no exercises")
        return 0
    found = verdicts(chapter, only)
    if not found:
        names = ", ".join(exercise.title for exercise in chapter.exercises)
        print(f"chapter {chapter.number} has no exercise like {only!r}; there are: {names}", file=sys.stderr)
        return 2
    for name, verdict in found.items():
        print(verdict)
        if verdict:
            progress.note(chapter.module_name or "", name)
    return 0 if all(found.values()) else 1


def capstone(progress: Progress, folder: Path) -> int:
    from chapters.answers import module_of, verdicts
    from chapters.exercises import capstone as work

    parts, missing = {}, []
    for name, number in work.PARTS.items():
        chapter = chapter_of(number, folder)
        [exercise] = [one for one in chapter.exercises if one.answer == name]
        print(f"chapter {number}, {name}: ", end="", flush=True)
        [verdict] = verdicts(chapter, exercise.name).values()
        print("passed" if verdict else verdict, flush=True)
        if verdict:
            parts[name] = getattr(module_of(chapter), name)
            progress.note(chapter.module_name or "", exercise.name)
        else:
            missing.append(chapter)
    if missing:
        print("\nThe capstone is built of these four answers. Write what is missing into")
        print(*[f"  {one.path}" for one in missing], sep="\n")
        where = "" if folder == HERE else f" --notebooks {folder}"
        print(f"save, and run this again. To open the first: python -m chapters{where} open {missing[0].number}")
        return 1
    print("\nOne engine of these four parts answers, and the finished engine is asked the same:")
    try:
        for request, text in work.serve(parts):
            print(f"\n{request}\n  {text}")
    except RuntimeError as error:
        print(f"\nnot yet · {error}")
        return 1
    progress.note(*CAPSTONE.split("."))
    print("\nEvery part of it is yours. That is the course.")
    return 0


def open_chapter(number: str | None, progress: Progress, folder: Path) -> int:
    found = next_chapter(progress, folder)
    chapter = chapter_of(number, folder) if number else found[0] if found else chapters(folder)[0]
    root = folder.parent if folder == HERE else folder
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root}", str(chapter.path)]
    print(f"opening chapter {chapter.number}: {chapter.title}")
    return subprocess.run(command, check=False).returncode


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status. A reader of the output who has seen enough ends it without a word."""
    try:
        status = run(arguments)
        sys.stdout.flush()  # here, where it can be caught, and not when the interpreter ends
    except BrokenPipeError:
        # What is still in the buffer goes nowhere, or the interpreter would complain about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    return status


def run(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m chapters", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--notebooks", type=Path, default=HERE, metavar="FOLDER",
                        help="where yours are, if not in the repository")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    opens = commands.add_parser("open", help="a chapter in JupyterLab")
    opens.add_argument("number", nargs="?")
    checks = commands.add_parser("check", help="run a chapter's checks on your answers")
    checks.add_argument("number")
    checks.add_argument("exercise", nargs="?", help="part of its name or title")
    commands.add_parser("capstone", help="serve with your own parts")
    commands.add_parser("forget", help="start over")
    options = parser.parse_args(arguments)
    progress = Progress()
    try:
        if options.command == "check":
            return check(options.number, options.exercise, progress, options.notebooks)
        if options.command == "open":
            return open_chapter(options.number, progress, options.notebooks)
        if options.command == "capstone":
            return capstone(progress, options.notebooks)
    except LookupError as error:
        print(error, file=sys.stderr)
        return 2
    if options.command == "forget":
        progress.forget()
    print(table(progress, options.notebooks))
    found = next_chapter(progress, options.notebooks)
    if found:
        print(f"\nnext: chapter {found[0].number}, {found[0].title}: {found[1]} (python -m chapters open {found[0].number})")
    elif CAPSTONE not in progress.solved():
        print("\nnext: the capstone (python -m chapters capstone)")
    else:
        print("\nall solved, the capstone, too")
    print(f"noted in {progress.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

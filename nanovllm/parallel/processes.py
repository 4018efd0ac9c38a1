"""What can be told of another process from outside."""

import contextlib
import signal
from pathlib import Path


def mapped_shared_memory(pid: int | str) -> set[str]:
    """NCCL's files in /dev/shm that a process has mapped, to be removed once it has been ended by force.

    Not those of other processes, which may still be in use. Empty where there is no /proc, or no such process any more.
    """
    files = set()
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines():
            name = line.partition("/dev/shm/")[2]
            if name.startswith("nccl-") and not name.endswith("(deleted)"):
                files.add(f"/dev/shm/{name}")
    return files


def exit_description(returncode: int) -> str:
    """How a process ended, as the end of a sentence: its exit code, or the signal that ended it."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    name = signal.Signals(-returncode).name if -returncode in set(signal.Signals) else f"signal {-returncode}"
    cause = ", perhaps by the system for want of memory" if name == "SIGKILL" else ""
    return f"was ended by {name}{cause}"

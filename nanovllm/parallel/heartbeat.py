"""Signs of life of several processes, in one page of memory that they all see."""

import mmap
import time

BEAT, PROGRESS = range(2)


class Heartbeat:
    """A page with two times for each rank, by `time.monotonic`, which all processes of a machine share.

    beat: when the rank's process last ran at all; it stands still in a process that is stopped, or held by a driver.
    progress: when it last made progress; it stands still, too, in one that waits for something that never comes.
    Both are 0 until the process has begun. Reading costs nothing and writing never waits. A
    reader always finds the newest times, and no queue of old ones.

    fd: a file of at least a page; without a name, it is gone with the last process that holds it.
    """

    def __init__(self, fd: int):
        self._map = mmap.mmap(fd, mmap.PAGESIZE)
        self._times = memoryview(self._map).cast("d")

    def close(self) -> None:
        self._times.release()
        self._map.close()

    def beat(self, rank: int) -> None:
        self._times[2 * rank + BEAT] = time.monotonic()

    def progress(self, rank: int) -> None:
        self._times[2 * rank + PROGRESS] = time.monotonic()

    def last_beat(self, rank: int) -> float:
        return self._times[2 * rank + BEAT]

    def last_progress(self, rank: int) -> float:
        return self._times[2 * rank + PROGRESS]

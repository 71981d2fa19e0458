# SPDX-License-Identifier: Apache-2.0
"""Several loads at once, each in a process that repeats its own, until told to stop."""

from __future__ import annotations

import gc
import mmap
import os
import signal
import time
import traceback
from collections.abc import Callable

import numpy as np

_LATE_SECONDS = 300  # for what a load has begun; a loaded emulator is slow


class Counts:
    """Numbers that all processes of a run share, by name."""

    def __init__(self, names: list[str]) -> None:
        self._place = {name: place for place, name in enumerate(names)}
        shared = mmap.mmap(-1, len(names) * 8, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        self._numbers = np.frombuffer(shared, np.int64)

    def __getitem__(self, name: str) -> int:
        return int(self._numbers[self._place[name]])

    def add(self, name: str) -> None:
        """Add one; each name has one process only that adds to it."""
        self._numbers[self._place[name]] += 1

    def __str__(self) -> str:
        return ", ".join(f"{name} {self[name]}" for name in self._place)


Turn = Callable[[int], None]
#: A load: called in its own process, it makes what it needs and returns what to repeat.
Load = Callable[[Counts], Turn]


class Together:
    """Loads that run at once, each in a process, while a ``with`` block lasts.

    They get what they need one after the other, as some change the machine for that, and then
    begin together. At the end of the block they are told to stop, and what they found is raised.
    """

    def __init__(self, loads: dict[str, Load], counts: Counts) -> None:
        reader, writer = os.pipe()
        self._errors = open(reader)  # noqa: SIM115, closed at the end
        self._stop = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        go, start = os.pipe()
        # Or the garbage collection of each child would touch, and so copy, all objects of this one.
        gc.collect()
        gc.freeze()
        self._running: dict[int, str] = {}
        self._failed: list[str] = []
        for name, load in loads.items():
            ready, begun = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(start)
                _be(name, load, counts, self._stop, begun, go, writer)
            os.close(begun)
            os.read(ready, 1)  # the end of the pipe: it is ready, or has ended
            os.close(ready)
            self._running[pid] = name
        for end in (start, go, writer):
            os.close(end)
        gc.unfreeze()

    def all_run(self) -> bool:
        """Say whether none of them has ended, as one that finds something wrong does."""
        self._reap()
        return not self._failed

    def _reap(self) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            name = self._running.pop(pid)
            if status or not self._stop[0]:
                self._failed.append(f"{name} ended with {os.waitstatus_to_exitcode(status)}")

    def __enter__(self) -> Together:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop[0] = 1
        end = time.monotonic() + _LATE_SECONDS
        while self._running:
            self._reap()
            time.sleep(0.05)
            if time.monotonic() > end:
                self._failed += [f"{name} does not end" for name in self._running.values()]
                for pid in self._running:
                    os.kill(pid, signal.SIGKILL)
                break
        with self._errors as errors:
            text = "" if self._running else errors.read()
        if self._failed:
            raise AssertionError("; ".join(self._failed) + "\n" + text)


def _be(
    name: str, load: Load, counts: Counts, stop: mmap.mmap, ready: int, go: int, errors: int
) -> None:
    """Be the process of a load: repeat it until told to stop."""
    code = 1
    try:
        turn = load(counts)
        os.close(ready)
        os.read(go, 1)  # the end of the pipe, once all are ready
        number = 0
        while not stop[0]:
            turn(number)
            number += 1
            counts.add(name)
        code = 0
    except BaseException:
        os.write(errors, f"{name}: {traceback.format_exc()}".encode())
    finally:
        os._exit(code)

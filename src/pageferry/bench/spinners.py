# SPDX-License-Identifier: Apache-2.0
"""Other work: processes that count, so that it can be seen what a move costs them."""

from __future__ import annotations

import mmap
import os
import signal
import time
from types import TracebackType

_LINE = 8  # words between two counters: a cache line
_TURNS = 500  # between two looks
_LONGEST = 4 * 3600  # seconds; nobody spins for ever


class Spinners:
    """``count`` processes of ordinary priority that use all the CPU time they get, and count turns.

    A context manager: they end with it, and with the process that began them.
    """

    def __init__(self, count: int) -> None:
        self._map = mmap.mmap(-1, max(count, 1) * _LINE * 8)
        self._counters = memoryview(self._map).cast("Q")
        self._children: list[int] = []
        try:
            for number in range(count):
                self._children.append(self._begin(number))
            while count and not all(self._counters[i * _LINE] for i in range(count)):
                time.sleep(0.001)
        except BaseException:
            self.end()
            raise

    def _begin(self, number: int) -> int:
        parent = os.getpid()
        child = os.fork()
        if child:
            return child
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_LONGEST)
            place, turns = number * _LINE, 0
            while os.getppid() == parent:
                for _ in range(_TURNS):
                    turns += 1
                self._counters[place] = turns
        finally:
            os._exit(0)

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self._children)

    @property
    def turns(self) -> int:
        """Turns of all of them so far."""
        return sum(self._counters[place] for place in range(0, len(self._counters), _LINE))

    def end(self) -> None:
        """End them and wait until they are gone."""
        for child in self._children:
            os.kill(child, signal.SIGKILL)
        for child in self._children:
            os.waitpid(child, 0)
        self._children.clear()

    def __enter__(self) -> Spinners:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

# SPDX-License-Identifier: Apache-2.0
"""Steering a move that is under way: pause, resume, and another limit on its rate."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from .limits import Limits


class Steered(Protocol):
    """A run that a control steers."""

    def steer(self, paused: bool, max_rate: int) -> None:
        """Take over whether to pause, and the bytes per second that are allowed (0: all)."""
        ...


class MoveControl:
    """Given as ``move(control=…)``: pauses, resumes and limits the move, from any thread.

    One control may steer several moves, at once or one after the other. While it is paused,
    no batch is begun, memory is whole, the threads are free for other moves, and Ctrl-C,
    ``cancel`` and ``timeout`` end the move as ever. It may be paused before the move begins. All
    of it may be called in a signal handler. ``max_gbps`` as in ``move``; None: no limit.
    """

    def __init__(self, *, max_gbps: float | None = None) -> None:
        self._limits = Limits(max_gbps)
        self._lock = threading.RLock()  # a signal may come while it is held
        self._steered: set[Steered] = set()
        self._paused_at: float | None = None
        self._seconds_paused = 0.0

    @property
    def paused(self) -> bool:
        """True between ``pause`` and ``resume``."""
        return self._paused_at is not None

    @property
    def max_gbps(self) -> float | None:
        """The most GB/s (10**9 bytes) that move; None for no limit. To be set at any time.

        Raises ``ValueError`` for anything but a number above zero; the limit stays what it was.
        """
        return self._limits.max_gbps

    @max_gbps.setter
    def max_gbps(self, value: float | None) -> None:
        limits = Limits(value)
        with self._lock:
            self._limits = limits
            self._tell()

    @property
    def seconds_paused(self) -> float:
        """Seconds for which it has been paused, all pauses together."""
        with self._lock:
            now = 0.0 if self._paused_at is None else time.perf_counter() - self._paused_at
            return self._seconds_paused + now

    def pause(self) -> None:
        """Have no batch begun from now on; returns at once."""
        with self._lock:
            if self._paused_at is None:
                self._paused_at = time.perf_counter()
            self._tell()

    def resume(self) -> None:
        """Go on."""
        with self._lock:
            self._seconds_paused = self.seconds_paused
            self._paused_at = None
            self._tell()

    def attach(self, run: Steered) -> None:
        """Steer ``run`` from now on."""
        with self._lock:
            self._steered.add(run)
            run.steer(self.paused, self._limits.max_rate)

    def detach(self, run: Steered) -> None:
        """Steer ``run`` no more."""
        with self._lock:
            self._steered.discard(run)

    def _tell(self) -> None:
        for run in self._steered:
            run.steer(self.paused, self._limits.max_rate)

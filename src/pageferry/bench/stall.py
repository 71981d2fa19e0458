# SPDX-License-Identifier: Apache-2.0
"""How long a program waits for its memory while that moves: the longest pause of a writer.

A process writes one word of each of its pages, over and over, and notes the longest time between
two writes, while its memory is moved from outside, in calls of different length. A rest without
moves is measured in the same way: what the scheduler and the interpreter do to it anyway.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import statistics
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import NodeError, PageferryError
from ..migrate import move
from ..pages import PAGE_SIZE
from ..topology import topology
from .machine import machine_facts
from .memory import PageArray

EXPERIMENT = "stall"
SIZE = 128 << 20
REPEATS = 7
#: Lengths of a call in milliseconds that are compared; 0 stands for no moves at all.
BOUNDS = (0.0, 5.0, 20.0, 200.0)
_LONGEST = 1800  # seconds; the writer does not outlive that

Say = Callable[[str], None]


class Writer:
    """A process that writes to its own memory all the time. A context manager.

    Raises ``MemoryError`` when it cannot have the memory.
    """

    def __init__(self, size: int, page_size: int) -> None:
        self.bytes = size
        self._shared = np.frombuffer(mmap.mmap(-1, PAGE_SIZE), np.uint64)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.alarm(_LONGEST)
                _write(self._shared, size, page_size, parent)
            finally:
                os._exit(1)
        try:
            while not self._shared[2]:
                if os.waitpid(self.pid, os.WNOHANG)[0]:
                    raise MemoryError(f"no {size} bytes in pages of {page_size} to write to")
                time.sleep(0.001)
        except MemoryError:
            self.pid = 0
            raise
        self.addresses = range(int(self._shared[0]), int(self._shared[0]) + size)

    def longest_ms(self) -> float:
        """Return the longest pause since the last time this was asked, in milliseconds."""
        longest = float(self._shared[1]) / 1e6
        self._shared[1] = 0
        return longest

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


def _write(shared: np.ndarray[Any, np.dtype[np.uint64]], size: int, page: int, parent: int) -> None:
    """Write and note, in shared words: address, longest pause in nanoseconds, rounds."""
    array = PageArray(size // page, page)
    shared[0] = array.address
    words = array.words.data.cast("B").cast("Q")
    notes = shared.data.cast("B").cast("Q")
    clock = time.perf_counter_ns
    last = clock()
    while os.getppid() == parent:
        for place in range(0, len(words), PAGE_SIZE // 8):
            words[place] = place
            now = clock()
            if now - last > notes[1]:
                notes[1] = now - last
            last = now
        notes[2] += 1


def run_stall(
    *,
    size: int = SIZE,
    page_size: int = PAGE_SIZE,
    bounds: tuple[float, ...] = BOUNDS,
    repeats: int = REPEATS,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Run the experiment between the first two nodes with memory; return figures for JSON.

    Raises ``NodeError`` (ENODEV) on a machine with one node, ``MemoryError`` for want of memory.
    """
    nodes = topology().target_nodes[:2]
    if len(nodes) < 2:
        raise NodeError(
            errno.ENODEV,
            "the experiment needs two nodes with memory",
            "run it in a guest: pageferry bench stall --lab always",
        )
    samples: dict[float, list[tuple[float, float, float]]] = {bound: [] for bound in bounds}
    order = list(bounds)
    say(f"a process that writes to {size >> 20} MiB")
    with Writer(size, page_size) as writer:
        at = 0
        for repeat in range(-1, repeats):
            say("warm-up" if repeat < 0 else f"{repeat + 1}/{repeats}")
            for bound in order:
                writer.longest_ms()
                if bound:
                    at = 1 - at
                    found = _moved(writer, nodes[at], bound)
                else:
                    time.sleep(max((s[2] for s in samples[order[-1]]), default=0.2))
                    found = (0.0, 0.0)
                if repeat >= 0:
                    samples[bound].append((writer.longest_ms(), *found))
            order.append(order.pop(0))
    return {
        "experiment": EXPERIMENT,
        "machine": machine_facts(),
        "nodes": list(nodes),
        "bytes": size,
        "page_size": page_size,
        "repeats": repeats,
        "bounds": [_row(bound, found) for bound, found in samples.items()],
    }


def _moved(writer: Writer, node: int, bound: float) -> tuple[float, float]:
    """Move the writer's memory; return the longest call in milliseconds, and the seconds."""
    result = move(writer.addresses, node, pid=writer.pid, stall_ms=bound)
    if not result.complete:
        raise PageferryError(errno.EBUSY, f"not all pages moved: {dict(result.failed)}")
    return result.longest_call_ms, result.seconds


def _row(bound: float, samples: list[tuple[float, float, float]]) -> dict[str, Any]:
    pauses = [pause for pause, _, _ in samples]
    return {
        "bound_ms": bound,
        "pause_ms": {
            "median": statistics.median(pauses),
            "low": min(pauses),
            "high": max(pauses),
        },
        "call_ms": statistics.median(call for _, call, _ in samples),
        "seconds": statistics.median(seconds for _, _, seconds in samples),
        "samples": [list(sample) for sample in samples],
    }

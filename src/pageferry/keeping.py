# SPDX-License-Identifier: Apache-2.0
"""Arrays that a long-running program comes by in the course of time, kept on one node.

For plugins of frameworks: what they hand over is moved by a thread of its own, so that their event
loops and their work go on.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from . import logs
from .errors import PageferryError
from .migrate import move
from .nodes import check_node

if TYPE_CHECKING:
    from .target import Movable

_logger = logging.getLogger(__name__)

_DEPTH = 4  # of lists in lists


@dataclass(frozen=True)
class Kept:
    """What was done so far. Sizes are bytes.

    ``arrays`` were looked at, ``bytes_moved`` of them were elsewhere and are on the node now,
    ``bytes_failed`` would not move. ``errors`` counts arrays that were refused whole, by error.
    """

    node: int
    arrays: int = 0
    bytes_moved: int = 0
    bytes_failed: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)


def arrays_in(value: object, least: int, depth: int = _DEPTH) -> Iterator[Movable]:
    """Yield what ``move`` takes in a value: arrays, buffers, tensors of ``least`` bytes and more.

    Lists, tuples and the values of dicts are looked into, other objects are not.
    """
    if isinstance(value, (list, tuple)):
        for part in value if depth else ():
            yield from arrays_in(part, least, depth - 1)
    elif isinstance(value, dict):
        for part in list(value.values()) if depth else ():
            yield from arrays_in(part, least, depth - 1)
    elif isinstance(value, (bytes, bytearray)):
        if len(value) >= least:
            yield value
    elif isinstance(value, (np.ndarray, memoryview)) or hasattr(value, "__dlpack__"):
        size = getattr(value, "nbytes", None)  # a tensor that does not tell is moved
        if size is None or size >= least:
            yield value  # type: ignore[misc]


class Keeper:
    """Moves what it is given to ``node``, on a thread of its own, until it is closed.

    Further options are those of ``move``. What waits for its turn can be freed meanwhile: numpy
    arrays and other objects that can be referred to weakly are held only while they move. Raises
    ``NodeError`` for a bad node.
    """

    def __init__(self, node: int, *, least: int = 1 << 20, **options: Any) -> None:
        check_node(node, None)
        self.node = int(node)
        self._least = least
        self._options = options
        self._waiting: deque[Callable[[], Movable]] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._closing = threading.Event()
        self._sums: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._work, name="pageferry-keep", daemon=True)
        self._thread.start()

    def keep(self, value: object) -> None:
        """Have the arrays in ``value`` moved; returns at once."""
        found = [_reference(array) for array in arrays_in(value, self._least)]
        if found:
            with self._changed:
                self._waiting.extend(found)
                self._changed.notify_all()

    def settle(self, timeout: float | None = None) -> bool:
        """Wait until all that was given has had its turn; False after ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._waiting or self._busy), timeout)

    def kept(self) -> Kept:
        """Return the sums so far."""
        with self._changed:
            return Kept(self.node, **self._sums, errors=dict(self._errors))

    def close(self) -> None:
        """End a move under way between two batches, and the thread; what waits is not moved."""
        with self._changed:
            self._closing.set()
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing.is_set())
                if self._closing.is_set():
                    return
                target = self._waiting.popleft()()
                self._busy = True
            try:
                if target is not None:
                    self._move(target)
            finally:
                del target
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _move(self, target: Movable) -> None:
        problem = ""
        sums: Counter[str] = Counter(arrays=1)
        try:
            result = move(target, self.node, cancel=self._closing, **self._options)
            sums["bytes_moved"] = result.bytes_moved
            sums["bytes_failed"] = result.bytes_failed + result.bytes_skipped
        except PageferryError as error:
            problem = f"{type(error).__name__} {error.name}"
        except Exception as error:  # of one array: the next may do
            problem = f"{type(error).__name__}: {error}"
        if problem:
            text = f"an array is not kept on node {self.node}: {problem}"
            logs.event(_logger, logging.WARNING, text, node=self.node)
        with self._changed:
            self._sums.update(sums)
            if problem:
                self._errors[problem] += 1


def _reference(array: Movable) -> Callable[[], Movable]:
    """Return what gives the array, or None when it has been freed."""
    try:
        return weakref.ref(array)
    except TypeError:
        return lambda: array

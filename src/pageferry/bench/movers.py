# SPDX-License-Identifier: Apache-2.0
"""One move, to and fro, by the kernel engine between two nodes or by the user engine on any."""

from __future__ import annotations

import errno
import time

import numpy as np
import numpy.typing as npt

from ..errors import PageferryError
from ..flags import MigrateMode
from ..migrate import move
from ..planning import Planning
from ..survey import Survey
from ..target import resolve
from ..user_engine import UserRun

Words = npt.NDArray[np.uint64]


class Mover:
    """Moves ``words`` to one node and to the other in turn, by one engine.

    With one node the user engine gives the pages new places on it: survey, plan and run are those
    of ``move``, which would leave pages that are there already alone. Raises ``NodeError`` and what
    else ``move`` raises when it cannot be done.
    """

    def __init__(self, words: Words, nodes: tuple[int, ...], engine: str = "kernel") -> None:
        self._words, self._nodes, self._engine = words, nodes, engine
        self._at = 0
        if len(nodes) > 1:
            move(words, nodes[0])

    def moved(self, threads: int | str, mode: MigrateMode = MigrateMode.SYNC) -> float:
        """Move once; return the seconds that the caller waited."""
        if len(self._nodes) == 1:
            return self._replaced(threads, mode)
        self._at = 1 - self._at
        begun = time.perf_counter()
        node = self._nodes[self._at]
        result = move(self._words, node, threads=threads, mode=mode, engine=self._engine)
        seconds = time.perf_counter() - begun
        if not result.complete:
            raise PageferryError(errno.EBUSY, f"not all pages moved: {dict(result.failed)}")
        return seconds

    def _replaced(self, threads: int | str, mode: MigrateMode) -> float:
        node = self._nodes[0]
        begun = time.perf_counter()
        what = resolve(self._words, None, "touched")
        planning = Planning(node, None, threads=threads, mode=mode, sources=None)
        run = UserRun(node, "auto", trial=False, stall_ms=None, exact=False, again=True)
        for extents in Survey(what, method=None, partial="touched", only=None).windows():
            if planning.follow(extents):
                run.follow(planning.plan, judge=planning.judged)
            run.run(run.sort(extents)[0])
        seconds = time.perf_counter() - begun
        if run.bytes_moved < self._words.nbytes:
            raise PageferryError(
                errno.EBUSY, f"only {run.bytes_moved} of {self._words.nbytes} bytes moved"
            )
        return seconds

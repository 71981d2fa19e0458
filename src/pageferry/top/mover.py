# SPDX-License-Identifier: Apache-2.0
"""A move that ``pageferry top`` was asked for: in the background, to be watched and ended."""

from __future__ import annotations

import threading

from ..console import size
from ..engine import Progress
from ..errors import errno_name
from ..migrate import move
from ..report import MoveResult


class Mover:
    """The move of process ``pid`` to ``node``, on a thread of its own from the start."""

    def __init__(self, pid: int, name: str, node: int) -> None:
        self.pid, self.name, self.node = pid, name, node
        self._cancel = threading.Event()
        self._progress: Progress | None = None
        self._outcome = ""
        self._thread = threading.Thread(target=self._run, name=f"pageferry move {pid}")
        self._thread.start()

    def _run(self) -> None:
        try:
            result = move(pid=self.pid, node=self.node, progress=self._note, cancel=self._cancel)
        except (OSError, ValueError) as error:
            self._outcome = str(error)
        else:
            self._outcome = _told(result)

    def _note(self, progress: Progress) -> None:
        self._progress = progress

    @property
    def running(self) -> bool:
        """True until the move has ended."""
        return self._thread.is_alive()

    def end(self) -> None:
        """Have it end between two batches; returns at once."""
        self._cancel.set()

    def join(self) -> None:
        """Wait until it has ended."""
        self._thread.join()

    def __str__(self) -> str:
        what = f"{self.name} ({self.pid}) to node {self.node}"
        if not self.running:
            return f"{what}: {self._outcome}"
        now = self._progress
        if now is None:
            return f"moving {what}"
        left = now.seconds_left
        share = now.bytes_done / now.bytes_total if now.bytes_total else 0.0
        text = f"moving {what}: {share:.0%}, {size(now.bytes_moved)} at {now.gbps:.2f} GB/s"
        return text if left == float("inf") else f"{text}, {left:.0f} s left"


def _told(result: MoveResult) -> str:
    text = f"moved {size(result.bytes_moved)} at {result.gbps:.2f} GB/s"
    if result.bytes_already:
        text += f", {size(result.bytes_already)} were there"
    if result.cancelled:
        text += ", ended by you"
    if result.failed:
        failed = (f"{pages} {errno_name(number)}" for number, pages in result.failed.items())
        text += f", pages not moved: {', '.join(failed)}"
    return text

# SPDX-License-Identifier: Apache-2.0
"""A bar that shows how far a move is: on a terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn

from . import console

if TYPE_CHECKING:
    from . import engine


class MoveBar:
    """A bar on standard error, gone at the end; nothing where that is no terminal."""

    def __init__(self, title: str) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[rate]}"),
            console=console.console(sys.stderr),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(title, total=None, rate="")

    def begin(self, title: str) -> None:
        """Begin anew, with another move."""
        self._bar.reset(self._task, description=title, total=None, rate="")

    def show(self, now: engine.Progress) -> None:
        """Show how far the move is."""
        left = now.seconds_left
        self._bar.update(
            self._task,
            total=now.bytes_total,
            completed=now.bytes_done,
            rate=f"{console.size(now.bytes_moved)} at {now.gbps:.2f} GB/s"
            + (f", {left:.0f} s left" if left != float("inf") else ""),
        )

    def __enter__(self) -> MoveBar:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

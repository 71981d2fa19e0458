# SPDX-License-Identifier: Apache-2.0
"""A bar that shows how far a move is: on a terminal, or in a notebook."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from rich import get_console
from rich.progress import BarColumn, Progress, TextColumn

from . import console, logs

if TYPE_CHECKING:
    from . import engine
    from .processes import Process

_logger = logging.getLogger(__name__)

_LOG_S = 5.0  # between two lines of the log
_PATIENCE_S = 0.5  # a move that is over by then needs no bar


class MoveBar:
    """A bar on standard error, or in the output of a notebook, gone at the end.

    It appears when a move takes longer than half a second; nowhere else than on a terminal.
    """

    def __init__(self, title: str) -> None:
        in_notebook = get_console().is_jupyter
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[rate]}"),
            console=get_console() if in_notebook else console.console(sys.stderr),
            transient=True,
            disable=logs.on_stderr() or not (in_notebook or sys.stderr.isatty()),
        )
        self._title = title
        self._logged = time.monotonic()
        self._task = self._bar.add_task(title, total=None, rate="")

    def begin(self, title: str) -> None:
        """Begin anew, with another move."""
        self._title = title
        self._bar.reset(self._task, description=title, total=None, rate="")

    def show(self, now: engine.Progress) -> None:
        """Show how far the move is, and log it from time to time."""
        if (asked := time.monotonic()) >= self._logged + _LOG_S:
            self._logged = asked
            _log(self._title, now)
        if now.seconds < _PATIENCE_S and not self._bar.live.is_started:
            return
        self._bar.update(
            self._task, total=now.bytes_total, completed=now.bytes_done, rate=_told(now)
        )
        self._bar.start()

    def hide(self) -> None:
        """Take it off the terminal until it is shown again."""
        self._bar.stop()

    def __enter__(self) -> MoveBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()


def _log(title: str, now: engine.Progress) -> None:
    left = now.seconds_left
    logs.event(
        _logger,
        logging.INFO,
        f"moving {title}: {_told(now)}",
        bytes_done=now.bytes_done,
        bytes_moved=now.bytes_moved,
        bytes_failed=now.bytes_failed,
        bytes_total=now.bytes_total,
        seconds=round(now.seconds, 3),
        gbps=round(now.gbps, 4),
        seconds_left=None if left == float("inf") else round(left, 1),
    )


def _told(now: engine.Progress) -> str:
    text = f"{console.size(now.bytes_moved)} at {now.gbps:.2f} GB/s"
    if now.seconds_left != float("inf"):
        text += f", {now.seconds_left:.0f} s left"
    counts = {"moved": now.pages_moved, "there": now.pages_already, "failed": now.pages_failed}
    pages = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"{text}; pages: {pages}" if pages else text


@contextmanager
def shown(
    progress: Callable[[engine.Progress], object] | bool | None, node: int
) -> Iterator[Callable[[engine.Progress], object] | None]:
    """Yield what is to be called with the progress of a move: a bar's ``show`` for True."""
    if progress is True:
        with MoveBar(f"to node {node}") as bar:
            yield bar.show
    else:
        yield progress or None


@contextmanager
def for_processes(
    processes: Sequence[Process], node: int
) -> Iterator[tuple[MoveBar, Callable[[Process, engine.Progress], object]]]:
    """Yield a bar, and what shows on it how far the move of each process is."""
    numbers = {process: number for number, process in enumerate(processes, 1)}
    shown = 0
    with MoveBar(f"to node {node}") as bar:

        def show(process: Process, now: engine.Progress) -> None:
            nonlocal shown
            number = numbers[process]
            if number != shown:
                bar.begin(f"{process}, {number} of {len(processes)}, to node {node}")
                shown = number
            bar.show(now)

        yield bar, show

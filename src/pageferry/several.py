# SPDX-License-Identifier: Apache-2.0
"""move_processes(): several processes to a node, one after the other, each with its result."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import logs
from .activity import watched
from .errors import PageferryError, ProcessGoneError, errno_name
from .limits import Limits
from .migrate import MoveInterrupted, move
from .nodes import check_node, check_sources
from .process import HeldProcess
from .processes import Process, find_processes, started

if TYPE_CHECKING:
    from .engine import Progress
    from .report import MoveResult

_logger = logging.getLogger(__name__)

_BYTES = ("moved", "already", "elsewhere", "failed", "skipped")


@dataclass(frozen=True)
class ProcessMoved:
    """What became of one process: a ``result``, or the ``error`` for which nothing was moved.

    Neither of them: it was not begun with, as the move had ended before.
    """

    process: Process
    result: MoveResult | None = None
    error: PageferryError | None = None

    @property
    def complete(self) -> bool:
        """True when every page that was to move is on the target."""
        return self.result is not None and self.result.complete

    @property
    def untouched(self) -> bool:
        """True when the move had ended before it came to this process."""
        return self.result is None and self.error is None

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "pid": self.process.pid,
            "name": self.process.name,
            "untouched": self.untouched,
            "error": error_dict(self.error),
            "result": None if self.result is None else self.result.as_dict(),
        }


@dataclass(frozen=True)
class ProcessesMoved:
    """What became of several processes. Sums are over all results; ``seconds`` is the whole."""

    node: int
    processes: tuple[ProcessMoved, ...]
    seconds: float
    cancelled: bool = False
    timed_out: bool = False

    @property
    def results(self) -> list[MoveResult]:
        """The results of those that were moved, or tried."""
        return [moved.result for moved in self.processes if moved.result is not None]

    @property
    def untouched(self) -> list[Process]:
        """The processes that the move did not come to."""
        return [moved.process for moved in self.processes if moved.untouched]

    @property
    def complete(self) -> bool:
        """True when all is done for each process."""
        return all(moved.complete for moved in self.processes)

    @property
    def gbps(self) -> float:
        """Throughput over the whole time, in GB/s (10**9 bytes)."""
        return self.total_bytes("moved") / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def failed(self) -> dict[int, int]:
        """Pages that did not move, by errno."""
        pages: Counter[int] = Counter()
        for result in self.results:
            pages.update(result.failed)
        return dict(pages)

    def total_bytes(self, what: str) -> int:
        """Return the sum of ``bytes_moved`` (``"moved"``), or of another of these."""
        return sum(int(getattr(result, f"bytes_{what}")) for result in self.results)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "node": self.node,
            "complete": self.complete,
            "total": {
                "processes": len(self.processes),
                "complete": sum(moved.complete for moved in self.processes),
                "errors": sum(moved.error is not None for moved in self.processes),
                "untouched": len(self.untouched),
                **{f"bytes_{what}": self.total_bytes(what) for what in _BYTES},
                "failed": {errno_name(number): pages for number, pages in self.failed.items()},
                "seconds": self.seconds,
                "gbps": self.gbps,
                "cancelled": self.cancelled,
                "timed_out": self.timed_out,
            },
            "processes": [moved.as_dict() for moved in self.processes],
        }


class MovesInterrupted(KeyboardInterrupt):
    """Ctrl-C during ``move_processes``; ``result`` is the ``ProcessesMoved`` until then."""

    def __init__(self, result: ProcessesMoved) -> None:
        super().__init__("the move was interrupted")
        self.result = result


def move_processes(
    processes: Iterable[Process | int],
    node: int,
    *,
    progress: Callable[[Process, Progress], object] | bool | None = None,
    cancel: threading.Event | None = None,
    timeout: float | None = None,
    **options: Any,
) -> ProcessesMoved:
    """Move whole processes to ``node``, one after the other; other ``options`` are ``move``'s.

    ``processes`` are process ids, or what ``find_processes`` found. What goes wrong with one of
    them (it has ended, it may not be moved) is its ``error``, and does not stop the others. When
    ``cancel`` is set, or with Ctrl-C, which raises ``MovesInterrupted``, the move ends between two
    batches, and the processes that it had not come to are untouched; so it does after ``timeout``
    seconds for all of them together. With ``hot`` or ``idle`` all of them are watched at once.
    Raises ``NodeError``, ``ValueError`` and ``TypeError`` for what makes no sense for any process.
    """
    chosen = [p if isinstance(p, Process) else find_processes([p])[0] for p in processes]
    check_node(node, chosen[0].pid if chosen else None)
    check_sources(options.get("source"))
    Limits(timeout=timeout)
    if progress is True:
        from .progress_bar import for_processes  # whoever wants no bar need not load it

        with for_processes(chosen, node) as (_, show):
            return move_processes(
                chosen, node, progress=show, cancel=cancel, timeout=timeout, **options
            )
    activities = watched(chosen, options.get("hot"), options.get("idle"), cancel)
    begun = time.perf_counter()
    moved: list[ProcessMoved] = []
    interrupted = False
    for process in chosen:
        if cancel is not None and cancel.is_set():
            break
        if timeout is not None:
            options["timeout"] = max(begun + timeout - time.perf_counter(), 1e-6)
        try:
            moved.append(
                _one(process, node, progress or None, cancel, options | activities.get(process, {}))
            )
            if timeout is not None and time.perf_counter() - begun >= timeout:
                break
        except MoveInterrupted as stop:
            moved.append(ProcessMoved(process, stop.result))
            interrupted = True
            break
        except KeyboardInterrupt:
            interrupted = True
            break
    cancelled = interrupted or (cancel is not None and cancel.is_set())
    timed_out = not cancelled and (len(moved) < len(chosen) or _timed_out(moved))
    moved += map(ProcessMoved, chosen[len(moved) :])
    result = ProcessesMoved(node, tuple(moved), time.perf_counter() - begun, cancelled, timed_out)
    if interrupted:
        raise MovesInterrupted(result)
    return result


def _timed_out(moved: list[ProcessMoved]) -> bool:
    return any(one.result is not None and one.result.timed_out for one in moved)


def _one(
    process: Process,
    node: int,
    progress: Callable[[Process, Progress], object] | None,
    cancel: threading.Event | None,
    options: dict[str, Any],
) -> ProcessMoved:
    def note(now: Progress) -> None:
        assert progress is not None
        progress(process, now)

    try:
        with HeldProcess(process.pid):
            check_same(process)
            result = move(
                pid=process.pid,
                node=node,
                progress=note if progress else None,
                cancel=cancel,
                **options,
            )
    except PageferryError as error:
        text = f"not moved: {error}"
        logs.event(_logger, logging.WARNING, text, pid=process.pid, errno=error.name)
        return ProcessMoved(process, error=error)
    return ProcessMoved(process, result)


def check_same(process: Process) -> None:
    """Raise ``ProcessGoneError`` if another process has this id by now."""
    if process.started is not None and started(process.pid) != process.started:
        raise ProcessGoneError(errno.ESRCH, f"{process} ended", "it needs no move any more")


def error_dict(error: PageferryError | None) -> dict[str, Any] | None:
    """Return an error for JSON: its errno by name, and what it says."""
    return None if error is None else {"errno": error.name, "message": str(error)}

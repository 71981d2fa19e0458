# SPDX-License-Identifier: Apache-2.0
"""What ``move`` and ``plan`` do when several processes are named, and how they print it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from .. import console
from ..errors import PageferryError, errno_name
from ..planning import Outlook
from ..processes import Process
from ..progress_bar import for_processes
from ..report import page_hint
from ..several import (
    MovesInterrupted,
    ProcessesMoved,
    ProcessMoved,
    check_same,
    error_dict,
    move_processes,
)
from ..steering import Steerable
from ..topology import topology
from .suspended import suspension

if TYPE_CHECKING:
    from ..activity import Activity
    from ..engine import Progress


def move(
    processes: Sequence[Process], node: int, request: Mapping[str, Any], *, as_json: bool
) -> int:
    """Move them with a progress bar on a terminal, print what became of each; the exit code."""
    interrupted = False
    with (
        suspension(request["control"]) as suspended,
        for_processes(processes, node) as (bar, show),
        Steerable(request["control"], node, [process.pid for process in processes]) as steered,
    ):

        def show_progress(process: Process, now: Progress) -> None:
            suspended.obey(bar)
            steered.note(now)
            show(process, now)

        try:
            result = move_processes(processes, node, progress=show_progress, **request)
        except MovesInterrupted as stop:
            result = stop.result
            interrupted = True
    if as_json:
        console.print_json(result.as_dict())
    else:
        show_moved(result)
    if interrupted:
        return 130
    return 0 if result.complete else 1


def show_moved(result: ProcessesMoved) -> None:
    """Print what became of several processes."""
    out = console.console()
    table = Table(box=None)
    table.add_column("pid", justify="right")
    table.add_column("name")
    for what in ("moved", "already there", "not moved"):
        table.add_column(what, justify="right")
    table.add_column("")
    for moved in result.processes:
        found = moved.result
        sizes = (
            ["", "", ""]
            if found is None
            else [
                console.size(found.bytes_moved),
                console.size(found.bytes_already),
                console.size(found.bytes_failed + found.bytes_skipped),
            ]
        )
        table.add_row(str(moved.process.pid), moved.process.name, *sizes, _outcome(moved))
    out.print(table)
    failed = sum((Counter(_failed(moved)) for moved in result.processes), Counter[int]())
    for number, pages in sorted(failed.items()):
        out.print(f"Not moved: {pages} pages, {errno_name(number)}: {page_hint(number)}")
    complete = sum(moved.complete for moved in result.processes)
    out.print(
        f"Moved {console.size(result.total_bytes('moved'))} to node {result.node} in "
        f"{result.seconds * 1e3:.1f} ms, {result.gbps:.2f} GB/s; all of "
        f"{complete} of {console.count(len(result.processes), 'process')}"
    )
    if result.untouched:
        pids = ", ".join(str(process.pid) for process in result.untouched)
        out.print(f"Untouched, as {'--timeout' if result.timed_out else 'Ctrl-C'} ended it: {pids}")


def _failed(moved: ProcessMoved) -> dict[int, int]:
    """Return the pages by errno that count against the move of this process."""
    if moved.result is None or moved.result.complete:
        return {}
    return dict(moved.result.failed)


def _outcome(moved: ProcessMoved) -> str:
    if moved.error is not None:
        return str(moved.error)
    if moved.result is None:
        return "untouched"
    if moved.complete:
        return ""
    parts = [f"{pages} pages {errno_name(number)}" for number, pages in _failed(moved).items()]
    if moved.result.stopped:
        parts.append(f"ended by {errno_name(moved.result.stopped)}")
    if moved.result.cancelled:
        parts.append("ended by Ctrl-C")
    if moved.result.timed_out:
        parts.append("ended by --timeout")
    return ", ".join(parts)


def plan(
    processes: Sequence[Process],
    node: int,
    look: Callable[..., Outlook],
    activities: Mapping[Process, Mapping[str, Activity]],
    *,
    as_json: bool,
) -> int:
    """Print what a move of them would do; the exit code is 1 where one cannot be looked at."""
    found: list[tuple[Process, Outlook | PageferryError]] = []
    for process in processes:
        try:
            check_same(process)
            found.append((process, look(pid=process.pid, **activities.get(process, {}))))
        except PageferryError as error:
            found.append((process, error))
    outlooks = [outlook for _, outlook in found if isinstance(outlook, Outlook)]
    wanted = sum(outlook.bytes_to_move for outlook in outlooks)
    already = sum(outlook.bytes_already for outlook in outlooks)
    free = topology().free(node)
    if as_json:
        console.print_json(
            {
                "dry_run": True,
                "node": node,
                "bytes_to_move": wanted,
                "bytes_already": already,
                "bytes_free_on_node": free,
                "processes": [_outlook_dict(process, outlook) for process, outlook in found],
            }
        )
    else:
        out = console.console()
        table = Table(box=None)
        table.add_column("pid", justify="right")
        table.add_column("name")
        for what in ("to move", "already there"):
            table.add_column(what, justify="right")
        table.add_column("")
        for process, outlook in found:
            row = ["", "", str(outlook)]
            if isinstance(outlook, Outlook):
                sizes = map(console.size, (outlook.bytes_to_move, outlook.bytes_already))
                row = [*sizes, _threads(outlook)]
            table.add_row(str(process.pid), process.name, *row)
        out.print(table)
        out.print(
            f"Would move {console.size(wanted)} of {console.count(len(found), 'process')} to "
            f"node {node}; {console.size(already)} are there already."
        )
        if wanted > free:
            out.print(f"Node {node} has only {console.size(free)} free: the move would stop there.")
    return 0 if len(outlooks) == len(found) else 1


def _threads(outlook: Outlook) -> str:
    seconds = outlook.plan.expected_seconds
    return f"{console.count(outlook.plan.threads, 'thread')}, about {seconds * 1e3:.3g} ms"


def _outlook_dict(process: Process, outlook: Outlook | PageferryError) -> dict[str, Any]:
    who: dict[str, Any] = {"pid": process.pid, "name": process.name}
    if isinstance(outlook, PageferryError):
        return who | {"error": error_dict(outlook)}
    return who | {"error": None} | outlook.as_dict()

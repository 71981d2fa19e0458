# SPDX-License-Identifier: Apache-2.0
"""How ``pageferry top`` looks: what the machine does, its nodes, its processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..console import size
from ..nodestat import NodeStat
from ..pictures import text
from ..pictures.topology import USES
from ..scan import ProcessStat
from ..steering import processes, told
from .watch import Sample

_NODE_COLUMNS = 4  # more nodes than this have no column of their own in the list of processes
KEYS = "↑↓ choose   m move it   s sort   q quit"


def screen(
    sample: Sample,
    *,
    sort: str,
    chosen: int | None,
    foot: RenderableType,
    width: int,
    height: int,
) -> RenderableType:
    """Return the whole screen; ``chosen`` is the process id of the line that is marked."""
    nodes = _nodes(sample.nodes, width)
    room = max(height - len(sample.nodes) - len(sample.moves) - 6, 1)
    shown = _window(sample.processes, chosen, room)
    return Group(
        _head(sample),
        Text(),
        nodes,
        Text(),
        _processes(shown, sample, sort, chosen),
        *map(_move, sample.moves),
        foot,
    )


def plain(sample: Sample, *, sort: str, width: int, limit: int) -> RenderableType:
    """Return it for a file or a pipe: once, with at most ``limit`` processes."""
    listed = sample.processes[:limit]
    return Group(
        _head(sample),
        Text(),
        _nodes(sample.nodes, width),
        Text(),
        _processes(listed, sample, sort, None),
        *map(_move, sample.moves),
    )


def _window(
    processes: Sequence[ProcessStat], chosen: int | None, room: int
) -> Sequence[ProcessStat]:
    """Return as many processes as there is room for, the chosen one among them."""
    place = next((at for at, process in enumerate(processes) if process.pid == chosen), 0)
    first = max(min(place - room // 2, len(processes) - room), 0)
    return processes[first : first + room]


def _head(sample: Sample) -> Text:
    line = Text("pageferry top", "bold", no_wrap=True, overflow="ellipsis")
    line.append(f"   migrating {size(sample.migrated)}/s", "default")
    huge = sample.rates.get("thp_migration_success", 0.0)
    if huge:
        line.append(f", {huge:.0f} huge pages/s")
    failed = sample.rates.get("pgmigrate_fail", 0.0)
    if failed:
        line.append(f", {failed:.0f} pages/s fail", "red")
    if sample.pressure:
        some = sample.pressure.get("some", 0.0)
        line.append(f"   waiting for memory {some:.1f}%", "red" if some >= 10 else "default")
    line.append(f"   {len(sample.processes)} processes")
    if sample.waiting is not None:
        line.append(f", waiting for the lock of {sample.waiting}", "red")
    elif sample.unread:
        line.append(f", {sample.unread} not read", "dim")
    return line


def _nodes(nodes: Sequence[NodeStat], width: int) -> Table:
    table = _table()
    for name in ("NODE", "USED", "FREE"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("PRESSURE", no_wrap=True)
    bar = max(min(width - 50, 60), 8)
    for place, node in enumerate(nodes):
        parts = [text.Part(getattr(node, use[0]), use[3], use[4]) for use in USES]
        pressure = Text(node.pressure, "" if node.pressure == "none" else "bold red")
        table.add_row(
            Text(str(node.id), f"bold {text.style(place)}"),
            size(node.used),
            size(node.free),
            text.bar(parts, node.total, bar) if node.total else Text("no memory", "dim"),
            pressure,
        )
    return table


def _processes(
    processes: Sequence[ProcessStat], sample: Sample, sort: str, chosen: int | None
) -> Table:
    table = _table()
    nodes = [node.id for node in sample.nodes if node.total]
    nodes = nodes if 1 < len(nodes) <= _NODE_COLUMNS else []
    for name, key in (("PID", "pid"), ("NAME", "name"), ("RESIDENT", "resident"),
                      ("REMOTE", "remote"), ("THP", "thp")):  # fmt: skip
        table.add_column(
            Text(f"{name}↓" if key == sort else name),
            justify="left" if name == "NAME" else "right",
            no_wrap=True,
        )
    for node in nodes:
        table.add_column(f"NODE {node}", justify="right", no_wrap=True)
    table.add_column("RUNS ON", no_wrap=True)
    for process in processes:
        table.add_row(*_cells(process, nodes), style="reverse" if process.pid == chosen else "")
    return table


def _cells(process: ProcessStat, nodes: Sequence[int]) -> list[str]:
    first = [str(process.pid), process.name, size(process.resident)]
    if process.nodes is None:
        why = "…" if process.readable else "not permitted"
        return [*first, why, "", *("" for _ in nodes), ""]
    whole = sum(process.nodes.values()) or 1
    huge = process.thp + process.hugetlb
    return [
        *first,
        size(process.remote) if process.remote else "–",
        f"{huge / whole:.0%}" if huge else "–",
        *(f"{process.nodes.get(node, 0) / whole:.0%}" for node in nodes),
        ",".join(map(str, sorted(process.home))),
    ]


def _move(move: dict[str, Any]) -> Text:
    """Return a line about a move that another process makes."""
    line = Text(f"pageferry {move['pid']}", "bold", no_wrap=True, overflow="ellipsis")
    line.append(f" moves {processes(move)} to node {move['node']}", "default")
    share, moved, rate, left = told(move)
    if moved:
        line.append(f": {share}, {moved} at {rate} GB/s")
    if left:
        line.append(f", {left} left")
    if move["paused"]:
        line.append(", paused", "bold")
    return line


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")

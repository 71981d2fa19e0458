# SPDX-License-Identifier: Apache-2.0
"""The machine: nodes with their memory in use, CPUs by core and last-level cache, distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from .. import console
from ..nodestat import NodeStat
from ..topology import Cache, Node, Topology
from . import canvas, text

#: What a node's memory is used for: field of ``NodeStat``, word, colour; style and character of a
#: terminal.
USES = (
    ("anonymous", "processes' own", "#0072B2", "blue", "█"),
    ("shared", "shared", "#56B4E9", "cyan", "▚"),
    ("file", "page cache", "#009E73", "green", "▓"),
    ("hugetlb", "hugetlb pools", "#CC79A7", "magenta", "▒"),
    ("kernel", "kernel", "#E69F00", "yellow", "░"),
)
_FREE = "#eef0f3"

# Inches.
_BOX, _GAP, _PAD = 5.4, 0.25, 0.15
_TITLE, _MEMORY = 0.42, 0.62
_CELL, _CORE_GAP, _FRAME = 0.3, 0.06, 0.07


@dataclass(frozen=True)
class _Group:
    """The cores behind one last-level cache (None: not told) in one node."""

    cache: Cache | None
    cores: tuple[tuple[int, ...], ...]
    cell: float

    @property
    def columns(self) -> int:
        return min(len(self.cores), max(int(4.6 / self.core_width), 1), 8)

    @property
    def core_width(self) -> float:
        return max(len(core) for core in self.cores) * self.cell + _CORE_GAP

    @property
    def width(self) -> float:
        return max(self.columns * self.core_width + 2 * _FRAME, 0.9)

    @property
    def height(self) -> float:
        rows = -(-len(self.cores) // self.columns)
        return rows * (self.cell + _CORE_GAP) + 2 * _FRAME + 0.17


def _groups(here: Topology, node: Node) -> list[_Group]:
    by_cache: dict[int | None, set[tuple[int, ...]]] = {}
    for cpu in here.cpus:
        if cpu.id in node.cpus:
            by_cache.setdefault(cpu.cache, set()).add(tuple(sorted(cpu.core)))
    caches = {cache.id: cache for cache in here.caches}
    cell = _CELL if len(here.cpus) <= 64 else 0.21
    return [
        _Group(None if id is None else caches.get(id), tuple(sorted(cores)), cell)
        for id, cores in sorted(by_cache.items(), key=lambda item: min(item[1]))
    ]


def _rows(groups: Sequence[_Group]) -> list[list[_Group]]:
    """Put groups into lines that fit into a box."""
    rows: list[list[_Group]] = []
    used = 0.0
    for group in groups:
        if not rows or used + group.width > _BOX - 2 * _PAD:
            rows.append([])
            used = 0.0
        rows[-1].append(group)
        used += group.width + 0.1
    return rows


def _cpu_height(groups: Sequence[_Group]) -> float:
    lines = _rows(groups)
    return sum(max(group.height for group in line) + 0.1 for line in lines) or 0.3


def draw(here: Topology, stats: Sequence[NodeStat], path: Path, title: str) -> None:
    """Write the picture. Needs matplotlib; see ``canvas.check``."""
    columns = 1 if len(here.nodes) == 1 else 2
    lines = [here.nodes[at : at + columns] for at in range(0, len(here.nodes), columns)]
    heights = [
        max(_cpu_height(_groups(here, node)) for node in line) + _TITLE + _MEMORY + _PAD
        for line in lines
    ]
    matrix = _matrix_size(here)
    width = columns * _BOX + (columns - 1) * _GAP
    height = 0.6 + sum(heights) + _GAP * len(lines) + max(matrix, 0.5)
    figure = canvas.figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    canvas.plain(axes)
    axes.set_xlim(-0.02, width + 0.02)
    axes.set_ylim(0, height)
    axes.text(0, height - 0.1, title, fontsize=13, va="top", color=canvas.INK)
    axes.text(0, height - 0.36, _facts(here), fontsize=9, va="top", color="#555555")
    by_id = {stat.id: stat for stat in stats}
    top = height - 0.65
    for line, tall in zip(lines, heights, strict=True):
        for column, node in enumerate(line):
            place = here.node_ids.index(node.id)
            left = column * (_BOX + _GAP)
            _node(axes, here, node, by_id.get(node.id), (left, top - tall), tall, place)
        top -= tall + _GAP
    _legend(axes, top)
    if matrix:
        _matrix(axes, here, width, top)
    canvas.save(figure, path)


def _facts(here: Topology) -> str:
    cores = here.cores()
    smt = max((len(core) for core in cores), default=1)
    parts = [
        console.count(len(here.nodes), "node"),
        console.count(len(cores), "core"),
        console.count(len(here.cpus), "CPU"),
        f"{smt} threads a core" if smt > 1 else "one thread a core",
        console.count(len(here.caches), "last-level cache") if here.caches else "caches not told",
    ]
    if not here.numa:
        parts.append("a kernel without NUMA")
    return ", ".join(parts)


def _node(
    axes: Any,
    here: Topology,
    node: Node,
    stat: NodeStat | None,
    corner: tuple[float, float],
    tall: float,
    place: int,
) -> None:
    left, bottom = corner
    colour = canvas.node_colour(place)
    allowed = node.id in here.allowed_nodes
    canvas.rectangle(
        axes, left, bottom, _BOX, tall, "none", edgecolor=colour, linewidth=1.6,
        linestyle="-" if allowed else "--",
    )  # fmt: skip
    top = bottom + tall
    notes = [] if node.tier is None else [f"memory tier {node.tier}"]
    notes += [] if allowed else ["not allowed for this process"]
    name = f"node {node.id}"
    axes.text(left + _PAD, top - 0.1, name, va="top", fontsize=12, fontweight="bold", color=colour)
    axes.text(left + 1.0, top - 0.13, ", ".join(notes), va="top", fontsize=9, color="#555555")
    _memory(axes, node, stat, left + _PAD, top - _TITLE - 0.3)
    groups = _groups(here, node)
    if not groups:
        axes.text(
            left + _PAD, bottom + _PAD, "no CPUs: memory only", fontsize=9, color="#555555",
            style="italic",
        )  # fmt: skip
    y = top - _TITLE - _MEMORY
    for line in _rows(groups):
        x = left + _PAD
        for group in line:
            _cpus(axes, here, group, x, y, colour)
            x += group.width + 0.1
        y -= max(group.height for group in line) + 0.1


def _memory(axes: Any, node: Node, stat: NodeStat | None, left: float, bottom: float) -> None:
    width = _BOX - 2 * _PAD
    if not node.has_memory or stat is None or not stat.total:
        axes.text(left, bottom + 0.05, "no memory", fontsize=9, color="#555555", style="italic")
        return
    x = left
    canvas.rectangle(axes, left, bottom, width, 0.22, _FREE)
    for field, _, colour, *_ in USES:
        part = width * getattr(stat, field) / stat.total
        canvas.rectangle(axes, x, bottom, part, 0.22, colour)
        x += part
    canvas.rectangle(axes, left, bottom, width, 0.22, "none", edgecolor="#9aa0a8")
    axes.text(
        left + width, bottom + 0.27,
        f"{console.size(stat.used)} of {console.size(stat.total)} used, "
        f"{console.size(stat.free)} free",
        ha="right", fontsize=9, color=canvas.INK,
    )  # fmt: skip


def _cpus(axes: Any, here: Topology, group: _Group, x: float, top: float, colour: str) -> None:
    bottom = top - group.height
    canvas.rectangle(axes, x, bottom, group.width, group.height, "#f7f8fa", edgecolor=canvas.FAINT)
    label = "cache not told"
    if group.cache is not None:
        size = "" if group.cache.size is None else f" {console.size(group.cache.size)}"
        label = f"L{group.cache.level}{size}"
    axes.text(x + _FRAME, top - 0.04, label, fontsize=6.5, va="top", color="#555555")
    for number, core in enumerate(group.cores):
        row, column = divmod(number, group.columns)
        left = x + _FRAME + column * group.core_width
        y = top - 0.17 - _FRAME - (row + 1) * (group.cell + _CORE_GAP) + _CORE_GAP
        for at, cpu in enumerate(core):
            may = cpu in here.allowed_cpus
            canvas.rectangle(
                axes, left + at * group.cell, y, group.cell, group.cell, colour if may else "white",
                edgecolor="white" if may else canvas.FAINT, linewidth=0.6,
            )  # fmt: skip
            axes.text(
                left + (at + 0.5) * group.cell, y + group.cell / 2, str(cpu), ha="center",
                va="center", fontsize=6.5 if group.cell > 0.25 else 5,
                color="white" if may else "#777777",
            )  # fmt: skip


def _legend(axes: Any, top: float) -> None:
    x, y = 0.0, top - 0.1
    words = [*((word, colour) for _, word, colour, *_ in USES), ("free", _FREE)]
    for number, (word, colour) in enumerate(words):
        column, row = divmod(number, 2)
        left, bottom = x + column * 1.75, y - row * 0.22
        canvas.rectangle(axes, left, bottom - 0.06, 0.2, 0.12, colour, edgecolor="#9aa0a8")
        axes.text(left + 0.28, bottom, word, va="center", fontsize=8.5, color=canvas.INK)


def _matrix_size(here: Topology) -> float:
    """Return the height of the distance matrix; 0 where there is nothing to tell."""
    if len(here.nodes) < 2 or not any(node.distances for node in here.nodes):
        return 0.0
    return len(here.nodes) * 0.34 + 0.5


def _matrix(axes: Any, here: Topology, width: float, top: float) -> None:
    count = len(here.nodes)
    known = [far for node in here.nodes for far in node.distances.values()]
    nearest, farthest = min(known), max(known)
    left = width - count * 0.45
    axes.text(
        left - 0.12, top - 0.05, "distance", ha="right", fontsize=9, va="center", color=canvas.INK
    )
    for row, node in enumerate(here.nodes):
        y = top - 0.2 - (row + 1) * 0.34
        colour = canvas.node_colour(row)
        axes.text(
            left - 0.12, y + 0.17, f"node {node.id}", ha="right", va="center", fontsize=8.5,
            color=colour, fontweight="bold",
        )  # fmt: skip
        axes.text(
            left + (row + 0.5) * 0.45, top - 0.05, str(node.id), ha="center", va="center",
            fontsize=8.5, color=colour, fontweight="bold",
        )  # fmt: skip
        for column, other in enumerate(here.node_ids):
            far = node.distances.get(other)
            heat = 0.0 if far is None else (far - nearest) / ((farthest - nearest) or 1)
            shade = (1 - 0.1 * heat, 0.97 - 0.45 * heat, 0.94 - 0.7 * heat)
            canvas.rectangle(axes, left + column * 0.45, y, 0.45, 0.34, shade, edgecolor="white")
            axes.text(
                left + (column + 0.5) * 0.45, y + 0.17, "?" if far is None else str(far),
                ha="center", va="center", fontsize=9, color=canvas.INK,
            )  # fmt: skip


def show(here: Topology, stats: Sequence[NodeStat], screen: Console) -> None:
    """Print the picture as text: memory in use, and CPUs in cores in caches."""
    width = max(min(screen.width, 100) - 34, 16)
    by_id = {stat.id: stat for stat in stats}
    lines: list[Text] = []
    for place, node in enumerate(here.nodes):
        stat = by_id.get(node.id)
        line = Text(f"node {node.id:<3}", f"bold {text.style(place)}")
        if not node.has_memory or stat is None:
            lines.append(line + Text("no memory", "dim"))
        else:
            parts = [text.Part(getattr(stat, use[0]), use[3], use[4]) for use in USES]
            line += text.bar(parts, stat.total, width)
            line.append(f" {console.size(stat.used)} of {console.size(stat.total)}")
            lines += [line, _told(stat)]
        lines += [_cores(group, here.allowed_cpus) for group in _groups(here, node)]
        if not node.cpus:
            lines.append(Text(f"{_INDENT}no CPUs", "dim"))
    for line in lines:
        screen.print(line, soft_wrap=True)


_INDENT = " " * 8


def _told(stat: NodeStat) -> Text:
    """Name the parts of the bar, each with its character."""
    line = Text(_INDENT)
    for field, word, _, style, sign in USES:
        if getattr(stat, field):
            line.append(sign, style).append(f" {word} {console.size(getattr(stat, field))}  ")
    return line


def _cores(group: _Group, allowed: frozenset[int]) -> Text:
    line = Text(_INDENT)
    if group.cache is not None:
        size = "" if group.cache.size is None else f" {console.size(group.cache.size)}"
        line.append(f"L{group.cache.level}{size}: ", "dim")
    for core in group.cores:
        line.append("[")
        for at, cpu in enumerate(core):
            line.append(f"{' ' if at else ''}{cpu}", "" if cpu in allowed else "dim strike")
        line.append("]")
    return line

# SPDX-License-Identifier: Apache-2.0
"""Where the pages of a process are along its address space, area by area."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import procfs
from .engine import locate_extents
from .nodes import machine
from .pages import extents_by_size, extents_bytes, extents_pages
from .plan import make_plan
from .refusal import refusal
from .survey import Survey
from .target import Target

if TYPE_CHECKING:
    import numpy.typing as npt

_PIECE_PAGES = 1 << 20  # asked at a time: 20 MiB of statuses


@dataclass(frozen=True)
class Area:
    """Adjacent mappings of one name, such as a heap or the segments of a library.

    ``start`` and ``end`` are the first byte and the end of its present pages. ``nodes`` maps a
    node to an array of ``slots`` numbers: the bytes on it in each equal part of that range.
    """

    name: str
    start: int
    end: int
    present: int
    nodes: dict[int, npt.NDArray[np.float64]]

    @property
    def by_node(self) -> dict[int, int]:
        """Bytes by node."""
        return {node: round(float(slots.sum())) for node, slots in self.nodes.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON, without the slots."""
        return {
            "name": self.name,
            "start": hex(self.start),
            "end": hex(self.end),
            "bytes_present": self.present,
            "nodes": {str(node): size for node, size in self.by_node.items()},
        }


def areas(
    pid: int,
    addresses: range | None = None,
    *,
    most: int = 16,
    slots: int = 240,
    threads: int | str = "auto",
) -> tuple[list[Area], int]:
    """Return the ``most`` areas of a process with most memory, by address, and the bytes of others.

    With ``addresses``, only what lies in them. Raises ``ProcessGoneError``, ``NotPermittedError``
    and ``UnsupportedError`` (no smaps). Rests on ``/proc/PID/smaps`` and move_pages(2).
    """
    found = [area for area in _mapped(pid, addresses) if area[2]]
    chosen = heapq.nlargest(most, found, key=lambda area: area[2])
    shown = []
    for name, where, _ in sorted(chosen, key=lambda area: area[1].start):
        area = _look(pid, name, where, slots, threads)
        if area is not None:
            shown.append(area)
    return shown, sum(area[2] for area in found) - sum(area[2] for area in chosen)


def _mapped(pid: int, addresses: range | None) -> Iterator[tuple[str, range, int]]:
    """Yield name, addresses and resident bytes of adjacent mappings of one name."""
    name, start, end, resident = "", 0, 0, 0
    for use in procfs.smaps(pid):
        mapping = use.mapping
        if mapping.special or (addresses is not None and not _overlap(mapping, addresses)):
            continue
        size = use.rss + use.hugetlb
        if mapping.start == end and mapping.name == name:
            end, resident = mapping.end, resident + size
            continue
        if end:
            yield _named(name), _within(range(start, end), addresses), resident
        name, start, end, resident = mapping.name, mapping.start, mapping.end, size
    if end:
        yield _named(name), _within(range(start, end), addresses), resident


def _overlap(mapping: procfs.Mapping, addresses: range) -> bool:
    return mapping.start < addresses.stop and addresses.start < mapping.end


def _within(where: range, addresses: range | None) -> range:
    if addresses is None:
        return where
    return range(max(where.start, addresses.start), min(where.stop, addresses.stop))


def _named(name: str) -> str:
    return Path(name).name if name.startswith("/") else name or "anonymous"


def _look(pid: int, name: str, where: range, slots: int, threads: int | str) -> Area | None:
    """Ask for the node of every page between the first and the last; None if there is none."""
    target = Target(pid, (where,))
    start, end, present = where.stop, where.start, 0
    for extents in Survey(target).windows():
        last = extents[-1]
        start = min(start, int(extents["start"][0]))
        end = max(end, int(last["start"]) + (int(last["pages"]) << int(last["shift"])))
        present += extents_bytes(extents)
    if not present:
        return None
    nodes: dict[int, npt.NDArray[np.float64]] = {}
    for extents in Survey(target).windows():
        for piece in _pieces(extents):
            plan = make_plan(machine(), -1, extents_by_size(piece), threads=threads)
            error, _, _, _, table = locate_extents(piece, pid, threads=plan.threads, statuses=True)
            if error:
                raise refusal(error, target, -1)
            assert table is not None
            _add(nodes, table, range(start, end), slots)
    return Area(name, start, end, present, dict(sorted(nodes.items())))


def _pieces(extents: npt.NDArray[np.void]) -> Iterable[npt.NDArray[np.void]]:
    """Cut extents into lists of at most ``_PIECE_PAGES`` pages."""
    if extents_pages(extents) <= _PIECE_PAGES:
        return [extents]
    cut = []
    for extent in extents:
        pages, start = int(extent["pages"]), int(extent["start"])
        while pages > _PIECE_PAGES:
            head = extent.copy()
            head["start"], head["pages"] = start, _PIECE_PAGES
            cut.append(head)
            pages -= _PIECE_PAGES
            start += _PIECE_PAGES << int(extent["shift"])
        rest = extent.copy()
        rest["start"], rest["pages"] = start, pages
        cut.append(rest)
    whole = np.array(cut, extents.dtype)
    group = (np.cumsum(whole["pages"]) - 1) // _PIECE_PAGES
    return np.split(whole, np.flatnonzero(np.diff(group)) + 1)


def _add(
    nodes: dict[int, npt.NDArray[np.float64]],
    table: npt.NDArray[np.void],
    where: range,
    slots: int,
) -> None:
    """Add the pages of ``table`` to the slots of ``where`` that they lie in."""
    edges = where.start + np.arange(slots + 1) * (len(where) / slots)
    for node in np.unique(table["status"][table["status"] >= 0]):
        pages = table[table["status"] == node]
        total = nodes.setdefault(int(node), np.zeros(slots))
        # Bytes on the node below each edge; their differences are the bytes in each slot.
        starts = pages["address"].astype(np.float64)
        sizes = pages["size"].astype(np.float64)
        before = np.concatenate([[0.0], np.cumsum(sizes)])
        index = np.searchsorted(starts, edges, "right")
        below = before[index]
        inside = np.flatnonzero(index)
        last = index[inside] - 1
        over = np.maximum(starts[last] + sizes[last] - edges[inside], 0.0)
        below[inside] -= over
        total += np.diff(below)

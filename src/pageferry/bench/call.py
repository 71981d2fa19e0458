# SPDX-License-Identifier: Apache-2.0
"""What one call costs: ``move()`` of a single page against the bare system call."""

from __future__ import annotations

import mmap
import statistics
import time
from typing import Any

import numpy as np

from .._native import ffi, lib
from ..flags import MPOL_MF_MOVE, MigrateMode
from ..migrate import move
from ..pages import EXTENT, PAGE_SHIFT
from ..planning import Planning
from ..topology import topology
from .machine import machine_facts

EXPERIMENT = "call"
#: A window of a fragmented gigabyte: as many extents of 64 base pages as make one.
_EXTENTS = 4096


def run_call(*, repeats: int = 1000) -> dict[str, Any]:
    """Time both in turn, ``repeats`` times, and return medians in microseconds.

    The page is moved to and fro where there are two nodes. With one node ``move()`` finds the
    page in place by asking, without a moving call; the bare call is the question then, so that
    the difference is all of ``move()``'s own cost.
    """
    nodes = (topology().target_nodes * 2)[:2]
    moves = nodes[0] != nodes[1]
    page = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), np.uint8)
    page[0] = 1
    address = ffi.new("uint64_t[]", [page.ctypes.data])
    status = ffi.new("int32_t[1]")
    raw: list[float] = []
    ours: list[float] = []
    for repeat in range(repeats + 10):
        target = nodes[repeat % 2]
        node = ffi.new("int32_t[]", [target])
        begun = time.perf_counter()
        if moves:
            lib.pf_sys_move_pages(0, 1, address, node, status, MPOL_MF_MOVE)
        else:
            lib.pf_sys_move_pages(0, 1, address, ffi.NULL, status, 0)
        between = time.perf_counter()
        move(page, nodes[(repeat + 1) % 2])
        ended = time.perf_counter()
        if repeat >= 10:
            raw.append((between - begun) * 1e6)
            ours.append((ended - between) * 1e6)
    return {
        "experiment": EXPERIMENT,
        "machine": machine_facts(),
        "repeats": repeats,
        "nodes": list(nodes),
        "moves": moves,
        "raw_us": statistics.median(raw),
        "move_us": statistics.median(ours),
        "above_us": statistics.median(b - a for a, b in zip(raw, ours, strict=True)),
        "above_us_quartiles": statistics.quantiles(
            [b - a for a, b in zip(raw, ours, strict=True)], n=4
        ),
        "plan_page_us": _planning(1, 1, nodes[0], repeats),
        "plan_gigabyte_us": _planning(_EXTENTS, 64, nodes[0], repeats),
    }


def _planning(extents: int, pages: int, node: int, repeats: int) -> float:
    """Return the median microseconds of planning a move, its survey not counted."""
    window = np.zeros(extents, EXTENT)
    window["pages"], window["shift"] = pages, PAGE_SHIFT
    times = []
    for _ in range(repeats + 10):
        begun = time.perf_counter()
        planning = Planning(node, None, threads="auto", mode=MigrateMode.SYNC, sources=None)
        planning.follow(window)
        planning.whole()
        times.append((time.perf_counter() - begun) * 1e6)
    return statistics.median(times[10:])

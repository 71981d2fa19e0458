# SPDX-License-Identifier: Apache-2.0
"""Moves on a busy machine: what they take by one thread, by many, by the plan; what others lose.

For each size of move and each number of busy processes beside it, all ways are measured in turn in
every repeat, so that drift of the machine meets all of them alike. Ratios are taken inside one
repeat; what is reported are medians, lowest and highest.
"""

from __future__ import annotations

import errno
import statistics
import time
from collections.abc import Callable
from typing import Any

from ..errors import NodeError, PageferryError
from ..flags import MigrateMode
from ..migrate import move
from ..pages import PAGE_SIZE
from ..topology import Topology, topology
from .machine import machine_facts
from .memory import PageArray
from .spinners import Spinners

EXPERIMENT = "load"
SIZES = (PAGE_SIZE, 64 << 10, 2 << 20, 16 << 20, 128 << 20, 1 << 30)
#: Busy processes beside the move, as a share of the CPUs.
LOADS = {"idle": 0.0, "half": 0.5, "all": 1.0, "twice": 2.0}
REPEATS = 5
#: A sample is so many seconds of moves to and fro, and at least one of each.
SAMPLE_SECONDS = 0.1
AUTO = "auto"
_REST = "rest"
_AIR = 160 << 20

#: What has to be reached: the ratio, over which loads, and the least it may be.
TARGETS: dict[str, tuple[str, tuple[str, ...], float]] = {
    "auto_best": ("auto against the best fixed number of threads", tuple(LOADS), 0.95),
    "auto_one": ("auto against one thread", tuple(LOADS), 0.97),
    "many_one": ("all threads against one, all CPUs busy", ("all", "twice"), 0.95),
    "others": ("others' speed beside all threads against beside one", ("all", "twice"), 0.95),
}

Say = Callable[[str], None]


def run_load(
    *,
    sizes: tuple[int, ...] = SIZES,
    loads: tuple[str, ...] = tuple(LOADS),
    page_size: int = PAGE_SIZE,
    repeats: int = REPEATS,
    seconds: float = SAMPLE_SECONDS,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Run the experiment between the first two nodes with memory; return figures ready for JSON.

    Sizes that a node has no room for are left out, and named in ``left_out``. ``seconds`` is the
    least length of one sample. Raises ``NodeError`` (ENODEV) on a machine with one node,
    ``MemoryError`` when the kernel gives no pages of ``page_size``, and ``AssertionError`` should
    a byte be wrong afterwards.
    """
    machine = topology()
    nodes = machine.target_nodes[:2]
    if len(nodes) < 2:
        raise NodeError(
            errno.ENODEV,
            "the experiment needs two nodes with memory",
            "run it in a guest: pageferry bench load --lab always",
        )
    cpus = len(machine.allowed_cpus)
    wanted = sorted({max(size, page_size) for size in sizes})
    room = min(machine.free(node) for node in nodes) - _AIR
    fitting = tuple(size for size in wanted if size <= room)
    if not fitting:
        raise MemoryError(f"the nodes have no {wanted[0]} bytes free, and some air")
    say(f"memory of {fitting[-1] >> 10} KiB")
    array = PageArray(fitting[-1] // page_size, page_size)
    array.keep_from_children()  # the busy processes
    ways = _ways(machine)
    cells = []
    for load in loads:
        spinners = round(cpus * LOADS[load])
        with Spinners(spinners) as others:
            for size in fitting:
                say(f"{load}, {spinners} busy processes: moves of {size >> 10} KiB")
                mover = _Mover(array, size, nodes)
                cells.append(
                    {
                        "load": load,
                        "busy": spinners,
                        "bytes": size,
                        **_cell(mover, ways, others, repeats, seconds),
                    }
                )
    array.check()
    return {
        "experiment": EXPERIMENT,
        "machine": machine_facts(),
        "nodes": list(nodes),
        "repeats": repeats,
        "page_size": page_size,
        "ways": list(ways),
        "left_out": [size for size in wanted if size not in fitting],
        "cells": cells,
        "targets": targets(cells),
    }


def _ways(machine: Topology) -> dict[str, dict[str, Any]]:
    """Return the arguments of move() for each way: powers of two, all CPUs, and auto."""
    cpus = len(machine.allowed_cpus)
    counts = [1]
    while counts[-1] * 2 < cpus:
        counts.append(counts[-1] * 2)
    counts += [max(cpus, 2)]
    ways: dict[str, dict[str, Any]] = {}
    for count in counts:
        kind = MigrateMode.ST if count == 1 else MigrateMode.MT
        ways[str(count)] = {"threads": count, "mode": MigrateMode.SYNC | kind}
    ways[AUTO] = {"threads": "auto"}
    return ways


class _Mover:
    """Moves the first bytes of an array, to one node and to the other in turn."""

    def __init__(self, array: PageArray, size: int, nodes: tuple[int, ...]) -> None:
        self._words = array.words[: size // 8]
        self._nodes = nodes
        self._at = 0
        move(self._words, nodes[0])

    def moved(self, **how: Any) -> float:
        """Move once; return the seconds that the caller waited."""
        self._at = 1 - self._at
        begun = time.perf_counter()
        result = move(self._words, self._nodes[self._at], **how)
        seconds = time.perf_counter() - begun
        if not result.complete:
            raise PageferryError(errno.EBUSY, f"not all pages moved: {dict(result.failed)}")
        return seconds


def _cell(
    mover: _Mover, ways: dict[str, dict[str, Any]], others: Spinners, repeats: int, seconds: float
) -> dict[str, Any]:
    taken: dict[str, list[float]] = {name: [] for name in ways}
    speeds: dict[str, list[float]] = {name: [] for name in (*ways, _REST)}
    order = list(speeds)
    for repeat in range(-1, repeats):
        for name in order:
            times, speed = _sample(mover, ways.get(name), others, seconds if repeat >= 0 else 0)
            if repeat < 0:
                continue  # a warm-up
            speeds[name].append(speed)
            if times:
                taken[name].append(statistics.mean(times))
        order.append(order.pop(0))  # nobody always goes first
    return summary(taken, speeds)


def _sample(
    mover: _Mover, how: dict[str, Any] | None, others: Spinners, seconds: float
) -> tuple[list[float], float]:
    """Move to and fro for ``seconds``, or rest; return the times, and others' turns a second."""
    times: list[float] = []
    turns, begun = others.turns, time.perf_counter()
    if how is None:
        time.sleep(seconds)
    else:
        while not times or time.perf_counter() - begun < seconds:
            times += [mover.moved(**how), mover.moved(**how)]
    passed = time.perf_counter() - begun
    return times, (others.turns - turns) / passed if passed else 0.0


def summary(taken: dict[str, list[float]], speeds: dict[str, list[float]]) -> dict[str, Any]:
    """Return one cell from its samples: seconds of a move by way, and others' turns a second.

    ``others`` of a way is their speed beside its moves as a share of their speed at rest, None
    when there are no others. Ratios are above 1 where the first named is quicker.
    """
    fixed = [name for name in taken if name != AUTO]
    one, many = fixed[0], fixed[-1]
    best = min(fixed, key=lambda name: statistics.median(taken[name]))
    busy = any(speeds[_REST])
    shares = {
        name: [a / b for a, b in zip(speeds[name], speeds[_REST], strict=True) if b]
        for name in taken
    }
    return {
        "ways": {
            name: {
                "seconds": _spread(taken[name]),
                "others": _spread(shares[name]) if busy else None,
                "samples": taken[name],
            }
            for name in taken
        },
        "best": best,
        "ratios": {
            "auto_best": _ratio(taken[best], taken[AUTO]),
            "auto_one": _ratio(taken[one], taken[AUTO]),
            "many_one": _ratio(taken[one], taken[many]),
            "others": _ratio(shares[many], shares[one]) if busy else None,
        },
    }


def _spread(samples: list[float]) -> dict[str, float]:
    return {"median": statistics.median(samples), "low": min(samples), "high": max(samples)}


def _ratio(above: list[float], below: list[float]) -> dict[str, float]:
    return _spread([a / b for a, b in zip(above, below, strict=True)])


def targets(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each of ``TARGETS``, its worst cell, and which cells miss it."""
    found = []
    for name, (words, loads, least) in TARGETS.items():
        measured = [cell for cell in cells if cell["load"] in loads and cell["ratios"][name]]
        if not measured:
            continue
        worst = min(measured, key=lambda cell: float(cell["ratios"][name]["median"]))
        found.append(
            {
                "name": name,
                "words": words,
                "least": least,
                "cells": len(measured),
                "missed": [
                    {"load": cell["load"], "bytes": cell["bytes"]}
                    for cell in measured
                    if cell["ratios"][name]["median"] < least
                ],
                "worst": worst["ratios"][name]["median"],
                "worst_at": {"load": worst["load"], "bytes": worst["bytes"]},
            }
        )
    return found


def quick() -> dict[str, Any]:
    """Return the arguments of ``run_load`` for a look of a few seconds: one size, few repeats."""
    return {"sizes": (2 << 20,), "loads": ("idle", "all"), "repeats": 2, "seconds": 0.02}

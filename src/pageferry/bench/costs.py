# SPDX-License-Identifier: Apache-2.0
"""Measuring what moving costs on this machine, for ``pageferry calibrate``.

With two nodes, pages are moved there and back by growing numbers of threads, in turn, and the cost
model is fitted to the fastest of each. With one node nothing can move: what a call and a copy cost
is measured, and the rest stays assumed.
"""

from __future__ import annotations

import mmap
import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt

from .._native import ffi, lib
from ..arrays import empty
from ..calibration import Calibration
from ..errors import PageferryError
from ..fit import Measured, fit
from ..flags import MPOL_MF_MOVE
from ..migrate import move
from ..model import DEFAULT_COSTS, Costs, best_threads, pieces
from ..page_size import thp_available
from ..pages import PAGE_SIZE
from ..report import MoveResult
from ..seats import seats_near
from ..survey import thp_shift
from ..sweep import thread_numbers
from ..topology import Topology, topology

Say = Callable[[str], None]
#: Bytes of each kind of page that one sample moves.
BASE_BYTES, HUGE_BYTES = 64 << 20, 128 << 20
#: And of what calls and threads cost beside that.
SMALL_BYTES, MIDDLE_BYTES = 1 << 20, 8 << 20
#: No sample begins later, so that the whole stays under a minute.
SECONDS_MOST = 40.0
_CALLS = 50
#: A machine that takes longer than this for one sample gets smaller ones.
_SAMPLE_SECONDS, _PROBE_BYTES = 0.1, 4 << 20
#: What differs by less than this factor is taken to be the same.
_CLEARLY = 1.05

_Bytes = npt.NDArray[np.uint8]


def measure(*, repeats: int = 5, say: Say = lambda text: None) -> Calibration:
    """Measure this machine and return its calibration. Keeps it nowhere.

    Raises ``NodeFullError`` without the memory for it, 192 MiB on each of two nodes.
    """
    here = topology()
    when = time.strftime("%Y-%m-%d %H:%M")
    nodes = here.target_nodes
    if len(nodes) < 2:
        costs, measured = _one_node(here, repeats, say)
        return Calibration(costs, measured=measured, when=when)
    deadline = time.monotonic() + SECONDS_MOST
    # A node with CPUs first: between two without, all work is done from afar.
    pair = sorted(nodes, key=lambda node: (not here.node(node).cpus, node))[:2]
    part = _part(pair)
    arrays = {PAGE_SIZE: empty(BASE_BYTES // part, np.uint8, node=pair[0], page_size="4K")}
    if thp_available():
        huge = empty(HUGE_BYTES // part, np.uint8, node=pair[0], page_size="2M")
        arrays[1 << thp_shift()] = huge
    start = replace(DEFAULT_COSTS, call_us=_call_us(pair[0], pair[1]))
    start = replace(start, **_copying(here, pair[0], BASE_BYTES // part, say))
    costs, measured = _fitted(here, pair, arrays, start, repeats, deadline, say)
    near = _side(here, pair, arrays, repeats, deadline, say)
    links = _links(here, nodes, arrays, costs, deadline, say) if len(nodes) > 2 else ()
    return Calibration(costs, near, links, measured, when)


def _part(pair: Sequence[int]) -> int:
    """Return by what to divide the memory that is moved: more than 1 on a slow machine."""
    array = empty(_PROBE_BYTES, np.uint8, node=pair[0], page_size="4K")
    took = min(moved(array, node, threads=1).seconds for node in (pair[1], pair[0]) * 2)
    slower = took * BASE_BYTES / _PROBE_BYTES / _SAMPLE_SECONDS
    return 1 << min(max(int(slower).bit_length() - 1, 0), 3)


def _fitted(
    here: Topology,
    pair: Sequence[int],
    arrays: dict[int, _Bytes],
    start: Costs,
    repeats: int,
    deadline: float,
    say: Say,
) -> tuple[Costs, tuple[str, ...]]:
    """Move by 1, 2, 4 … threads, there and back in turn, and fit the costs to the fastest.

    Small moves are among them: what a call takes depends on what the kernel's lists have, so calls
    of one page in a row may take far less than the call of a move.
    """
    seats = seats_near(here, os.sched_getaffinity(0), pair[1])
    numbers = thread_numbers(seats.cores, len(seats.cpus))
    cases = [
        (page_size, size, threads)
        for page_size, array in arrays.items()
        for size in sorted({max(SMALL_BYTES, page_size), MIDDLE_BYTES, array.nbytes})
        for threads in numbers
        if threads <= pieces({page_size: size // page_size})
    ]
    seconds: dict[tuple[int, int, int], list[float]] = {case: [] for case in cases}
    smallest: dict[tuple[int, int, int], int] = {}  # as the costs known so far have it
    for repeat in range(-1, repeats):
        say(f"moving: {'warm-up' if repeat < 0 else f'{repeat + 1}/{repeats}'}")
        for page_size, size, threads in cases:
            part = arrays[page_size][:size]
            both = [moved(part, node, threads=threads) for node in (pair[1], pair[0])]
            smallest[page_size, size, threads] = both[0].plan.smallest_bytes
            if repeat >= 0:
                took = sum(result.seconds for result in both) / 2
                seconds[page_size, size, threads].append(took)
        if repeat >= 0 and time.monotonic() > deadline:
            break
    measured = [
        Measured(
            {case[0]: case[1] // case[0]},
            case[2],
            min(seconds[case]),  # other work only makes a move slower
            seats,
            smallest=smallest[case],
        )
        for case in cases
    ]
    free = ["call_us", *(f"page_us.{size}" for size in arrays), "thread_gbps"]
    if seats.cores > 1:
        free += ["serial", "handover_us"]
    if seats.cores > 3:
        free += ["link_gbps", "crosstalk"]
    if seats.cores < len(seats.cpus):
        start, free = replace(start, smt_gain=0.1), [*free, "smt_gain"]
    names = dict.fromkeys(name.partition(".")[0] for name in free)
    return _scaled(fit(measured, start, free), arrays), tuple(names)


def _scaled(costs: Costs, measured: Collection[int]) -> Costs:
    """Return ``costs`` with the page sizes that were not measured scaled as the base pages are."""
    factor = costs.page(PAGE_SIZE) / DEFAULT_COSTS.page(PAGE_SIZE)
    pages = ((size, us if size in measured else us * factor) for size, us in costs.page_us)
    return replace(costs, page_us=tuple(pages))


def moved(array: _Bytes, node: int, **how: Any) -> MoveResult:
    """Move ``array`` by ``move``. Raises ``PageferryError`` if it did not all move."""
    result = move(array, node, **how)
    if result.bytes_moved != array.nbytes:
        raise PageferryError(
            result.stopped or 5,
            f"only {result.bytes_moved} of {array.nbytes} bytes moved to node {node}",
            "is NUMA balancing on (kernel.numa_balancing), or the node full?",
        )
    return result


def _side(
    here: Topology,
    pair: Sequence[int],
    arrays: dict[int, _Bytes],
    repeats: int,
    deadline: float,
    say: Say,
) -> str:
    """Return whose CPUs move faster, those of the target or of the source."""
    may = os.sched_getaffinity(0)
    cpus = [here.node(node).cpus & may for node in pair]
    if not all(cpus):
        return "target"
    say("whose CPUs: the target's or the source's")
    took = {"target": 0.0, "source": 0.0}
    for array in arrays.values():
        sums: dict[str, list[float]] = {side: [] for side in took}
        for _ in range(repeats):
            for side, (there, back) in (("target", (1, 0)), ("source", (0, 1))):
                both = 0.0
                for near, node in ((there, pair[1]), (back, pair[0])):
                    with _only(cpus[near]):
                        both += moved(array, node, threads=len(cpus[near])).seconds
                sums[side].append(both)
            if time.monotonic() > deadline:
                break
        for side, values in sums.items():
            took[side] += min(values) / array.nbytes
    return "source" if took["source"] * _CLEARLY < took["target"] else "target"


@contextmanager
def _only(cpus: frozenset[int]) -> Iterator[None]:
    """Keep this thread, and what it plans, to these CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _links(
    here: Topology,
    nodes: Sequence[int],
    arrays: dict[int, _Bytes],
    costs: Costs,
    deadline: float,
    say: Say,
) -> tuple[tuple[int, int, float], ...]:
    """Return (source, target, GB/s) for each pair whose link shows, as far as the time goes."""
    page_size, array = max(arrays.items())
    pages = {page_size: array.nbytes // page_size}
    found = []
    for source, target in permutations(nodes, 2):
        if time.monotonic() > deadline:
            say("no time for the other links")
            break
        seats = seats_near(here, os.sched_getaffinity(0), target)
        threads = best_threads(replace(costs, link_gbps=1e4), seats, pages)
        seconds = []
        for _ in range(3):
            move(array, source, threads=threads)
            result = moved(array, target, threads=threads)
            seconds.append(result.seconds)
        smallest = result.plan.smallest_bytes
        took = Measured(pages, threads, min(seconds), seats, smallest=smallest)
        # Where the threads were the limit, the move tells nothing about the link.
        if took.seconds > took.predicted(replace(costs, link_gbps=1e5)) * _CLEARLY:
            found.append((source, target, fit([took], costs, ["link_gbps"]).link_gbps))
    return tuple(found)


def _one_node(here: Topology, repeats: int, say: Say) -> tuple[Costs, tuple[str, ...]]:
    """Measure what one node lets be measured: a call, and copying."""
    node = here.target_nodes[0]
    say("one memory node: calls and copying alone")
    found = {"call_us": _call_us(node, node), **_copying(here, node, BASE_BYTES, say, repeats)}
    return replace(DEFAULT_COSTS, **found), tuple(sorted(found))


def _call_us(first: int, second: int) -> float:
    """Return what moving a single page takes; to its own node, the call alone."""
    page = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), np.uint8)
    page[0] = 1
    address = ffi.new("uint64_t[]", [page.ctypes.data])
    status = ffi.new("int32_t[1]")
    times = []
    for i in range(_CALLS):
        node = ffi.new("int32_t[]", [(second, first)[i % 2]])
        begun = time.perf_counter()
        result = lib.pf_sys_move_pages(0, 1, address, node, status, MPOL_MF_MOVE)
        times.append(time.perf_counter() - begun)
        if result < 0:
            raise PageferryError(-int(result), "move_pages failed", "see pageferry doctor")
    # Not the median: a call waits for every CPU, and other work only makes that longer.
    return statistics.quantiles(times, n=4)[0] * 1e6


def _copying(here: Topology, node: int, size: int, say: Say, repeats: int = 3) -> dict[str, Any]:
    """Return the GB/s that one thread, and all behind a cache, copy inside a node."""
    say("copying")
    source = empty(size, np.uint8, node=node)
    target = empty(size, np.uint8, node=node)
    source[:] = 1
    target[:] = 2
    seats = seats_near(here, os.sched_getaffinity(0), node)
    first = [cpu for cpu, cache in zip(seats.cpus, seats.caches, strict=True)
             if cache == seats.caches[0]][: seats.cores]  # fmt: skip
    rates: dict[int, list[float]] = {1: [], len(first): []}
    for _ in range(repeats + 1):
        for threads, kept in rates.items():
            cpus = ffi.new("int32_t[]", first[:threads])
            begun = time.perf_counter()
            # What the kernel's own copy is like: no stores past the cache.
            lib.pf_copy_pages_mthread(
                ffi.from_buffer(target), ffi.from_buffer(source), size, threads, cpus,
                lib.PF_COPY_MEMCPY,
            )  # fmt: skip
            kept.append(size / (time.perf_counter() - begun) / 1e9)
    # The best, not the median: other work only makes a copy slower.
    one = max(rates[1][1:])
    return {"thread_gbps": one, "cache_gbps": max(*rates[len(first)][1:], one)}

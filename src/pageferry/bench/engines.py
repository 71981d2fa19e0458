# SPDX-License-Identifier: Apache-2.0
"""The engines against each other, and against the copy and UFFDIO_COPY that they rest on."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from .._native import ffi, lib
from ..copying import copy, methods
from ..migrate import move
from ..nodes import machine
from ..page_size import BASE
from ..pages import PAGE_SHIFT
from ..populate import check_code, check_room
from ..seats import seats_near
from ..stalls import stalls_of
from ..survey import thp_shift
from ..user_engine import why_not
from .fill import Filler
from .machine import OtherLoad, machine_facts
from .memory import PageArray

EXPERIMENT = "engines"
BYTES = 256 << 20
COPY, FILL, KERNEL = "parallel copy", "parallel UFFDIO_COPY", "kernel engine"
WAYS = {"checked": 1, "hold": 2, "protect": 3}
POOLS = ("warm", "cold")
_STALLS = 128


def name_of(way: str, pool: str) -> str:
    """Return what a way of the user engine is called in tables."""
    return f"user engine, {way}, {pool}"


#: What the engines are to reach: page size ("4K" or "2M"), way, the baseline, the ratio to it.
TARGETS = (
    ("2M", (name_of("hold", "warm"), name_of("protect", "warm")), COPY, 0.90),
    ("4K", (name_of("hold", "warm"), name_of("protect", "warm")), COPY, 0.80),
    ("4K", (name_of("checked", "cold"), name_of("hold", "cold")), FILL, 1.0),
    ("2M", tuple(name_of(way, "cold") for way in WAYS), COPY, 0.45),
    ("4K", (name_of("checked", "warm"),), COPY, 0.60),
    ("2M", (name_of("checked", "warm"),), COPY, 0.90),
)

Way = Callable[[], float]
"""Moves, or copies, everything once; returns the seconds."""


def run_engines(
    *,
    size: int = BYTES,
    repeats: int = 7,
    threads: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time every way in turn, ``repeats`` times, for base pages and for huge ones.

    ``threads`` 0 is one for each core. With two nodes the engines move between them, with one
    the user engine gives pages new places on it, and there is no kernel engine to compare. What a
    warm pool holds is populated between the samples. Raises ``MemoryError`` when there is too
    little memory, and ``AssertionError`` should a single byte be wrong afterwards.
    """
    here = machine()
    seats = seats_near(here, os.sched_getaffinity(0), None)
    count = threads or seats.cores
    nodes = here.target_nodes[:2]
    size -= size % (1 << thp_shift()) if thp_shift() else 0
    for node in nodes:  # the array, its copy, the pool, and air
        check_room(node, 3 * size + (64 << 20))
    others = OtherLoad()
    cases = []
    for word, shift in (("4K", PAGE_SHIFT), ("2M", thp_shift())):
        if shift:
            cases.append(_case(word, shift, size, count, seats.cpus, nodes, repeats, say))
    return {
        "experiment": EXPERIMENT,
        "machine": machine_facts(),
        "other_load": round(others.cpus(), 2),
        "nodes": list(nodes),
        "threads": count,
        "bytes": size,
        "repeats": repeats,
        "cases": cases,
    }


def _case(
    word: str,
    shift: int,
    size: int,
    threads: int,
    cpus: Sequence[int],
    nodes: tuple[int, ...],
    repeats: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    array = PageArray(size >> shift, 1 << shift)
    target = PageArray(size >> shift, 1 << shift)
    ways: dict[str, Way] = {COPY: _copying(array, target, threads)}
    users: dict[str, _User] = {}
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        filler = _opened(stack, left_out)
        if filler is not None and shift == PAGE_SHIFT:
            ways[FILL] = _filling(array, filler, threads)
        for way in WAYS:
            error = why_not(way)
            if error is not None:
                left_out[f"user engine, {way}"] = str(error)
                continue
            for pool in POOLS:
                user = _User(array, shift, way, pool == "warm", threads, cpus, nodes)
                users[name_of(way, pool)] = ways[name_of(way, pool)] = user
        if len(nodes) > 1:
            ways[KERNEL] = _kernel(array, threads, nodes)
        samples: dict[str, list[float]] = {name: [] for name in ways}
        names = list(ways)
        for repeat in range(repeats + 1):
            say(f"{word} pages: {'warm-up' if not repeat else f'{repeat}/{repeats}'}")
            for name in names:
                seconds = ways[name]()
                if repeat:
                    samples[name].append(seconds)
            names.append(names.pop(0))  # nobody always goes first
    say(f"{word} pages: comparing every byte")
    array.check()
    return {
        "page_size": word,
        "ways": [_summary(name, size, samples, users.get(name)) for name in ways],
        "left_out": left_out,
        "targets": _targets(word, samples),
    }


def _opened(stack: ExitStack, left_out: dict[str, str]) -> Filler | None:
    try:
        return stack.enter_context(Filler())
    except OSError as error:
        left_out[FILL] = str(error)
        return None


def _copying(array: PageArray, target: PageArray, threads: int) -> Way:
    """Return the copy by the method that is the fastest here, found by one round of each."""

    def timed(method: str) -> float:
        return copy(target.words, array.words, threads=threads, method=method).seconds

    best = min(methods(), key=lambda method: min(timed(method) for _ in range(3)))
    return lambda: timed(best)


def _filling(array: PageArray, filler: Filler, threads: int) -> Way:
    def way() -> float:
        start = lib.pf_map(array.bytes, PAGE_SHIFT, 0)
        check_code(min(start, 0), 0, array.bytes, BASE)
        try:
            filler.watch(start, array.bytes)
            begun = time.perf_counter()
            filler.fill(start, array.address, array.bytes, threads)
            return time.perf_counter() - begun
        finally:
            lib.pf_unmap(start, array.bytes)

    return way


def _kernel(array: PageArray, threads: int, nodes: tuple[int, ...]) -> Way:
    def way() -> float:
        node = _other(array, nodes)
        result = move(array.words, node, threads=threads, engine="kernel")
        if result.bytes_moved != array.bytes:
            raise RuntimeError(f"the kernel engine moved {result.bytes_moved} of {array.bytes}")
        return result.seconds

    return way


def _other(array: PageArray, nodes: tuple[int, ...]) -> int:
    """Return the node that the array is not on, or the only one."""
    status = ffi.new("int32_t[1]")
    lib.pf_sys_move_pages(0, 1, ffi.new("uint64_t[]", [array.address]), ffi.NULL, status, 0)
    return next((node for node in nodes if node != status[0]), nodes[0])


class _User:
    """One way of the user engine by the core itself, with the pool filled or empty before."""

    def __init__(
        self,
        array: PageArray,
        shift: int,
        way: str,
        warm: bool,
        threads: int,
        cpus: Sequence[int],
        nodes: tuple[int, ...],
    ) -> None:
        self.stalls = [0] * _STALLS
        self.longest_us = 0
        self.pooled: list[float] = []
        self._array, self._shift, self._way, self._warm = array, shift, WAYS[way], warm
        self._threads, self._nodes = threads, nodes
        self._cpus = ffi.NULL
        if threads > 1 and cpus:
            self._cpus = ffi.new("int32_t[]", [cpus[i % len(cpus)] for i in range(threads)])
        self._extents = ffi.new(
            "struct pf_extent[]",
            [
                {
                    "start": array.address,
                    "pages": array.bytes >> shift,
                    "shift": shift,
                    "kind": lib.PF_PAGE_BASE if shift == PAGE_SHIFT else lib.PF_PAGE_THP,
                }
            ],
        )

    def __call__(self) -> float:
        node = _other(self._array, self._nodes)
        size = self._array.bytes
        call = ffi.new("struct pf_user *")
        call.target, call.way, call.threads, call.cpus = node, self._way, self._threads, self._cpus
        call.flags = lib.PF_USER_AGAIN | (lib.PF_USER_NO_FILL if self._warm else 0)
        if self._warm and self._way == WAYS["checked"]:
            # The old pages go to the pool, not back to the kernel; the other ways cannot do that.
            call.flags |= lib.PF_USER_EXACT
        call.extents, call.n_extents = self._extents, 1
        if self._warm:
            code = lib.pf_pool_reserve(node, self._shift, size, self._threads, self._cpus)
            if code < 0:
                raise MemoryError(f"node {node} has no room for a pool of {size >> 20} MiB")
        try:
            begun = time.perf_counter()
            code = lib.pf_user_run(call)
            seconds = time.perf_counter() - begun
        finally:
            if self._warm:
                lib.pf_pool_release(node, self._shift, size)
        progress = call.progress
        if code or progress.bytes_moved != size:
            raise RuntimeError(f"the user engine moved {progress.bytes_moved} of {size}: {code}")
        self.pooled.append(int(progress.bytes_pooled) / size)
        self.stalls = [a + b for a, b in zip(self.stalls, progress.stalls, strict=True)]
        self.longest_us = max(self.longest_us, int(progress.stall_us_max))
        return seconds


def _ratios(samples: dict[str, list[float]], name: str, baseline: str) -> list[float]:
    return [base / own for base, own in zip(samples[baseline], samples[name], strict=True)]


def _summary(
    name: str, size: int, samples: dict[str, list[float]], user: _User | None
) -> dict[str, Any]:
    own = samples[name]
    ratios = _ratios(samples, name, COPY)
    stalls = stalls_of(user.stalls, user.longest_us) if user is not None else None
    return {
        "name": name,
        "gbps": size / statistics.median(own) / 1e9,
        "gbps_low": size / max(own) / 1e9,
        "gbps_high": size / min(own) / 1e9,
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "stall_p50_ms": stalls.p50_ms if stalls else None,
        "stall_p99_ms": stalls.p99_ms if stalls else None,
        "stall_max_ms": stalls.max_ms if stalls else None,
        # Small pieces, as the bound on stalls makes them on a slow machine, come from elsewhere.
        "pooled": statistics.median(user.pooled) if user is not None else None,
        "samples": own,
    }


def _targets(word: str, samples: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return what was to be reached for a page size, by the best of the ways that count for it."""
    found = []
    for page_size, ways, baseline, wanted in TARGETS:
        if page_size != word or baseline not in samples:
            continue
        reached = {
            way: statistics.median(_ratios(samples, way, baseline))
            for way in ways
            if way in samples
        }
        if reached:
            best = max(reached, key=lambda way: reached[way])
            found.append(
                {
                    "way": best,
                    "baseline": baseline,
                    "wanted": wanted,
                    "reached": reached[best],
                    "met": reached[best] >= wanted,
                }
            )
    return found

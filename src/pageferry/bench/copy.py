# SPDX-License-Identifier: Apache-2.0
"""Every way to copy, by size and threads, against memcpy, numpy.copyto and STREAM's loop."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .._native import ffi, lib
from ..copying import METHOD_CODES, methods, tune
from ..nodes import machine
from ..pages import PAGE_SIZE
from ..seats import seats_near
from .machine import OtherLoad, machine_facts
from .memory import PageArray

EXPERIMENT = "copy"
SIZES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 400_000_000)
MEMCPY = "memcpy"
ONE = "copy_pages"
MANY = "copy_pages_mthread"
# One sample copies about so much, that it takes milliseconds.
_SAMPLE_BYTES = 32 << 20
_SAMPLE_COPIES = 4096

Way = Callable[[int, int], float]
"""Takes the size of a copy and how many to do; returns the seconds of all."""


@dataclass(frozen=True)
class Case:
    """One size, in bytes, and how many copies make one sample."""

    bytes: int
    count: int


def run_copy(
    *,
    sizes: Sequence[int] = SIZES,
    threads: Sequence[int] = (),
    repeats: int = 7,
    page_size: int = 2 << 20,
    cached: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time every way in turn, ``repeats`` times, and return medians and spread.

    ``threads`` are the numbers compared beside one thread; without them, one for each core.
    Copies go on through memory as large as the largest size, so that each finds its own in no
    cache, as migration does; ``cached`` repeats them in one place. Both sides have been touched
    before. GB/s count each byte once. Raises ``MemoryError`` when pages of that size, or memory,
    cannot be had, and ``AssertionError`` when a copy differs from its source.
    """
    seats = seats_near(machine(), os.sched_getaffinity(0), None)
    numbers = tuple(n for n in (threads or (seats.cores,)) if n > 1)
    room = -(-max(max(sizes), 0 if cached else _SAMPLE_BYTES) // page_size)
    source, target = PageArray(room, page_size), PageArray(room, page_size)
    pair = _Pair(source, target, cached)
    tuning = tune()
    others = OtherLoad()
    ways = _ways(pair, numbers, seats.cpus)
    cases = []
    for size in sizes:
        say(f"{size} bytes, {len(ways)} ways, {repeats} times")
        case = Case(size, max(1, min(_SAMPLE_BYTES // size, _SAMPLE_COPIES)))
        cases.append(_case(case, ways, repeats))
    for name, way in ways.items():
        target.words[:] = 0
        pair.at = 0
        way(source.bytes, 1)
        if not np.array_equal(target.words, source.words):
            raise AssertionError(f"{name}: the copy differs from its source")
    return {
        "experiment": EXPERIMENT,
        "machine": machine_facts(),
        "other_load": round(others.cpus(), 2),
        "repeats": repeats,
        "page_size": page_size,
        "cached": cached,
        "threads": list(numbers),
        "tuning": asdict(tuning),
        "cases": cases,
    }


@dataclass
class _Pair:
    """Source and target, and the place in them where the next copy goes, whoever does it."""

    source: PageArray
    target: PageArray
    cached: bool
    at: int = 0

    def stride(self, size: int) -> int:
        return 0 if self.cached else -(-size // PAGE_SIZE) * PAGE_SIZE


def _ways(pair: _Pair, threads: Sequence[int], cpus: Sequence[int]) -> dict[str, Way]:
    """Return the ways by name; "auto" is what ``copy_pages`` and the other do by themselves."""

    def timed(method: str, count: int = 0, stream: bool = False) -> Way:
        return _Timed(pair, METHOD_CODES[method], count, cpus, stream)

    ways: dict[str, Way] = {
        MEMCPY: timed(MEMCPY),
        "numpy.copyto": _numpy(pair),
        "STREAM copy": timed(MEMCPY, stream=True),
    }
    ways |= {name: timed(name) for name in methods() if name != MEMCPY}
    ways[f"{ONE} auto"] = timed("auto")
    for count in threads:
        ways |= {f"{name}, {count} threads": timed(name, count) for name in methods()}
        ways[f"{MANY} auto, {count} threads"] = timed("auto", count)
    return ways


class _Timed:
    """Copies that the C core times, so that no time of Python's is in them."""

    def __init__(
        self, pair: _Pair, method: int, threads: int, cpus: Sequence[int], stream: bool
    ) -> None:
        self._pair = pair
        self._cpus = ffi.NULL
        if threads > 1 and cpus:
            self._cpus = ffi.new("int32_t[]", [cpus[i % len(cpus)] for i in range(threads)])
        self._c: Any = ffi.new("struct pf_copy_timing *")
        self._c.dst = ffi.cast("void *", pair.target.address)
        self._c.src = ffi.cast("void *", pair.source.address)
        self._c.room = pair.source.bytes
        self._c.method, self._c.threads, self._c.stream = method, threads, stream
        self._c.cpus = self._cpus

    def __call__(self, size: int, count: int) -> float:
        self._c.bytes, self._c.count = size, count
        self._c.stride, self._c.at = self._pair.stride(size), self._pair.at
        if lib.pf_copy_time(self._c):
            raise AssertionError("a copy was refused")
        self._pair.at = int(self._c.at)
        return float(self._c.ns) / 1e9


def _numpy(pair: _Pair) -> Way:
    """Return numpy's own copy; the few hundred ns of its calls are in it."""
    to, of = pair.target.words.view(np.uint8), pair.source.words.view(np.uint8)

    def way(size: int, count: int) -> float:
        places = []
        for _ in range(count):
            if pair.at + size > len(to):
                pair.at = 0
            places.append((to[pair.at : pair.at + size], of[pair.at : pair.at + size]))
            pair.at += pair.stride(size)
        begun = time.perf_counter()
        for dst, src in places:
            np.copyto(dst, src)
        return time.perf_counter() - begun

    return way


def _case(case: Case, ways: dict[str, Way], repeats: int) -> dict[str, Any]:
    samples: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for repeat in range(repeats + 1):
        # Each begins elsewhere, so that none always comes after the same other.
        first = repeat * 5 % len(names)
        for name in names[first:] + names[:first]:
            seconds = ways[name](case.bytes, case.count)
            if repeat:  # the first round warms up
                samples[name].append(seconds)
    return {
        **asdict(case),
        "ways": [summary(name, case.bytes * case.count, samples) for name in names],
    }


def summary(name: str, size: int, samples: dict[str, list[float]]) -> dict[str, Any]:
    """Return median and spread of one way in GB/s, and of its ratios inside a repeat.

    ``ratio`` is to memcpy; for ``copy_pages_mthread auto``, ``ratio_to_one`` is to
    ``copy_pages auto``.
    """
    own = samples[name]
    result: dict[str, Any] = {
        "name": name,
        "gbps": size / statistics.median(own) / 1e9,
        "gbps_low": size / max(own) / 1e9,
        "gbps_high": size / min(own) / 1e9,
        **_ratios("ratio", samples[MEMCPY], own),
        "seconds": own,
    }
    if name.startswith(MANY):
        result |= _ratios("ratio_to_one", samples[f"{ONE} auto"], own)
    return result


def _ratios(key: str, base: list[float], own: list[float]) -> dict[str, float]:
    ratios = [b / o for b, o in zip(base, own, strict=True)]
    return {
        key: statistics.median(ratios),
        f"{key}_low": min(ratios),
        f"{key}_high": max(ratios),
    }

# SPDX-License-Identifier: Apache-2.0
"""Node by node: latency, copy bandwidth, and how fast pages migrate.

Every cell is measured once in each repeat, after a warm-up, so that drift of the machine meets all
of them alike; a cell is the median with lowest and highest.
"""

from __future__ import annotations

import errno
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from .._native import ffi, lib
from ..arrays import empty
from ..errors import PageferryError, UnsupportedError
from ..migrate import move
from ..survey import thp_shift
from ..topology import Topology, topology
from .machine import machine_facts
from .memory import HUGE, PageArray

EXPERIMENT = "matrix"
SIZE = 256 << 20
REPEATS = 5
_LINE = 64
_HOPS = 1 << 15
_STRETCHES = 8
_AIR = 64 << 20

_Words = npt.NDArray[np.uint64]
Say = Callable[[str], None]


class Matrix:
    """Samples of one figure by row (from) and column (to)."""

    def __init__(self, name: str, title: str, unit: str, rows: str, columns: str) -> None:
        self.facts = {"name": name, "title": title, "unit": unit, "rows": rows, "columns": columns}
        self.samples: dict[tuple[int, int], list[float]] = {}

    def add(self, row: int, column: int, value: float) -> None:
        """Add a sample."""
        self.samples.setdefault((row, column), []).append(value)

    def as_dict(self, nodes: tuple[int, ...], **more: Any) -> dict[str, Any]:
        """Return it for JSON; a cell without samples is null."""
        return {
            **self.facts,
            **more,
            "better": "lower" if self.facts["unit"] == "ns" else "higher",
            "cells": [[self._cell(row, column) for column in nodes] for row in nodes],
        }

    def _cell(self, row: int, column: int) -> dict[str, Any] | None:
        samples = self.samples.get((row, column))
        if not samples:
            return None
        return {
            "median": statistics.median(samples),
            "low": min(samples),
            "high": max(samples),
            "samples": samples,
        }


def run_matrix(
    *,
    size: int = SIZE,
    repeats: int = REPEATS,
    threads: int | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Measure between all nodes that this process may use; return the figures, ready for JSON.

    ``size`` bytes are copied, moved and chased through; ``threads`` copy and move, by default one
    for each core. With one node there is no migration to measure. Raises ``MemoryError`` when a
    node has too little free memory, and ``AssertionError`` should a byte be wrong afterwards.
    """
    machine = topology()
    nodes = tuple(sorted({*machine.target_nodes, *_nodes_with_cpus(machine)}))
    memory = machine.target_nodes
    size = max(size - size % HUGE, HUGE)
    for node in memory:
        if machine.free(node) < 2 * size + _AIR:
            raise MemoryError(
                f"node {node} has too little free memory for twice {size >> 20} MiB: see --size"
            )
    cores = len({cpu.core for cpu in machine.cpus if cpu.id in machine.allowed_cpus})
    count = threads or max(cores, 1)
    figures: dict[str, Any] = {
        "experiment": EXPERIMENT,
        "machine": machine_facts(),
        "nodes": list(nodes),
        "repeats": repeats,
        "bytes": size,
        "threads": count,
        "last_level_cache": max((cache.size or 0 for cache in machine.caches), default=0),
        "matrices": [
            _latency(machine, memory, size, repeats, say).as_dict(nodes, threads=1),
            _copy(machine, memory, size, repeats, count, say).as_dict(nodes, threads=count),
        ],
    }
    if len(memory) > 1:
        sizes = [os.sysconf("SC_PAGESIZE")] + ([HUGE] if 1 << thp_shift() == HUGE else [])
        for page_size in sizes:
            try:
                found = _migration(memory, size, page_size, repeats, count, say)
            except UnsupportedError as error:
                say(str(error))
                continue
            figures["matrices"].append(found.as_dict(nodes, threads=count, page_size=page_size))
    return figures


def _nodes_with_cpus(machine: Topology) -> tuple[int, ...]:
    return tuple(node.id for node in machine.nodes if node.cpus & machine.allowed_cpus)


def _latency(
    machine: Topology, memory: tuple[int, ...], size: int, repeats: int, say: Say
) -> Matrix:
    """Load words each of which is the address of the next, in random order: nothing overlaps.

    A sample is the fastest of some stretches, so that a moment without the CPU does not count; each
    stretch goes on where the one before ended, over lines that no cache has seen lately.
    """
    matrix = Matrix(
        "latency", "Latency of a load that depends on the one before", "ns",
        "CPU of node", "memory of node",
    )  # fmt: skip
    say(f"latency: a chain of {size // _LINE} lines")
    order = np.random.default_rng(1).permutation(size // _LINE).astype(np.uint64)
    chains = {node: _chain(node, size, order) for node in memory}
    places = {node: ffi.new("uint64_t *", chain.ctypes.data) for node, chain in chains.items()}
    cpus = {
        node: min(machine.node(node).cpus & machine.allowed_cpus)
        for node in _nodes_with_cpus(machine)
    }
    for repeat in _repeats("latency", repeats, say):
        for row, cpu in cpus.items():
            with _pinned(cpu):
                for column, place in places.items():
                    fastest = min(lib.pf_chase(place, _HOPS) for _ in range(_STRETCHES))
                    if repeat >= 0:
                        matrix.add(row, column, fastest / _HOPS)
    return matrix


def _chain(node: int, size: int, order: _Words) -> _Words:
    words: _Words = empty(size // 8, np.uint64, node=node, threads=1)
    words[order * np.uint64(_LINE // 8)] = np.uint64(words.ctypes.data) + (
        np.roll(order, -1) * np.uint64(_LINE)
    )
    return words


@contextmanager
def _pinned(cpu: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _copy(
    machine: Topology, memory: tuple[int, ...], size: int, repeats: int, threads: int, say: Say
) -> Matrix:
    """Copy with the copy core, its threads as near to the target as there are CPUs."""
    matrix = Matrix("copy", "Copy bandwidth", "GB/s", "from node", "to node")
    say("copy: arrays on each node")
    arrays = {node: tuple(_filled(node, size, salt) for salt in (1, 2)) for node in memory}
    for repeat in _repeats("copy", repeats, say):
        for row in memory:
            for column in memory:
                source, target = arrays[row][0], arrays[column][1]
                cpus = machine.spread(machine.allowed_cpus, column)
                chosen = [cpus[at % len(cpus)] for at in range(threads)]
                begun = time.perf_counter()
                code = lib.pf_copy_pages_mthread(
                    ffi.from_buffer(target), ffi.from_buffer(source), size, threads,
                    ffi.new("int32_t[]", chosen), lib.PF_COPY_AUTO,
                )  # fmt: skip
                seconds = time.perf_counter() - begun
                if code < 0:
                    raise PageferryError(-code, "copying failed")
                if repeat >= 0:
                    matrix.add(row, column, size / seconds / 1e9)
                elif not np.array_equal(source, target):
                    raise AssertionError(f"the copy from node {row} to node {column} differs")
    return matrix


def _filled(node: int, size: int, salt: int) -> _Words:
    words: _Words = empty(size // 8, np.uint64, node=node)
    words[:] = np.arange(len(words), dtype=np.uint64) * np.uint64(salt)
    return words


def _migration(
    memory: tuple[int, ...], size: int, page_size: int, repeats: int, threads: int, say: Say
) -> Matrix:
    name = "2 MiB" if page_size == HUGE else f"{page_size >> 10} KiB"
    matrix = Matrix(
        f"migration-{name.replace(' ', '')}", f"Migration of {name} pages", "GB/s",
        "from node", "to node",
    )  # fmt: skip
    say(f"migration: {size // page_size} pages of {name}")
    array = PageArray(size // page_size, page_size)
    for repeat in _repeats(f"migration, {name}", repeats, say):
        for row in memory:
            for column in memory:
                if row == column:
                    continue
                _moved(array, row, threads)
                seconds = _moved(array, column, threads)
                if repeat >= 0:
                    matrix.add(row, column, size / seconds / 1e9)
    array.check()
    return matrix


def _moved(array: PageArray, node: int, threads: int) -> float:
    """Bring all of the array to a node; return the seconds it took."""
    result = move(array.words, node, threads=threads)
    if not result.complete:
        raise PageferryError(errno.EBUSY, f"not all of {array.bytes} bytes moved to node {node}")
    return result.seconds


def _repeats(name: str, repeats: int, say: Say) -> Iterator[int]:
    """Yield -1, the warm-up, and the number of each repeat."""
    for repeat in range(-1, repeats):
        say(f"{name}: {'warm-up' if repeat < 0 else f'{repeat + 1}/{repeats}'}")
        yield repeat

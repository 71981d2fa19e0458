# SPDX-License-Identifier: Apache-2.0
"""The experiment of the 2017 series: 100000 pages of 4 KiB and 195 of 2 MiB between two nodes.

Ways to move the same pages are measured in turn, there and back summed, repeated after a
warm-up, so that drift of the machine meets all of them alike. Ratios are taken inside one
repeat, against one plain ``move_pages`` call. Folios of 64 KiB and hugetlb pages can be moved so,
too, which the series did not measure.
"""

from __future__ import annotations

import errno
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .._native import ffi, lib
from ..errors import NodeError, PageferryError
from ..flags import MPOL_MF_MOVE, MPOL_MF_MOVE_MT
from ..locate import locate
from ..migrate import move
from ..syscalls import kernel_has_mt
from ..topology import topology
from ..user_engine import why_not
from .machine import machine_facts
from .memory import HUGE, Child, PageArray, hugetlb_pool


class Case(NamedTuple):
    """So many pages of a size, with the word for them in the table, the series' own for its two."""

    page_size: int
    pages: int
    word: str

    @property
    def hugetlb(self) -> bool:
        """Whether the pages are of hugetlb's pool."""
        return self.word == HUGETLB

    @property
    def published(self) -> bool:
        """Whether the series has measured it."""
        return self.word in (case.word for case in CASES)


class Ways(NamedTuple):
    """What is compared with a plain call besides what the kernel itself can do with threads."""

    pageferry: bool = True
    user_engine: bool = False
    migratepages: bool = True


DEFAULT_WAYS = Ways()
HUGETLB = "hugetlb"
MTHP = "64K"
CASES = (Case(4096, 100000, "normal"), Case(HUGE, 195, "huge"))
#: What ``--kernel all`` moves, all of one size in bytes.
KINDS = (Case(4096, 1, "normal"), Case(64 << 10, 1, MTHP), Case(HUGE, 1, "huge"),
         Case(HUGE, 1, HUGETLB))  # fmt: skip
_TUNABLE = Path("/proc/sys/vm/mt_page_copy")
_KERNEL_THREADS = Path("/proc/sys/vm/mt_page_copy_threads")
PLAIN = "plain move_pages"
MIGRATEPAGES = "migratepages"
EXPERIMENT = "series"

Move = Callable[[int, int], None]
_Addresses: TypeAlias = np.ndarray[Any, np.dtype[np.uint64]]


def run_series(
    *,
    repeats: int = 7,
    threads: tuple[int, ...] = (),
    cases: tuple[Case, ...] = CASES,
    others: Ways = DEFAULT_WAYS,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run the experiment on this machine and return its figures, ready for JSON.

    ``threads`` are the numbers to compare, by default powers of two up to the CPUs that this
    process may use. ``say`` is told what goes on. Raises ``NodeError`` (ENODEV) on a machine with
    fewer than two memory nodes, ``MemoryError`` when they are too full, and ``AssertionError``
    should a single byte be wrong afterwards. The way "plain move_pages × N" is N bare calls on N
    threads: what several threads can gain here at all, without any work around the calls. Where the
    kernel copies with several threads itself, on request (MPOL_MF_MOVE_MT) or by
    ``vm.mt_page_copy``, one plain call with each number of them is another way, and takes root.
    ``others`` are left out by request; the user engine is for base and huge pages, and
    ``migratepages`` for the series' own cases.
    """
    machine = topology()
    if len(machine.target_nodes) < 2:
        raise NodeError(
            errno.ENODEV,
            "the experiment needs two nodes with memory",
            "run it in a guest: pageferry bench series --lab always",
        )
    nodes = machine.target_nodes[:2]
    numbers = threads or _powers_of_two(len(machine.allowed_cpus))
    figures: dict[str, Any] = {
        "experiment": EXPERIMENT,
        "machine": machine_facts(),
        "nodes": list(nodes),
        "repeats": repeats,
        "unit": "one sample is there and back; GB/s are 10**9 bytes",
        "cases": [],
    }
    for case in cases:
        _check_room(case, nodes)
        with hugetlb_pool(nodes, case.pages) if case.hugetlb else nullcontext():
            figures["cases"].append(_case(case, nodes, numbers, repeats, others, say))
    return figures


def merge(by_kernel: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of several kernels' guests as one: those of the first, and the others'.

    Ways of the others have the kernel's name with theirs, and keep the baseline of their own guest.
    Cases that the first does not have follow its own.
    """
    (_, merged), *others = by_kernel.items()
    merged["kernels"] = {name: each["machine"] for name, each in by_kernel.items()}
    cases = {case["word"]: case for case in merged["cases"]}
    for kernel, figures in others:
        for more in figures["cases"]:
            ways = [{**way, "name": f"{kernel}: {way['name']}"} for way in more["ways"]]
            if more["word"] in cases:
                cases[more["word"]]["ways"] += ways
            else:
                cases[more["word"]] = {**more, "ways": ways}
    merged["cases"] = list(cases.values())
    return merged


def _powers_of_two(limit: int) -> tuple[int, ...]:
    numbers = [1]
    while numbers[-1] * 2 <= limit:
        numbers.append(numbers[-1] * 2)
    return tuple(numbers)


def _check_room(case: Case, nodes: tuple[int, ...]) -> None:
    size = case.pages * case.page_size
    machine = topology()
    for node in nodes:
        # The array, the process beside it, and some air.
        if machine.free(node) < 2 * size + (64 << 20):
            raise MemoryError(f"node {node} has too little free memory for {2 * size >> 20} MiB")


def _case(
    case: Case,
    nodes: tuple[int, ...],
    threads: tuple[int, ...],
    repeats: int,
    others: Ways,
    say: Callable[[str], None],
) -> dict[str, Any]:
    page_size, pages, word = case
    size = pages * page_size
    array = PageArray(pages, page_size, hugetlb=case.hugetlb)
    most = threads[-1]
    rival = others.migratepages and case.published and shutil.which(MIGRATEPAGES)
    with (
        Child(pages, page_size) if rival else nullcontext() as child,
        ThreadPoolExecutor(most) as crowd,
    ):
        ways: dict[str, Move] = {PLAIN: _plain(array.addresses)}
        if most > 1 and others.pageferry:
            ways[f"{PLAIN} × {most}"] = _side_by_side(array.addresses, crowd, most)
        ways |= _copied_by_the_kernel(array, threads)
        for count in threads if others.pageferry else ():
            ways[_name(count)] = _pageferry(array, count, "kernel")
        if others.user_engine and case.published and not why_not("checked"):
            ways[f"{_name(most)}, user engine"] = _pageferry(array, most, "user")
        rivals: dict[str, Move] = {}
        if child:
            rivals = {
                MIGRATEPAGES: _migratepages(child),
                f"{_name(most)}, that process": _pageferry_pid(child, most),
            }
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in {**ways, **rivals}}
        first, second = nodes[0], nodes[1]
        move(array.words, first)
        if child:
            move(child.addresses, first, pid=child.pid)
        names = list(samples)
        for repeat in range(-1, repeats):
            say(f"{pages} {word} pages: {'warm-up' if repeat < 0 else f'{repeat + 1}/{repeats}'}")
            for name in names:
                way = ways.get(name) or rivals[name]
                there = _timed(way, first, second)
                back = _timed(way, second, first)
                if repeat >= 0:
                    samples[name].append((there, back))
            names.append(names.pop(0))  # nobody always goes first
            if repeat < 0 and locate(array.words).on(first) != size:
                raise MemoryError(f"this kernel splits {word} pages when it migrates them")
        say(f"{pages} {word} pages: comparing every byte")
        array.check()
        if child:
            child.check()
    return {
        "page_size": page_size,
        "pages": pages,
        "word": word,
        "bytes": size,
        "ways": [
            _summary(name, size, samples, PLAIN if name in ways else MIGRATEPAGES)
            for name in samples
        ],
    }


def _name(threads: int) -> str:
    return f"pageferry, {threads} thread{'s' if threads > 1 else ''}"


def _copied_by_the_kernel(array: PageArray, threads: tuple[int, ...]) -> dict[str, Move]:
    """Return the ways in which one plain call is copied by several threads of the kernel's own."""
    if not _TUNABLE.exists():
        return {}
    asked = kernel_has_mt()
    how = "MPOL_MF_MOVE_MT" if asked else "vm.mt_page_copy 1"
    call = _plain(array.addresses, MPOL_MF_MOVE | (MPOL_MF_MOVE_MT if asked else 0))

    def way(count: int) -> Move:
        def tuned(source: int, target: int) -> None:
            _KERNEL_THREADS.write_text(str(count))
            _TUNABLE.write_text(str(int(not asked)))
            call(source, target)
            _TUNABLE.write_text("0")

        return tuned

    return {f"{PLAIN}, {how}, {count} threads": way(count) for count in threads if count > 1}


def _timed(way: Move, source: int, target: int) -> float:
    begun = time.perf_counter()
    way(source, target)
    return time.perf_counter() - begun


def _plain(addresses: _Addresses, flags: int = MPOL_MF_MOVE) -> Move:
    """One system call for all pages, its lists made beforehand: today's program."""
    status = np.empty(len(addresses), np.int32)
    targets: dict[int, np.ndarray[Any, np.dtype[np.int32]]] = {}

    def call(source: int, target: int) -> None:
        nodes = targets.setdefault(target, np.full(len(addresses), target, np.int32))
        result = lib.pf_sys_move_pages(
            0,
            len(addresses),
            ffi.from_buffer("uint64_t[]", addresses),
            ffi.from_buffer("int32_t[]", nodes),
            ffi.from_buffer("int32_t[]", status),
            flags,
        )
        if result < 0:
            raise PageferryError(-result, "move_pages failed")
        if result or (status != target).any():
            raise RuntimeError(f"move_pages left {result} pages behind")

    return call


def _side_by_side(addresses: _Addresses, crowd: ThreadPoolExecutor, threads: int) -> Move:
    """One system call for each thread, on its share of the pages: what there is to be had."""
    calls = [_plain(part) for part in np.array_split(addresses, threads)]

    def call(source: int, target: int) -> None:
        others = [crowd.submit(part, source, target) for part in calls[1:]]
        calls[0](source, target)
        for other in others:
            other.result()

    return call


def _pageferry(array: PageArray, threads: int, engine: str) -> Move:
    def call(source: int, target: int) -> None:
        result = move(array.words, target, threads=threads, engine=engine)
        if result.bytes_moved != array.bytes:
            raise RuntimeError(f"pageferry moved {result.bytes_moved} of {array.bytes}: {result}")

    return call


def _pageferry_pid(child: Child, threads: int) -> Move:
    """Move what migratepages moves: the whole process, from one node to the other."""

    def call(source: int, target: int) -> None:
        result = move(node=target, pid=child.pid, threads=threads)
        if result.bytes_moved < child.bytes:
            raise RuntimeError(f"pageferry moved {result.bytes_moved} of {child.bytes}: {result}")

    return call


def _migratepages(child: Child) -> Move:
    """Run numactl's tool as a user does, its start included. It exits with 0 whatever happens."""

    def call(source: int, target: int) -> None:
        subprocess.run([MIGRATEPAGES, str(child.pid), str(source), str(target)], check=True)

    return call


def _summary(
    name: str, size: int, samples: dict[str, list[tuple[float, float]]], baseline: str
) -> dict[str, Any]:
    """Return medians and spread of one way, and its ratios to the baseline of the same repeat."""
    both = [there + back for there, back in samples[name]]
    base = [there + back for there, back in samples[baseline]]
    ratios = [b / own for b, own in zip(base, both, strict=True)]
    middle = statistics.median(both)
    return {
        "name": name,
        "baseline": baseline,
        "milliseconds": middle / 2 * 1e3,
        "gbps": 2 * size / middle / 1e9,
        "gbps_low": 2 * size / max(both) / 1e9,
        "gbps_high": 2 * size / min(both) / 1e9,
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "samples": [{"there": there, "back": back} for there, back in samples[name]],
    }

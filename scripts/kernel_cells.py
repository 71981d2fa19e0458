# SPDX-License-Identifier: Apache-2.0
r"""Where the kernel copies by several threads, is it faster? By size of move, threads and load.

Usage: scripts/pin_guest.py .venv/bin/pageferry lab run --kernel patched --cpus 2 -- \
        .venv/bin/python scripts/kernel_cells.py [--repeats N] [--threads 2,4]

For each cell the same pages go there and back by move_pages(2), without MPOL_MF_MOVE_MT and with
it, in turns. Prints how many times faster it was with the flag (median, lowest, highest), and how
much of the pages the kernel then copied by several threads (pgmigrate_mt_success): the rest it left
to one. Loads are of ordinary priority: "half" runs for a millisecond and sleeps for one.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pageferry import syscalls
from pageferry.bench.memory import HUGE, PageArray, hugetlb_pool
from pageferry.bench.spinners import Spinners
from pageferry.flags import MPOL_MF_MOVE, MPOL_MF_MOVE_MT

BASE, FOLIO = 4 << 10, 64 << 10
# What is moved in one call: pages of a size.
CELLS = [
    *((BASE, count, False) for count in (16, 64, 128, 256, 512, 4096)),
    *((FOLIO, count, False) for count in (1, 4, 8, 32, 256)),
    *((HUGE, count, False) for count in (1, 2, 4, 16)),
    (HUGE, 4, True),
]
_SAMPLE_BYTES = 16 << 20  # moved in a sample, there and back, in as many calls as it takes
_THREADS = Path("/proc/sys/vm/mt_page_copy_threads")


@contextmanager
def load(name: str) -> Iterator[None]:
    """Run other work on each CPU but ours ("others", "half"), or on ours too ("all")."""
    cpus = os.sched_getaffinity(0)
    others = cpus - {min(cpus)}
    if name == "idle":
        yield
        return
    if name == "half":
        children = [_sleeper(cpu) for cpu in others]
        try:
            yield
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        return
    mine = {min(cpus)} if name == "all" else set()
    os.sched_setaffinity(0, others | mine)
    with Spinners(len(others | mine)):
        os.sched_setaffinity(0, cpus)
        yield


def _sleeper(cpu: int) -> int:
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        os.sched_setaffinity(0, {cpu})
        while os.getppid() == parent:
            end = time.perf_counter() + 0.001
            while time.perf_counter() < end:
                pass
            time.sleep(0.001)
    finally:
        os._exit(0)


def copied_by_several() -> int:
    """Return how many base pages the kernel has copied by several threads."""
    for line in Path("/proc/vmstat").read_text().splitlines():
        if line.startswith("pgmigrate_mt_success "):
            return int(line.split()[1])
    raise SystemExit("this kernel has no pgmigrate_mt_success: --kernel patched")


def cell(memory: PageArray, repeats: int) -> tuple[list[float], float]:
    """Return how many times faster the flag made it, and the share that several threads copied."""
    count = memory.bytes // memory.page_size
    nodes = [np.full(count, node, np.int32) for node in (0, 1)]
    calls = max(_SAMPLE_BYTES // memory.bytes // 2, 1)  # there and back, in a sample

    def move(flags: int) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            for node in (1, 0):
                done = syscalls.move_pages(0, memory.addresses, nodes[node], flags=flags)
                assert not done.not_moved
        return time.perf_counter() - begin

    move(MPOL_MF_MOVE)
    ratios, several = [], 0
    for _ in range(repeats):
        plain = move(MPOL_MF_MOVE)
        before = copied_by_several()
        flagged = move(MPOL_MF_MOVE | MPOL_MF_MOVE_MT)
        several += copied_by_several() - before
        ratios.append(plain / flagged)
    memory.check()
    return ratios, several / (repeats * calls * 2 * memory.bytes // BASE)


def main() -> int:
    """Print a line for each cell, and the lowest of those in which several threads copied."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--loads", default="idle,half,others,all")
    given = parser.parse_args()
    Path("/proc/sys/kernel/numa_balancing").write_text("0")
    before = _THREADS.read_text()
    shared = []
    print("page      pages  threads  load    times faster (lowest-highest)  by several")
    try:
        with hugetlb_pool((0, 1), max(count for _, count, hugetlb in CELLS if hugetlb)):
            for name in given.loads.split(","):
                for size, count, hugetlb in CELLS:
                    memory = PageArray(count, size, hugetlb=hugetlb)
                    memory.keep_from_children()
                    for threads in given.threads.split(","):
                        _THREADS.write_text(threads)
                        with load(name):
                            cpus = os.sched_getaffinity(0)
                            os.sched_setaffinity(0, {min(cpus)})
                            ratios, several = cell(memory, given.repeats)
                            os.sched_setaffinity(0, cpus)
                        median = statistics.median(ratios)
                        if several > 0.01:
                            shared.append(median)
                        kind = "hugetlb" if hugetlb else f"{size >> 10} KiB"
                        print(
                            f"{kind:8} {count:6} {threads:>8}  {name:6} {median:13.2f} "
                            f"({min(ratios):.2f}-{max(ratios):.2f}) {several:15.0%}",
                            flush=True,
                        )
    finally:
        _THREADS.write_text(before)
    print(f"lowest where several threads copied: {min(shared):.2f}, of {len(shared)} cells")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

# SPDX-License-Identifier: Apache-2.0
r"""Count the kernel's instructions for each page that move_pages(2) moves, there and back.

Usage: pageferry lab count [--kernel patched] [--split] -- \
        .venv/bin/python scripts/count_moves.py [MT]

Where time is instructions, this is exact to about 0.1 %; elsewhere it prints nanoseconds. MT: with
MPOL_MF_MOVE_MT, for a kernel that has it. Prints the median of the rounds, and all of them. With
--split the lab prints how long a round there and back is: span 4 for 4 KiB pages, 2048 for 2 MiB.
"""

import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from pageferry import syscalls
from pageferry.bench.memory import HUGE, PageArray
from pageferry.flags import MPOL_MF_MOVE, MPOL_MF_MOVE_MT
from pageferry.lab.marks import Marks

ROUNDS = 5
SIZES = {os.sysconf("SC_PAGE_SIZE"): 2048, HUGE: 8}


def main() -> int:
    """Print a line for each size of page."""
    flags = MPOL_MF_MOVE | (MPOL_MF_MOVE_MT if sys.argv[1:] == ["MT"] else 0)
    accel = os.environ.get("PAGEFERRY_LAB_ACCEL")
    if accel not in ("count", "split"):
        print("nanoseconds, not instructions: run this with pageferry lab count", file=sys.stderr)
    balancing = Path("/proc/sys/kernel/numa_balancing")
    if balancing.exists():
        balancing.write_text("0")
    os.sched_setaffinity(0, {0})
    marks = Marks()
    for size, count in SIZES.items():
        memory = PageArray(count, size)
        nodes = [np.full(count, node, np.int32) for node in (0, 1)]
        syscalls.move_pages(0, memory.addresses, nodes[0], flags=MPOL_MF_MOVE)
        found = []
        for _ in range(ROUNDS):
            begin = time.perf_counter_ns()
            with marks.span(size >> 10):
                for node in (1, 0):
                    syscalls.move_pages(0, memory.addresses, nodes[node], flags=flags)
            found.append((time.perf_counter_ns() - begin) / (2 * count))
        memory.check()
        if accel == "split":
            print(f"{size >> 10} KiB: {count} pages, there and back, is span {size >> 10}")
            continue
        rounds = " ".join(f"{each:.0f}" for each in found)
        print(f"{size >> 10} KiB: {statistics.median(found):.0f} for each page  ({rounds})")
    return 0


if __name__ == "__main__":
    sys.exit(main())

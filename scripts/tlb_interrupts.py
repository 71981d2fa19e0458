# SPDX-License-Identifier: Apache-2.0
r"""Count how often each engine interrupts other CPUs to have them flush their TLBs.

Usage: [taskset -c 0] pageferry lab run --memory 768M --cpus 2 -- \
        .venv/bin/python scripts/tlb_interrupts.py [MIB] [SECONDS]

Moves MIB (4) of base pages there and back, by one thread, alone and beside a thread that computes;
a move ends after SECONDS (60). With taskset the virtual CPUs share one CPU of the host.
"""

import hashlib
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pageferry
from pageferry.bench.memory import PageArray


def interrupts() -> int:
    """Return the TLB flushes and function calls that CPUs have asked each other for."""
    lines = (line.split() for line in Path("/proc/interrupts").read_text().splitlines())
    counts = (words[1:] for words in lines if words[0] in ("TLB:", "CAL:"))
    return sum(int(word) for words in counts for word in words if word.isdecimal())


@contextmanager
def computing() -> Iterator[None]:
    """Run a thread that needs no GIL for what it does."""
    stop = threading.Event()
    data = bytes(1 << 20)

    def compute() -> None:
        while not stop.is_set():
            hashlib.sha1(data)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def there_and_back(memory: PageArray, engine: str, seconds: float) -> str:
    """Move, and say what came of it."""
    before, begun, moved = interrupts(), time.perf_counter(), 0
    for node in (1, 0):
        result = pageferry.move(memory.words, node, engine=engine, threads=1, timeout=seconds)
        moved += result.bytes_moved
    took = time.perf_counter() - begun
    return f"{moved >> 10} KiB in {took:.2f} s, {interrupts() - before} interrupts"


def main() -> int:
    """Print a line for each engine, alone and beside other work."""
    mib, seconds = (int(value) for value in (sys.argv[1:] + ["4", "60"][len(sys.argv) - 1 :]))
    memory = PageArray(mib << 8, 4096)
    for engine in ("kernel", "user"):
        print(f"alone, {engine} engine: {there_and_back(memory, engine, seconds)}", flush=True)
    with computing():
        for engine in ("kernel", "user"):
            said = there_and_back(memory, engine, seconds)
            print(f"beside a thread that computes, {engine} engine: {said}", flush=True)
    memory.check()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

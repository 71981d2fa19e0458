# SPDX-License-Identifier: Apache-2.0
"""What the preload library brings to programs that know nothing of it, and what it costs them.

Each call is timed in one program without the library and one with it, in turn, there and back
summed; ratios are taken inside one repeat. ``migratepages`` is started anew each time, with and
without it, on the same process.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from ..errors import NodeError
from ..preload import LIBRARY, environment
from ..topology import node_free, topology
from .machine import machine_facts
from .memory import HUGE, Child

EXPERIMENT = "preload"
MIGRATEPAGES = "migratepages"
CALLS = ("move_pages", "mbind")
#: Bytes to move in each case: 100000 pages of 4 KiB, as in the series.
SIZE = 400 << 20
_BATCH = 2000  # passed-on calls timed together

# It calls what libc gives it, with and without a library in front. Lines in, milliseconds out.
_PROGRAM = """
import ctypes, os, sys, time
from pageferry.bench.memory import PageArray
number = {"x86_64": (279, 237), "aarch64": (239, 235)}[os.uname().machine]
syscall = ctypes.CDLL(None, use_errno=True).syscall
syscall.restype = ctypes.c_long
size, page = int(sys.argv[1]), int(sys.argv[2])
array = PageArray(size // page, page)
count = size // page
pages = (ctypes.c_ulong * count)(*array.addresses.tolist())
nodes = (ctypes.c_int * count)()
status = (ctypes.c_int * count)()
word = ctypes.c_ulong
def move_pages(node):
    nodes[:] = [node] * count
    begun = time.perf_counter()
    result = syscall(number[0], word(0), word(count), pages, nodes, status, word(2))
    took = time.perf_counter() - begun
    assert result == 0 and set(status) == {node}, (result, ctypes.get_errno())
    return took
def mbind(node):
    mask = word(1 << node)
    begun = time.perf_counter()
    result = syscall(number[1], word(array.address), word(size), word(2), ctypes.byref(mask),
                     word(65), word(2))
    took = time.perf_counter() - begun
    assert result == 0, ctypes.get_errno()
    return took
def passed(times):
    one = word(1)
    zero, none = word(0), ctypes.c_void_p()
    begun = time.perf_counter()
    for _ in range(times):
        syscall(number[0], zero, one, pages, none, status, zero)
    return (time.perf_counter() - begun) / times
print("ready", flush=True)
for line in sys.stdin:
    verb, argument = line.split()
    if verb == "check":
        array.check()
    took = globals()[verb](int(argument)) if verb != "check" else 0
    print(took * 1e3, flush=True)
"""


class Program:
    """A process with an array, told over a pipe what to call. A context manager."""

    def __init__(self, size: int, page_size: int, added: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(size), str(page_size)],
            env={**os.environ, **added},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def tell(self, verb: str, argument: int = 0) -> float:
        """Have it call, and return the milliseconds that it took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb} {argument}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise MemoryError(f"the program to measure ended with {self._process.wait()}")
        return line

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def run_preload(
    *,
    size: int = SIZE,
    repeats: int = 7,
    threads: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run the experiment here and return its figures, ready for JSON.

    ``size`` is what is moved in each case, in bytes. Raises ``NodeError`` (ENODEV) with fewer than
    two memory nodes, ``MemoryError`` when they are too full, ``AssertionError`` for wrong bytes.
    """
    nodes = topology().target_nodes[:2]
    if len(nodes) < 2:
        raise NodeError(
            errno.ENODEV,
            "the experiment needs two nodes with memory",
            "run it in a guest: pageferry bench preload --lab always",
        )
    size -= size % HUGE
    for node in nodes:
        if node_free(node) < 2 * size + (64 << 20):
            raise MemoryError(f"node {node} has too little free memory for {2 * size >> 20} MiB")
    added = environment("always", threads=threads, base=os.environ)
    cases: list[dict[str, Any]] = []
    for page_size in (4096, HUGE):
        cases += _calls(size, page_size, nodes, added, repeats, say)
        if shutil.which(MIGRATEPAGES):
            say(f"{MIGRATEPAGES}, {page_size >> 10} KiB pages")
            cases.append(_migratepages(size, page_size, nodes, added, repeats))
    return {
        "experiment": EXPERIMENT,
        "machine": machine_facts(),
        "nodes": list(nodes),
        "threads": int(added["PAGEFERRY_THREADS"]),
        "repeats": repeats,
        "unit": "milliseconds for there and back, as the program itself measures them",
        "cases": cases,
        "idle": idle(added),
    } | _passed_on(added, repeats)


def _calls(
    size: int,
    page_size: int,
    nodes: tuple[int, ...],
    added: Mapping[str, str],
    repeats: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    cases = []
    with Program(size, page_size, {}) as plain, Program(size, page_size, added) as loaded:
        for verb in CALLS:
            say(f"{verb}, {page_size >> 10} KiB pages")
            for program in (plain, loaded):  # a guest's memory is slow where it is new to the host
                program.tell(verb, nodes[1])
                program.tell(verb, nodes[0])
            times: tuple[list[float], list[float]] = ([], [])
            for repeat in range(repeats):
                both = list(enumerate((plain, loaded)))
                for which, program in both if repeat % 2 else reversed(both):
                    took = program.tell(verb, nodes[1]) + program.tell(verb, nodes[0])
                    times[which].append(took)
            cases.append(_case(verb, size, page_size, *times))
        for program in (plain, loaded):
            program.tell("check")
    return cases


def _migratepages(
    size: int, page_size: int, nodes: tuple[int, ...], added: Mapping[str, str], repeats: int
) -> dict[str, Any]:
    times: tuple[list[float], list[float]] = ([], [])
    ways: tuple[Mapping[str, str], ...] = ({}, added)
    with Child(size // page_size, page_size) as child:

        def migrate(variables: Mapping[str, str], old: int, new: int) -> float:
            command = [MIGRATEPAGES, str(child.pid), str(old), str(new)]
            begun = time.perf_counter()
            subprocess.run(command, env={**os.environ, **variables}, check=True)
            return (time.perf_counter() - begun) * 1e3

        migrate({}, nodes[1], nodes[0])
        for variables in ways:  # warm up
            migrate(variables, *nodes)
            migrate(variables, nodes[1], nodes[0])
        for repeat in range(repeats):
            both = list(enumerate(ways))
            for which, variables in both if repeat % 2 else reversed(both):
                took = migrate(variables, *nodes) + migrate(variables, nodes[1], nodes[0])
                times[which].append(took)
        child.check()
    return _case(MIGRATEPAGES, size, page_size, *times)


def _case(
    name: str, size: int, page_size: int, plain: list[float], loaded: list[float]
) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(plain, loaded, strict=True)]
    return {
        "name": name,
        "bytes": size,
        "page_size": page_size,
        "plain_ms": statistics.median(plain),
        "preload_ms": statistics.median(loaded),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "plain_samples": plain,
        "preload_samples": loaded,
    }


def _passed_on(added: Mapping[str, str], repeats: int) -> dict[str, float]:
    """Microseconds that a call takes which the library hands on: where one page is."""
    times: tuple[list[float], list[float]] = ([], [])
    with Program(HUGE, 4096, {}) as plain, Program(HUGE, 4096, added) as loaded:
        for _ in range(max(repeats, 15)):
            for which, program in enumerate((plain, loaded)):
                times[which].append(program.tell("passed", _BATCH) * 1e3)
    overhead = statistics.median(b - a for a, b in zip(*times, strict=True))
    return {
        "passed_plain_us": statistics.median(times[0]),
        "passed_preload_us": statistics.median(times[1]),
        "passed_overhead_us": overhead,
    }


def idle(added: Mapping[str, str]) -> dict[str, int]:
    """Return threads, and resident bytes of the library, of a program that moves nothing."""
    done = subprocess.run(
        ["cat", "/proc/self/status", "/proc/self/smaps"],
        env={**os.environ, **added},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    threads = re.search(r"^Threads:\s*(\d+)$", done.stdout, re.M)
    resident = 0
    ours = False
    for line in done.stdout.splitlines():
        words = line.split()
        if re.match("[0-9a-f]+-[0-9a-f]+$", words[0]):
            ours = line.endswith(LIBRARY)
        elif ours and words[0] == "Rss:":
            resident += int(words[1]) * 1024
    return {"threads": int(threads[1]) if threads else 0, "bytes": resident}

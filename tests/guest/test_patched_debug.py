# SPDX-License-Identifier: Apache-2.0
"""The patched kernel with its own checks on: copies that fail, and all kinds of load at once.

Run by: pageferry lab run --topology hot-plug --memory 640M --cpus 4 --kernel patched-debug
"""

from __future__ import annotations

import mmap
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from placement import HUGE, Memory
from test_patched import MT, SIZE, VM, move_pages

from pageferry.procfs import migration_counters

INJECT = Path("/sys/kernel/debug/fail_function")
STRESS_SECONDS = float(os.environ.get("PAGEFERRY_STRESS_SECONDS", "40"))
COMPLAINT = re.compile(
    r"WARNING|BUG|INFO: |possible |Call Trace|hogged CPU|stuck|sleeping function"
)
NOT_OURS = re.compile(r"topology_sane|report a bug|possible CPU|if possible")


def complaints() -> list[str]:
    """What the kernel has to say about itself; its checks print to the log."""
    lines = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout.split("\n")
    return [line for line in lines if COMPLAINT.search(line) and not NOT_OURS.search(line)]


@pytest.fixture
def nothing_to_complain() -> Iterator[None]:
    assert complaints() == []
    yield
    (VM / "mt_page_copy").write_text("0")
    assert complaints() == []


def _until(stop: threading.Event, what: Callable[[int], None]) -> threading.Thread:
    def loop() -> None:
        turn = 0
        while not stop.is_set():
            what(turn)
            turn += 1

    thread = threading.Thread(target=loop)
    thread.start()
    return thread


def test_everything_at_once(nothing_to_complain: None, pools: tuple[Path, Path]) -> None:
    """Moves of three kinds of memory beside fork, compaction, THP splits and CPUs that go."""
    for pool in pools:
        pool.write_text(str(SIZE // HUGE))
    (VM / "mt_page_copy").write_text("1")
    memories = [Memory(kind, SIZE, node=0) for kind in ("base", "thp", "hugetlb")]
    splitting = mmap.mmap(-1, 16 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    cpus = [Path(f"/sys/devices/system/cpu/cpu{n}/online") for n in (2, 3)]
    moved = migration_counters()["pgmigrate_success"]

    def moving(memory: Memory) -> Callable[[int], None]:
        def once(turn: int) -> None:
            assert move_pages(memory, 1 - turn % 2, MT) >= -12  # ENOMEM while all are moving

        return once

    def fork(turn: int) -> None:
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)

    def compact(turn: int) -> None:
        (VM / "compact_memory").write_text("1")

    def split(turn: int) -> None:
        splitting.madvise(mmap.MADV_HUGEPAGE)
        for start in range(0, len(splitting), HUGE):
            splitting[start : start + HUGE : 4096] = b"x" * (HUGE // 4096)
            splitting.madvise(mmap.MADV_DONTNEED, start + HUGE // 2, 4096)

    def unplug(turn: int) -> None:
        cpus[turn // 2 % 2].write_text(str(turn % 2))

    stop = threading.Event()
    works = [*map(moving, memories), fork, compact, split, unplug]
    threads = [_until(stop, work) for work in works]
    try:
        end = time.monotonic() + STRESS_SECONDS
        while time.monotonic() < end and all(thread.is_alive() for thread in threads):
            stop.wait(1)
    finally:
        died = [thread for thread in threads if not thread.is_alive()]
        stop.set()
        for thread in threads:
            thread.join()
        for cpu in cpus:
            cpu.write_text("1")
    assert not died
    for memory in memories:
        memory.check()
    assert migration_counters()["pgmigrate_success"] > moved


@pytest.fixture
def failing_copies() -> Iterator[Callable[[int], None]]:
    """Make so many percent of the page copies by several threads fail, as poison would."""

    def fail(percent: int) -> None:
        (INJECT / "probability").write_text(str(percent))

    (INJECT / "inject").write_text("copy_one_page")
    retval = INJECT / "copy_one_page/retval"
    retval.write_text(hex(2**64 - 133))  # EHWPOISON
    (INJECT / "interval").write_text("1")
    (INJECT / "verbose").write_text("0")
    (INJECT / "times").write_text("-1")
    (INJECT / "probability").write_text("0")
    yield fail
    (INJECT / "probability").write_text("0")
    (INJECT / "inject").write_text("\n")


@pytest.mark.parametrize("percent", [1, 100])
@pytest.mark.parametrize("kind", ["base", "thp", "hugetlb"])
def test_a_copy_that_fails_fails_its_folio_only(
    kind: str,
    percent: int,
    nothing_to_complain: None,
    failing_copies: Callable[[int], None],
    pools: tuple[Path, Path],
) -> None:
    if kind == "hugetlb":
        for pool in pools:
            pool.write_text(str(SIZE // HUGE))
    memory = Memory(kind, SIZE, node=0)
    failing_copies(percent)
    for turn in range(6):
        assert move_pages(memory, 1 - turn % 2, MT) >= 0
        memory.check()
    failing_copies(0)
    for node in (1, 0):
        for _ in range(20):
            if move_pages(memory, node, MT) == 0:
                break
        assert memory.nodes() == {node: SIZE}
        memory.check()

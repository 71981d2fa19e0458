# SPDX-License-Identifier: Apache-2.0
"""Loads for a kernel that migrates: what a process repeats, and how it checks its memory.

Each is called in that process, makes what it needs, and returns what to repeat; what it finds wrong
it raises. ``together`` runs them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import numpy as np
from placement import HUGE, PAGE, Memory, nodes_of
from together import Counts, Load, Turn

from pageferry.flags import MPOL_MF_MOVE, MPOL_MF_MOVE_ALL, MPOL_MF_MOVE_MT

SIZE = 4 << 20
MT = MPOL_MF_MOVE | MPOL_MF_MOVE_MT
VM = Path("/proc/sys/vm")
POOL = "/sys/devices/system/node/node{}/hugepages/hugepages-2048kB/nr_hugepages"
PLUGGED = 2  # the node of the lab's machine "hot-plug" whose memory can be taken offline
INJECT = Path("/sys/kernel/debug/fail_function")
_MOST_FAILURES = 1 << 30
_SPLIT = Path("/sys/kernel/debug/split_huge_pages")
_MADV_COLLAPSE = 25
_MBIND, _MOVE_PAGES = 237, 279  # x86-64
_ENOMEM = 12
_libc = ctypes.CDLL(None, use_errno=True)


def move_pages(memory: Memory, node: int, flags: int = MT) -> int:
    """Move all pages in one call: 0, pages not moved, or -errno."""
    addresses = np.arange(memory.address, memory.address + memory.bytes, memory.unit, np.uint64)
    wanted = np.full(len(addresses), node, np.int32)
    status = np.full(len(addresses), -1, np.int32)
    pages, nodes, answer = (ctypes.c_void_p(a.ctypes.data) for a in (addresses, wanted, status))
    count = ctypes.c_ulong(len(addresses))
    done = int(_libc.syscall(_MOVE_PAGES, 0, count, pages, nodes, answer, flags))
    return -ctypes.get_errno() if done < 0 else done


def mbind(memory: Memory, node: int, flags: int = MT) -> int:
    """Bind memory to a node and move it: 0 or -errno."""
    mask = ctypes.c_ulong(1 << node)
    where = ctypes.c_void_p(memory.address), ctypes.c_ulong(memory.bytes)
    done = int(_libc.syscall(_MBIND, *where, 2, ctypes.byref(mask), 64, flags))  # MPOL_BIND
    return -ctypes.get_errno() if done < 0 else done


def moving(kind: str) -> Load:
    """Move memory there and back, and compare every word after each time."""

    def load(counts: Counts) -> Turn:
        memory = Memory(kind, SIZE, node=0)

        def turn(number: int) -> None:
            assert move_pages(memory, 1 - number % 2) >= -_ENOMEM
            memory.check()

        return turn

    return load


def binding(counts: Counts) -> Turn:
    """Move memory with its policy."""
    memory = Memory("thp", SIZE, node=1)

    def turn(number: int) -> None:
        mbind(memory, 1 - number % 2)  # EIO where a page does not move, as a policy asks
        memory.check()

    return turn


def writing(kind: str) -> Load:
    """Add to words while they are moved: none may be lost."""

    def load(counts: Counts) -> Turn:
        memory = Memory(kind, SIZE, node=1)
        memory.words[:] = 0

        def turn(number: int) -> None:
            before = int(memory.words[0])
            rounds = 0
            done = threading.Event()

            def add() -> None:
                nonlocal rounds
                while not done.is_set():
                    np.add(memory.words, 1, out=memory.words)
                    rounds += 1

            writer = threading.Thread(target=add)
            writer.start()
            for node in (1, 0):
                move_pages(memory, node)
            done.set()
            writer.join()
            assert (memory.words == before + rounds).all(), "an increment was lost"

        return turn

    return load


def forking(counts: Counts) -> Turn:
    """Fork: the child's memory stays what it was while the parent's is moved and written to."""
    memories = [Memory(kind, SIZE // 2, node=1) for kind in ("base", "thp")]

    def turn(number: int) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                for memory in memories:
                    memory.check()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        for memory in memories:
            move_pages(memory, 1 - number % 2, MPOL_MF_MOVE_ALL | MPOL_MF_MOVE_MT)
            kept = memory.words[:: PAGE // 8].copy()
            memory.words[:: PAGE // 8] = number
            memory.words[:: PAGE // 8] = kept
        assert os.waitpid(pid, 0)[1] == 0, "the child found its memory damaged"
        for memory in memories:
            memory.check()

    return turn


def splitting(counts: Counts) -> Turn:
    """Split huge pages, in the mapping and as such, move what is left, and collapse it again."""
    memory = Memory("thp", SIZE, node=0)
    first, last = memory.address, memory.address + memory.bytes

    def turn(number: int) -> None:
        hole = memory.words[HUGE // 16 : HUGE // 16 + PAGE // 8]
        kept = hole.copy()
        _libc.madvise(ctypes.c_void_p(hole.ctypes.data), PAGE, mmap.MADV_DONTNEED)
        assert not hole.any()
        hole[:] = kept
        if number % 2:
            with suppress(OSError):
                _SPLIT.write_text(f"{os.getpid()},{first:#x},{last:#x}")
        memory.unit = PAGE
        move_pages(memory, 1 - number // 2 % 2)
        memory.check()
        _libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(memory.bytes), _MADV_COLLAPSE)
        memory.unit = HUGE
        move_pages(memory, number // 2 % 2)
        memory.check()

    return turn


def filing(counts: Counts) -> Turn:
    """Write and read files of an ext4 file system, in memory, while the kernel compacts that.

    Not the node whose memory is taken offline: Linux compacts without the lock of that, and may
    look at pages that have no descriptors any more.
    """
    image, place = "/dev/shm/ext4.img", "/run/ext4"
    with open(image, "wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    Path(place).mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)

    def turn(number: int) -> None:
        random = np.random.default_rng(number)
        texts = {f"{place}/{n}": random.bytes(1 << int(random.integers(9, 18))) for n in range(8)}
        for name, text in texts.items():
            with open(name, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for node in (0, 1):
            Path(f"/sys/devices/system/node/node{node}/compact").write_text("1")
        if number % 4 == 0:
            (VM / "drop_caches").write_text("1")
        for name, text in texts.items():
            with open(name, "rb") as file:
                assert file.read() == text, f"{name} is damaged"

    return turn


def pooling(counts: Counts) -> Turn:
    """Change how many hugetlb pages there are: the kernel compacts directly to find them."""
    most = int(Path(POOL.format(0)).read_text())

    def turn(number: int) -> None:
        for node in (0, 1):
            Path(POOL.format(node)).write_text(str(most + 4 * ((number + node) % 2)))

    return turn


def unplugging_cpus(counts: Counts) -> Turn:
    """Take CPUs away and give them back."""
    cpus = [Path(f"/sys/devices/system/cpu/cpu{n}/online") for n in (2, 3)]

    def turn(number: int) -> None:
        cpu = cpus[number % 2]
        cpu.write_text("0")
        time.sleep(0.1)
        cpu.write_text("1")
        time.sleep(0.1)

    return turn


def unplugging_memory(counts: Counts) -> Turn:
    """Take all memory of a node offline while it is used, and bring it back."""
    blocks = sorted(Path(f"/sys/devices/system/node/node{PLUGGED}").glob("memory[0-9]*/state"))
    assert blocks
    memories = [Memory(kind, SIZE, node=PLUGGED) for kind in ("base", "thp")]

    def turn(number: int) -> None:
        if all(_take_offline(block) for block in blocks):
            counts.add("nodes gone")
            for memory in memories:
                assert PLUGGED not in nodes_of(memory.address, memory.bytes)
        for memory in memories:
            memory.check()
        for block in blocks:
            if block.read_text() == "offline\n":
                block.write_text("online_movable")
        for memory in memories:
            move_pages(memory, PLUGGED)
            memory.check()

    return turn


def _take_offline(block: Path) -> bool:
    """Take a block of memory offline, and say whether all of it could be moved away."""
    for _ in range(2):
        try:
            with _not_for_ever(30):
                block.write_text("offline")
        except OSError:  # a page was in use, or too long in use
            continue
        return True
    return False


@contextmanager
def _not_for_ever(seconds: int) -> Iterator[None]:
    """Let a signal end what waits: taking memory offline tries again until it has all."""

    def late(number: int, frame: FrameType | None) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def failing_copies() -> Iterator[Callable[[int], None]]:
    """Let so many percent of the page copies by several threads fail, as poison would.

    The probe is set here, before any load: an emulator is not to be trusted with code that
    changes while it runs (docs/kernel.md). Then only the percentage changes.
    """

    def fail(percent: int) -> None:
        (INJECT / "probability").write_text(str(percent))

    (INJECT / "inject").write_text("copy_one_page")
    (INJECT / "copy_one_page/retval").write_text(hex(2**64 - 133))  # EHWPOISON
    (INJECT / "interval").write_text("1")
    (INJECT / "verbose").write_text("0")
    (INJECT / "times").write_text(str(_MOST_FAILURES))
    fail(0)
    try:
        yield fail
    finally:
        fail(0)
        (INJECT / "inject").write_text("\n")


def failures() -> int:
    """How many copies have failed since ``failing_copies`` was entered."""
    return _MOST_FAILURES - int((INJECT / "times").read_text())


def failing(fail: Callable[[int], None]) -> Load:
    """Let copies fail for a moment, now and then."""

    def load(counts: Counts) -> Turn:
        def turn(number: int) -> None:
            fail((1, 20)[number % 2])
            time.sleep(0.2)
            fail(0)
            time.sleep(0.8)

        return turn

    return load


def tuning(counts: Counts) -> Turn:
    """Change the tunables, mostly with all migrations copied by several threads.

    NUMA balancing is on all the time instead: to turn it on or off changes code, as in
    ``failing_copies``.
    """

    def turn(number: int) -> None:
        (VM / "mt_page_copy").write_text(str(int(number % 8 != 0)))
        (VM / "mt_page_copy_threads").write_text(str((4, 2, 8, 1)[number // 4 % 4]))
        time.sleep(0.5)

    return turn

# SPDX-License-Identifier: Apache-2.0
"""The user engine between two nodes: where pages are afterwards, what is left to the kernel engine.

Run by: pageferry lab run --topology two-node --memory 896M --cpus 2
"""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from placement import HUGE, PAGE, Forked, Memory, Pinned, become_nobody, in_a_child

from pageferry import MoveResult, move, populate, user_engine
from pageferry.engine_trial import RATES, TRIAL_BYTES, WORTH_BYTES

SIZE = 8 << 20
ROOT = Path(__file__).parents[2]
WAYS = ("checked", "hold", "protect")


def by_user(memory: Memory, node: int, **options: object) -> MoveResult:
    return move(memory.words, node, engine="user", **options)  # type: ignore[arg-type]


def moved_by(result: MoveResult) -> dict[str, int]:
    return {part.engine: part.bytes for part in result.parts if part.engine != "left"}


def test_checked_hold_is_what_this_kernel_has() -> None:
    assert all(user_engine.why_not(way) is None for way in WAYS)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["base", "thp"])
def test_there_and_back(kind: str, way: str) -> None:
    memory = Memory(kind, SIZE, node=0)
    assert memory.nodes() == {0: SIZE}
    for node in (1, 0, 1):
        result = by_user(memory, node, way=way, threads=2, exact=True)
        assert result.complete and result.bytes_moved == SIZE and not result.bytes_already
        assert moved_by(result) == {"user": SIZE}
        assert result.pages_moved[memory.report_kind] == SIZE // memory.unit
        assert memory.nodes() == {node: SIZE}
        assert result.verified == {node: sum(result.verified.values())}
        assert result.stalls is not None and result.stalls.pieces > 0
        memory.check()
    again = by_user(memory, 1, way=way, exact=True)
    assert again.bytes_already == SIZE and not again.bytes_moved and again.stalls is None


def test_only_pages_that_are_elsewhere_move() -> None:
    memory = Memory("base", SIZE, node=0)
    half = memory.words[: len(memory.words) // 2]
    assert move(half, 1, engine="user").bytes_moved == SIZE // 2
    result = by_user(memory, 1, exact=True)
    assert (result.bytes_moved, result.bytes_already) == (SIZE // 2, SIZE // 2)
    assert memory.nodes() == {1: SIZE}
    memory.check()


def test_huge_pages_become_base_pages() -> None:
    memory = Memory("thp", SIZE, node=0)
    result = move(memory.words, 1, page_size="4K")
    assert result.complete and result.pages_moved["base"] == SIZE // PAGE
    memory.unit = PAGE
    assert memory.nodes() == {1: SIZE}
    memory.check()


def test_base_pages_become_huge_pages_of_the_target() -> None:
    memory = Memory("base", SIZE, node=0)
    start = ctypes.c_void_p(memory.addresses_range.start)
    assert not ctypes.CDLL(None).madvise(start, ctypes.c_size_t(SIZE), mmap.MADV_HUGEPAGE)
    result = move(memory.words, 1, page_size="2M")
    assert result.complete and result.bytes_moved == SIZE
    kept = sum(part.bytes for part in result.parts if part.engine == "kept")
    assert result.bytes_collapsed + kept == SIZE and result.bytes_collapsed >= SIZE - 2 * HUGE
    assert memory.nodes() == {1: SIZE}
    memory.check()


@pytest.mark.parametrize("kind", ["hugetlb", "shm", "file"])
def test_other_memory_goes_by_the_kernel_engine(kind: str, pools: tuple[Path, Path]) -> None:
    if kind == "hugetlb":
        for pool in pools:
            pool.write_text(str(SIZE // HUGE))
    memory = Memory(kind, SIZE, node=0)
    result = by_user(memory, 1)
    assert result.complete and result.bytes_moved == SIZE
    assert moved_by(result) == {"kernel": SIZE}
    assert [part.bytes for part in result.parts if part.engine == "left"] == [SIZE]
    assert memory.nodes() == {1: SIZE}
    memory.check()


def test_pinned_pages_stay_and_are_named() -> None:
    memory = Memory("base", SIZE, node=0)
    pinned = Pinned([memory.address + 9 * PAGE])
    try:
        result = by_user(memory, 1, way="checked")
        # Taken by reference only (vmsplice), so the one engine or the other may have moved it.
        assert result.bytes_moved + result.bytes_failed == SIZE
    finally:
        pinned.release()
    memory.check()
    assert by_user(memory, 1).complete and memory.nodes() == {1: SIZE}


def test_memory_shared_by_a_fork_goes_by_the_kernel_engine_if_at_all() -> None:
    memory = Memory("base", SIZE, node=0)
    with Forked(lambda child: child.hear()) as child:
        result = by_user(memory, 1)
        assert result.bytes_moved + result.bytes_failed == SIZE
        assert set(result.failed) == {errno.EACCES}
        assert any("shared by a fork" in part.reason for part in result.parts)
        memory.check()
        child.say("enough")
    memory.words[:: PAGE // 8] += np.uint64(0)  # the pages are this process's own again
    assert by_user(memory, 1).complete and memory.nodes() == {1: SIZE}
    memory.check()


def test_locked_memory_goes_by_the_kernel_engine() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    memory = Memory("base", SIZE, node=0)
    start, end = memory.addresses_range.start, memory.addresses_range.stop
    assert not libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(end - start))
    for node, way in ((1, "checked"), (0, "hold"), (1, "protect")):
        result = by_user(memory, node, way=way)
        assert result.complete and moved_by(result) == {"kernel": SIZE}
        assert memory.nodes() == {node: SIZE}
        memory.check()


@pytest.mark.parametrize("kind", ["base", "thp"])
def test_a_full_node_leaves_the_memory_whole(kind: str, pools: tuple[Path, Path]) -> None:
    gc.collect()
    # Not to the last page, and with pages that nobody has to be killed for.
    pools[1].write_text(str((populate.room(1) - (96 << 20)) // HUGE))
    size = populate.room(1) + (64 << 20)  # what others may give back meanwhile
    size += -size % HUGE
    memory = Memory(kind, size, node=0)
    result = by_user(memory, 1)
    there = memory.nodes()
    assert sum(there.values()) == size and there.get(0, 0) > 0
    assert result.bytes_moved <= there.get(1, 0) + result.bytes_already
    assert result.bytes_moved + result.bytes_failed + result.bytes_skipped == size
    memory.check()


def test_a_writer_that_holds_the_interpreter() -> None:
    memory = Memory("base", SIZE, node=0)
    words = memory.words.copy()
    stop = threading.Event()
    rounds = 0

    def write() -> None:
        nonlocal rounds
        while not stop.is_set():
            memory.words[::8] += np.uint64(1)
            rounds += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for node in (1, 0) * 6:
            by_user(memory, node)
        while rounds == 0 and writer.is_alive():
            time.sleep(0.01)  # it waits for a CPU
    finally:
        stop.set()
        writer.join(120)
    assert not writer.is_alive() and rounds > 0
    words[::8] += np.uint64(rounds)
    assert np.array_equal(memory.words, words)


def test_auto_measures_and_takes_the_faster() -> None:
    memory = Memory("base", WORTH_BYTES, node=0)
    result = move(memory.words, 1)
    assert result.complete and result.bytes_moved == memory.bytes
    assert moved_by(result).keys() == {"user", "kernel"}
    rates = {name: RATES.get(12, "checked", name) for name in ("user", "kernel")}
    assert None not in rates.values()
    faster = max(rates, key=lambda name: rates[name] or 0.0)
    # A user engine that is far slower moves less than the trial would take.
    assert moved_by(result)["user"] <= TRIAL_BYTES or faster == "user"
    assert moved_by(result)["kernel"] == TRIAL_BYTES or faster == "kernel"
    assert memory.nodes() == {1: memory.bytes}
    memory.check()
    back = move(memory.words, 0)
    assert moved_by(back) == {faster: memory.bytes}


def test_without_the_right_to_wait_for_kernel_faults() -> None:
    def body() -> None:
        become_nobody()
        memory = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory[0] = 1
        user_engine._offered.cache_clear()
        with pytest.raises(PermissionError, match="userfaultfd"):
            move(memory, 1, engine="user")
        assert move(memory, 1).complete

    assert in_a_child(body) == "None"


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("user_engine", []),
        ("user_interference", ["2"]),
        ("user_pins", []),
        ("user_stress", ["2000000"]),
    ],
)
def test_c_program(program: str, arguments: list[str]) -> None:
    path = ROOT / f"build-tests-gcc/tests/c/test-{program}"
    if not path.exists():
        pytest.skip("tests/host/test_c_programs.py has not built it")
    done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok" in done.stdout and "2 nodes" in done.stdout

# SPDX-License-Identifier: Apache-2.0
"""The patched kernel: MPOL_MF_MOVE_MT, vm.mt_page_copy, its counters and its own selftests.

Run by: pageferry lab run --memory 768M --cpus 4 --kernel patched
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from placement import HUGE, PAGE, Memory

from pageferry import MigrateMode, locate, move
from pageferry.flags import MPOL_MF_MOVE, MPOL_MF_MOVE_ALL, MPOL_MF_MOVE_MT
from pageferry.procfs import migration_counters

ROOT = Path(__file__).parents[2]
SELFTEST = ROOT / "build-tests-kernel/migration"
VM = Path("/proc/sys/vm")
EVENT = Path("/sys/kernel/tracing/events/migrate/mm_migrate_copy_pages")
THP = Path("/sys/kernel/mm/transparent_hugepage")
SIZE = 16 << 20
MT = MPOL_MF_MOVE | MPOL_MF_MOVE_MT
KSELFTESTS = [
    *("flags", "private_anon", "shared_anon", "private_anon_thp", "private_anon_htlb"),
    *("mbind", "tunable", "written_meanwhile"),
]
_MBIND, _MOVE_PAGES = 237, 279  # x86-64
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(autouse=True)
def _as_it_was(pools: tuple[Path, Path]) -> Iterator[None]:
    for pool in pools:
        pool.write_text(str(SIZE // HUGE))
    yield
    (VM / "mt_page_copy").write_text("0")
    (VM / "mt_page_copy_threads").write_text("4")


def move_pages(memory: Memory | None, node: int, flags: int) -> int:
    """Move all pages in one call of our own: 0, pages not moved, or -errno."""
    if memory is None:
        pages = nodes = status = None
        count = 0
    else:
        addresses = np.arange(memory.address, memory.address + memory.bytes, memory.unit, np.uint64)
        count = len(addresses)
        wanted = np.full(count, node, np.int32)
        answer = np.full(count, -1, np.int32)
        pages, nodes, status = (
            ctypes.c_void_p(array.ctypes.data) for array in (addresses, wanted, answer)
        )
    result = int(_libc.syscall(_MOVE_PAGES, 0, ctypes.c_ulong(count), pages, nodes, status, flags))
    return -ctypes.get_errno() if result < 0 else result


def mbind(memory: Memory, node: int, flags: int) -> int:
    mask = ctypes.c_ulong(1 << node)
    arguments = (ctypes.c_void_p(memory.address), ctypes.c_ulong(memory.bytes), 2)  # MPOL_BIND
    result = int(_libc.syscall(_MBIND, *arguments, ctypes.byref(mask), 64, flags))
    return -ctypes.get_errno() if result < 0 else result


def allowed_to_help() -> int:
    """Base pages so far that several threads were allowed to copy, whoever did."""
    counters = migration_counters()
    return counters["pgmigrate_mt_success"] + counters["pgmigrate_mt_fallback"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (MPOL_MF_MOVE, 0),
        (MT, 0),
        (MPOL_MF_MOVE_ALL | MPOL_MF_MOVE_MT, 0),
        (MPOL_MF_MOVE_MT, -errno.EINVAL),
        (MT | 1, -errno.EINVAL),
        *((MT | 1 << bit, -errno.EINVAL) for bit in (3, 4, 5, 6, 8, 30)),
    ],
)
def test_flags_of_move_pages(flags: int, expected: int) -> None:
    assert move_pages(None, 0, flags) == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (MT, 0),
        (MT | 1, 0),
        (MPOL_MF_MOVE_MT, -errno.EINVAL),
        (MPOL_MF_MOVE_MT | 1, -errno.EINVAL),
        *((MT | 1 << bit, -errno.EINVAL) for bit in (3, 4, 5, 6, 8, 30)),
    ],
)
def test_flags_of_mbind(flags: int, expected: int) -> None:
    memory = Memory("base", 1 << 20, node=0)
    assert mbind(memory, 1, flags) == expected
    assert locate(memory.words).on(0 if expected else 1) == 1 << 20
    memory.check()


@pytest.mark.parametrize("kind", Memory.KINDS)
def test_there_and_back(kind: str) -> None:
    memory = Memory(kind, SIZE, node=0)
    for node in (1, 0, 1, 0):
        before = allowed_to_help()
        while (code := move_pages(memory, node, MT)) > 0:
            pass  # busy pages, for a moment
        assert code == 0
        assert memory.nodes() == {node: SIZE}
        memory.check()
        assert allowed_to_help() - before >= SIZE // PAGE


def test_folios_stay_whole() -> None:
    """Linux 6.12.117 splits those that base page tables map when they migrate a second time."""
    memory = Memory("64K", SIZE, node=0)
    for node in (1, 0, 1, 0):
        before = migration_counters()
        while (code := move_pages(memory, node, MT)) > 0:
            pass
        after = migration_counters()
        assert code == 0 and memory.nodes() == {node: SIZE}
        assert after["pgmigrate_success"] - before["pgmigrate_success"] == SIZE // PAGE
        memory.check()


def test_a_folio_that_is_partially_mapped_is_still_split() -> None:
    memory = Memory("64K", SIZE, node=0)
    hole = memory.words[PAGE // 8 : 2 * PAGE // 8]
    _libc.madvise(ctypes.c_void_p(hole.ctypes.data), ctypes.c_size_t(PAGE), mmap.MADV_DONTNEED)
    splits = THP / "hugepages-64kB/stats/split"
    before = int(splits.read_text())
    for node in (1, 0):
        assert move_pages(memory, node, MT) >= 0
    assert int(splits.read_text()) - before == 1


@pytest.mark.parametrize("kind", ["base", "64K", "thp", "hugetlb"])
def test_several_threads_do_copy(kind: str) -> None:
    """Not every time: a helper may come too late when the host is busy."""
    memory = Memory(kind, SIZE, node=0)
    before = migration_counters()["pgmigrate_mt_success"]
    for turn in range(200):
        assert move_pages(memory, 1 - turn % 2, MT) >= 0
        memory.check()
        if migration_counters()["pgmigrate_mt_success"] > before:
            return
    pytest.fail("200 moves, and nobody ever helped")


def test_one_thread_where_one_is_the_limit() -> None:
    (VM / "mt_page_copy_threads").write_text("1")
    memory = Memory("thp", SIZE, node=0)
    before = migration_counters()
    assert move_pages(memory, 1, MT) == 0
    after = migration_counters()
    assert after["pgmigrate_mt_success"] == before["pgmigrate_mt_success"]
    assert after["pgmigrate_mt_fallback"] - before["pgmigrate_mt_fallback"] == SIZE // PAGE
    memory.check()


def test_the_tunable_is_for_all_or_for_those_who_ask() -> None:
    memory = Memory("thp", SIZE, node=0)
    before = allowed_to_help()
    assert move_pages(memory, 1, MPOL_MF_MOVE) == 0
    assert allowed_to_help() == before
    (VM / "mt_page_copy").write_text("1")
    assert move_pages(memory, 0, MPOL_MF_MOVE) == 0
    assert allowed_to_help() - before >= SIZE // PAGE
    assert memory.nodes() == {0: SIZE}
    memory.check()


@pytest.mark.parametrize(
    ("name", "value"),
    [("mt_page_copy", "2"), ("mt_page_copy", "-1")]
    + [("mt_page_copy_threads", value) for value in ("0", "9", "-1", "many")],
)
def test_values_that_make_no_sense(name: str, value: str) -> None:
    before = (VM / name).read_text()
    with pytest.raises(OSError) as caught:
        (VM / name).write_text(value)
    assert caught.value.errno == errno.EINVAL
    assert (VM / name).read_text() == before


@pytest.mark.parametrize("kind", ["base", "thp"])
def test_the_kernel_engine_asks_for_it(kind: str) -> None:
    memory = Memory(kind, SIZE, node=0)
    for threads in (1, 2):
        for node in (1, 0):
            result = move(memory.words, node, threads=threads)
            assert result.complete and result.bytes_moved == SIZE and result.kernel_mt
            assert result.counters is not None
            helped, alone = (
                result.counters[f"pgmigrate_mt_{how}"] for how in ("success", "fallback")
            )
            assert helped + alone >= SIZE // PAGE
            assert memory.nodes() == {node: SIZE}
            memory.check()


def test_single_threaded_mode_is_single_threaded_in_the_kernel_too() -> None:
    memory = Memory("thp", SIZE, node=0)
    before = allowed_to_help()
    result = move(memory.words, 1, mode=MigrateMode.SYNC | MigrateMode.ST)
    assert result.complete and not result.kernel_mt
    assert allowed_to_help() == before
    memory.check()


def test_tracepoint() -> None:
    trace = EVENT.parents[2] / "trace"
    trace.write_text("")
    (EVENT / "enable").write_text("1")
    memory = Memory("base", SIZE, node=0)
    try:
        for turn in range(200):
            assert move_pages(memory, 1 - turn % 2, MT) >= 0
            lines = [line for line in trace.read_text().splitlines() if "copy_pages:" in line]
            if lines:
                break
    finally:
        (EVENT / "enable").write_text("0")
    told = dict(word.split("=") for word in lines[0].split("copy_pages:")[1].split())
    assert int(told["nid"]) in (0, 1)
    assert int(told["nr_folios"]) == int(told["nr_pages"]) <= HUGE // PAGE
    assert 1 <= int(told["threads"]) <= int(told["cpus"]) <= 4
    assert int(told["ns"]) > 0
    memory.check()


@pytest.mark.parametrize("name", KSELFTESTS)
def test_kselftest(name: str) -> None:
    if not SELFTEST.exists():
        pytest.skip("scripts/test_kernel has not built it")
    done = subprocess.run(
        [SELFTEST, "-r", f"migration_mt.{name}"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ok 1 migration_mt.{name}\n" in done.stdout, done.stdout

# SPDX-License-Identifier: Apache-2.0
"""Pages that move: counts, bytes, and where the kernel says they are afterwards.

Run by: pageferry lab run --topology two-node --memory 1536M --cpus 2
"""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from placement import (
    HUGE,
    PAGE,
    Forked,
    Memory,
    Pinned,
    Script,
    become_nobody,
    in_a_child,
    nodes_of,
    on,
)

from pageferry import MigrateMode, Progress, engine, locate, move, plan, procfs, topology

SIZE = 8 << 20
ROOT = Path(__file__).parents[2]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "FIRST_BATCH_BYTES", 256 << 10)
    monkeypatch.setattr(plan, "CALL_MS", 0)
    monkeypatch.setattr(engine, "_POLL_US", 1)


def test_the_machine() -> None:
    here = topology()
    assert here.node_ids == here.memory_nodes == here.target_nodes == (0, 1)
    assert all(len(node.cpus) == 1 for node in here.nodes)


# --- there and back


@pytest.mark.parametrize("threads", [1, 2, 4, "auto"])
@pytest.mark.parametrize("kind", Memory.KINDS)
def test_there_and_back(kind: str, threads: int | str, pools: tuple[Path, Path]) -> None:
    if kind == "hugetlb":
        for pool in pools:
            pool.write_text(str(SIZE // HUGE))
    memory = Memory(kind, SIZE, node=0)
    assert memory.nodes() == {0: SIZE}
    for node in (1, 0):
        result = move(memory.words, node, threads=threads)
        assert memory.nodes() == {node: SIZE}
        memory.check()
        pages = SIZE // memory.unit
        assert result.complete and result.bytes_moved == SIZE
        assert result.pages_moved == {
            name: pages if name == memory.report_kind else 0 for name in ("base", "thp", "hugetlb")
        }
        assert result.bytes_already == result.bytes_failed == result.bytes_not_present == 0
        assert result.calls >= 1 and result.seconds > 0 and result.gbps > 0
        assert set(result.verified) == {node} and not result.warnings
        if threads != "auto":
            assert result.plan.threads == min(int(threads), pages)
        counters = result.counters
        assert counters is not None
        if kind == "thp":
            assert counters["thp_migration_success"] >= pages
            assert counters["thp_migration_split"] == 0
        assert counters["pgmigrate_success"] >= (SIZE // PAGE if kind != "hugetlb" else pages)
        assert counters["pgmigrate_fail"] == 0
        placement = locate(memory.words)
        assert placement.on(node) == placement.by_kind(memory.report_kind) == SIZE
    again = move(memory.words, 0, threads=threads, exact=True)
    assert again.bytes_moved == 0 and again.bytes_already == SIZE and again.calls == 0


def test_hugetlb_pages_are_told_without_smaps(
    pools: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For smaps the kernel walks all page tables; the page size of a mapping can be asked for."""
    for pool in pools:
        pool.write_text(str(SIZE // HUGE))
    memory, others = Memory("hugetlb", SIZE, node=0), Memory("thp", SIZE, node=0)

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("smaps was read")

    monkeypatch.setattr(procfs, "smaps", refused)
    assert locate(memory.words).by_kind("hugetlb") == SIZE
    assert locate(others.words).by_kind("thp") == SIZE
    assert locate(pid=os.getpid()).by_kind("hugetlb") == SIZE
    assert move(memory.words, 1).pages_moved["hugetlb"] == SIZE // HUGE
    memory.check()


@pytest.mark.parametrize("kind", ["base", "thp"])
@pytest.mark.parametrize("method", ["scan", "pagemap", "query"])
def test_each_way_to_survey(kind: str, method: str) -> None:
    memory = Memory(kind, SIZE, node=0)
    result = move(memory.words, 1, survey=method)
    assert result.complete and result.bytes_moved == SIZE and result.survey == method
    if method != "query":  # which sees 512 base pages in a huge one
        assert result.pages_moved[kind] == SIZE // memory.unit
    assert memory.nodes() == {1: SIZE}
    assert locate(memory.words).by_kind(kind) == SIZE  # no huge page was split
    memory.check()


@pytest.mark.parametrize("threading_bit", [MigrateMode.ST, MigrateMode.MT])
@pytest.mark.parametrize("blocking", [MigrateMode.ASYNC, MigrateMode.SYNC_LIGHT, MigrateMode.SYNC])
def test_modes(blocking: MigrateMode, threading_bit: MigrateMode) -> None:
    memory = Memory("base", 4 << 20, node=0)
    for node in (1, 0):
        result = move(memory.words, node, mode=blocking | threading_bit)
        if blocking == MigrateMode.ASYNC:  # somebody else's lock on a page is enough for EBUSY
            assert set(result.failed) <= {errno.EBUSY}, (blocking, node, result)
            assert result.bytes_moved + result.bytes_failed == memory.bytes
            assert move(memory.words, node).complete
        else:
            assert result.complete, (blocking, node, result.failed)
        assert memory.nodes() == {node: memory.bytes}
        assert result.plan.threads == (1 if threading_bit == MigrateMode.ST else 2)
        assert result.workers <= result.plan.threads
    memory.check()


def test_a_mixture_of_all_kinds_of_pages() -> None:
    region = mmap.mmap(-1, 8 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = np.frombuffer(region, np.uint8)
    start = -whole.ctypes.data % HUGE
    region.madvise(mmap.MADV_NOHUGEPAGE)
    region.madvise(mmap.MADV_HUGEPAGE, start + HUGE, HUGE)
    region.madvise(mmap.MADV_HUGEPAGE, start + 4 * HUGE, 2 * HUGE)
    data = whole[start : start + 7 * HUGE]
    expected = np.zeros(7 * HUGE, np.uint8)
    with on(0):
        for first, last, value in (
            (HUGE, HUGE + 1, 1),  # one byte makes a huge page
            (3 * HUGE, 3 * HUGE + 9 * PAGE, 2),
            (4 * HUGE + 77, 6 * HUGE - 5, 3),  # two more
            (6 * HUGE, 7 * HUGE, 4),
        ):
            data[first:last] = expected[first:last] = value
    assert not data[2 * HUGE : 2 * HUGE + 5 * PAGE].any()  # the zero page
    result = move(data, 1, statuses=True, threads=2)
    assert result.complete
    assert result.pages_moved == {"base": 512 + 9, "thp": 3, "hugetlb": 0}
    assert result.bytes_zero == 5 * PAGE
    assert result.bytes_not_present == 3 * HUGE - 14 * PAGE
    table = result.statuses
    assert table is not None and len(table) == 512 + 9 + 3
    assert (table["status"] == 1).all()
    assert int(table["size"].sum()) == result.bytes_moved
    assert (data == expected).all()


def test_file_pages_of_the_host(tmp_path: Path) -> None:
    """Page cache of a file, here over 9p and overlayfs, that nobody else maps."""
    path = tmp_path / "file"
    text = np.arange(1 << 19, dtype=np.uint64)
    text.tofile(path)
    mapped = np.memmap(path, np.uint64, "r")
    assert (mapped == text).all()
    for node in (1, 0):
        result = move(mapped, node)
        assert result.bytes_moved + result.bytes_already == mapped.nbytes and result.complete
        assert locate(mapped).on(node) == mapped.nbytes
        assert (mapped == text).all()


def test_read_only_buffer() -> None:
    text = np.random.default_rng(7).bytes(4 << 20)
    copy = bytearray(text)
    for node in (1, 0, 1):
        result = move(text, node)
        assert result.complete and locate(text).on(1 - node) == 0
        assert locate(text).on(node) >= len(text)
    assert text == copy


def test_one_page() -> None:
    memory = Memory("base", 64 * PAGE, node=0)
    page = range(memory.address + 5 * PAGE, memory.address + 6 * PAGE)
    result = move(page, 1)
    assert (result.bytes_moved, result.calls, result.plan.threads) == (PAGE, 1, 1)
    assert memory.nodes() == {0: 63 * PAGE, 1: PAGE}
    assert locate(page).on(1) == PAGE
    memory.check()


def test_locked_memory() -> None:
    memory = Memory("base", 1 << 20, node=0)
    import ctypes

    libc = ctypes.CDLL(None)
    assert libc.mlock(ctypes.c_void_p(memory.address), ctypes.c_size_t(memory.bytes)) == 0
    assert move(memory.words, 1).bytes_moved == memory.bytes
    assert memory.nodes() == {1: memory.bytes}
    memory.check()


# --- which pages


def test_pages_that_are_there_already_are_counted_exactly() -> None:
    memory = Memory("base", SIZE, node=0)
    pages = SIZE // PAGE
    chosen = np.random.default_rng(3).permutation(pages)[:100]
    for page in chosen:
        first = memory.address + int(page) * PAGE
        assert move(range(first, first + PAGE), 1).bytes_moved == PAGE
    assert memory.nodes()[1] == 100 * PAGE
    result = move(memory.words, 1, exact=True, threads=2)
    assert result.exact
    assert result.pages_already["base"] == 100 and result.pages_moved["base"] == pages - 100
    assert memory.nodes() == {1: SIZE}
    memory.check()


def test_a_sample_may_take_pages_that_are_there_for_moved_and_says_so() -> None:
    memory = Memory("base", SIZE, node=0)
    one = range(memory.address + 101 * PAGE, memory.address + 102 * PAGE)  # not in the sample
    move(one, 1)
    result = move(memory.words, 1, threads=1)
    assert not result.exact and result.complete
    assert result.bytes_moved + result.bytes_already == SIZE
    assert memory.nodes() == {1: SIZE}


def test_source_filter() -> None:
    with on(0, 1):
        memory = Memory("base", SIZE)
    assert memory.nodes() == {0: SIZE // 2, 1: SIZE // 2}
    result = move(memory.words, 0, source=0, statuses=True)
    assert result.complete and result.bytes_moved == 0
    assert result.bytes_already == result.bytes_elsewhere == SIZE // 2
    assert result.statuses is not None
    assert np.unique(result.statuses["status"], return_counts=True)[1].tolist() == [1024, 1024]
    assert memory.nodes() == {0: SIZE // 2, 1: SIZE // 2}
    result = move(memory.words, 1, source=[0], threads=2)
    assert result.bytes_moved == result.bytes_already == SIZE // 2 and result.exact
    assert memory.nodes() == {1: SIZE}
    assert move(memory.words, 0, source={0, 1}).bytes_moved == SIZE
    memory.check()


@pytest.mark.parametrize("partial", ["touched", "inside"])
def test_huge_pages_that_the_range_cuts(partial: str) -> None:
    memory = Memory("thp", 6 * HUGE, node=0)
    first = memory.address + HUGE + 5 * PAGE
    result = move(range(first, first + 3 * HUGE), 1, partial=partial)
    moved = 4 if partial == "touched" else 2
    assert result.pages_moved == {"base": 0, "thp": moved, "hugetlb": 0}
    assert result.bytes_cut == (0 if partial == "touched" else HUGE)
    assert memory.nodes() == {0: (6 - moved) * HUGE, 1: moved * HUGE}
    memory.check()


def test_statuses() -> None:
    memory = Memory("base", 4 << 20, node=0)
    table = move(memory.words, 1, statuses=True, threads=2).statuses
    assert table is not None
    assert (table["address"] == memory.addresses).all()
    assert (table["size"] == PAGE).all() and (table["status"] == 1).all()
    where = locate(memory.words, statuses=True).statuses
    assert where is not None and (where == table).all()


# --- meanwhile


def test_progress_and_cancel(small_batches: None) -> None:
    memory = Memory("base", SIZE, node=0)
    seen: list[int] = []
    assert move(memory.words, 1, progress=lambda p: seen.append(p.bytes_moved), threads=1).complete
    assert len(seen) > 5 and seen == sorted(seen) and 0 < seen[0] < SIZE
    event = threading.Event()

    def cancel(now: Progress) -> None:
        if now.bytes_moved:
            event.set()

    # One thread may have moved all of it before the other one, which asks, has a CPU: not so fast.
    result = move(memory.words, 0, progress=cancel, cancel=event, threads=2, max_gbps=1e-3)
    assert result.cancelled and not result.complete
    assert 0 < result.bytes_moved < SIZE
    assert result.bytes_moved + result.bytes_skipped == SIZE
    assert memory.nodes() == {0: result.bytes_moved, 1: result.bytes_skipped}
    memory.check()


@pytest.mark.parametrize("kind", ["base", "thp"])
def test_writers_during_moves(kind: str) -> None:
    """Each writer owns every fourth line of the array and notes a write that got lost."""
    memory = Memory(kind, 8 << 20, node=0)
    lines = memory.words.reshape(-1, 8)
    original = lines.copy()
    end = threading.Event()
    lost: list[int] = []
    rounds = [0, 0]

    def writer(number: int) -> None:
        mine = lines[number::4, :4]
        value = 0
        while not end.is_set():
            value += 1
            mine[...] = value
            if (mine != value).any():
                lost.append(value)
            rounds[number] = value

    threads = [threading.Thread(target=writer, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for node in (1, 0) * 4:
            result = move(memory.words, node, threads=2)
            assert result.bytes_moved + result.bytes_already + result.bytes_failed == memory.bytes
        while min(rounds) == 0 and all(thread.is_alive() for thread in threads):
            time.sleep(0.01)  # they wait for a CPU
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert lost == [] and min(rounds) > 0
    for number in range(2):
        assert (lines[number::4, :4] == rounds[number]).all()
        original[number::4, :4] = rounds[number]
    assert (lines == original).all()


@pytest.mark.parametrize("program", ["kernel_engine", "crew"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_c_program(compiler: str, program: str) -> None:
    path = ROOT / f"build-tests-{compiler}/tests/c/test-{program}"
    if not path.exists():
        pytest.skip("tests/host/test_c_programs.py has not built it")
    done = subprocess.run([path], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "ok" in done.stdout
    if program == "kernel_engine":
        assert "2 nodes" in done.stdout


# --- other processes


def test_whole_process() -> None:
    code = """
        memory = Memory("base", 8 << 20, node=0)
        huge = Memory("thp", 4 << 20, node=0)
        say(memory.address, huge.address)
        while hear():
            memory.check(); huge.check(); say("whole")
    """
    with Script(code) as child:
        base, huge = map(int, child.hear().split())
        shared = 0
        for node in (1, 0):
            result = move(pid=child.pid, node=node, threads=2)
            assert nodes_of(base, 8 << 20, child.pid) == {node: 8 << 20}
            assert nodes_of(huge, 4 << 20, child.pid)[node] >= 4 << 20
            assert result.whole_process and result.complete
            assert result.pages_moved["thp"] >= 2
            assert set(result.failed) <= {errno.EACCES}
            shared += result.shared
            if result.shared:
                assert result.failures[0].errno == errno.EACCES
            child.say("check")
            assert child.hear() == "whole"
        assert shared > 0  # its libraries are ours as well
        placement = locate(pid=child.pid)
        assert placement.on(0) >= 12 << 20


def test_range_of_a_process() -> None:
    def work(parent: Forked) -> None:
        memory = Memory("base", 8 << 20, node=0)
        parent.say(memory.address)
        parent.hear()
        memory.check()
        parent.say("whole")

    with Forked(work) as child:
        start = int(child.hear())
        result = move(range(start, start + (4 << 20)), 1, pid=child.pid, statuses=True)
        assert result.bytes_moved == 4 << 20 and not result.whole_process
        assert nodes_of(start, 8 << 20, child.pid) == {0: 4 << 20, 1: 4 << 20}
        child.say("check")
        assert child.hear() == "whole"


def test_unprivileged_user() -> None:
    def moves() -> object:
        become_nobody()
        base = Memory("base", 4 << 20, node=0)
        huge = Memory("thp", 4 << 20, node=0)
        results = [move(memory.words, 1) for memory in (base, huge)]
        base.check()
        huge.check()
        return (
            [(r.survey, r.bytes_moved, dict(r.pages_moved)) for r in results],
            [m.nodes() for m in (base, huge)],
        )

    size = 4 << 20
    assert in_a_child(moves) == repr(
        (
            [
                ("scan", size, {"base": size // PAGE, "thp": 0, "hugetlb": 0}),
                ("scan", size, {"base": 0, "thp": 2, "hugetlb": 0}),
            ],
            [{1: size}, {1: size}],
        )
    )


def test_a_process_that_gave_up_its_user() -> None:
    def moves() -> object:
        base = Memory("base", 4 << 20, node=0)
        huge = Memory("thp", 4 << 20, node=0)
        become_nobody(dumpable=False)  # may not open its own /proc/self/pagemap
        results = [move(memory.words, 1) for memory in (base, huge)]
        base.check()
        huge.check()
        return [(r.survey, r.bytes_moved, r.complete) for r in results]

    assert in_a_child(moves) == repr([("query", 4 << 20, True)] * 2)


def test_a_shared_library_stays_unless_asked_for() -> None:
    memory = Memory("base", 1 << 20, node=0)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        try:
            memory.check()
        finally:
            os._exit(0)
        os._exit(1)
    os.close(reader)
    try:
        result = move(memory.words, 1, statuses=True)
        assert result.failed == {errno.EACCES: 256} and result.shared == 256
        assert result.bytes_failed == memory.bytes and not result.complete
        assert result.statuses is not None and (result.statuses["status"] == -errno.EACCES).all()
        assert memory.nodes() == {0: memory.bytes}
        assert len(result.failures) == 32
        result = move(memory.words, 1, shared=True)
        assert result.complete and result.bytes_moved == memory.bytes
        assert memory.nodes() == {1: memory.bytes}

        def without_the_right() -> object:
            become_nobody()
            return move(range(memory.address, memory.address + PAGE), 0, shared=True)

        assert in_a_child(without_the_right).startswith("NotPermittedError")
        memory.check()
    finally:
        os.close(writer)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


# --- pinned pages


@pytest.mark.parametrize("threads", [1, 2])
def test_pinned_pages_stay_and_all_others_move(threads: int) -> None:
    memory = Memory("base", 4 << 20, node=0)
    pages = [3, 100, 511, 512, 1000]
    addresses = [memory.address + page * PAGE for page in pages]
    expected = b"".join(memory.words[page * 512 : page * 512 + 512].tobytes() for page in pages)
    pinned = Pinned(addresses)
    result = move(memory.words, 1, statuses=True, threads=threads)
    assert result.failed == {errno.EBUSY: len(pages)}
    assert sorted(f.address for f in result.failures) == addresses
    assert all(f.size == PAGE and f.errno == errno.EBUSY for f in result.failures)
    assert result.bytes_failed == len(pages) * PAGE and not result.complete
    assert result.bytes_moved == memory.bytes - result.bytes_failed
    assert memory.nodes() == {0: len(pages) * PAGE, 1: result.bytes_moved}
    table = result.statuses
    assert table is not None
    assert table["address"][table["status"] == -errno.EBUSY].tolist() == addresses
    assert int((table["status"] == 1).sum()) == len(table) - len(pages)
    assert result.retried == len(pages) and not result.warnings
    memory.check()
    assert pinned.release() == expected
    result = move(memory.words, 1, exact=True)
    assert result.complete and result.bytes_moved == len(pages) * PAGE
    assert memory.nodes() == {1: memory.bytes}
    memory.check()


def test_a_pinned_huge_page_stays_whole() -> None:
    memory = Memory("thp", 4 * HUGE, node=0)
    pinned = Pinned([memory.address + 2 * HUGE + 7 * PAGE])
    result = move(memory.words, 1)
    assert result.failed == {errno.EBUSY: 1}
    assert [(f.address, f.size) for f in result.failures] == [(memory.address + 2 * HUGE, HUGE)]
    assert result.pages_moved["thp"] == 3 and result.bytes_failed == HUGE
    assert memory.nodes() == {0: HUGE, 1: 3 * HUGE}
    pinned.release()
    assert move(memory.words, 1).pages_moved["thp"] == 1
    assert locate(memory.words).by_kind("thp") == memory.bytes
    memory.check()


@pytest.mark.parametrize(
    ("mode", "calls"),
    [(MigrateMode.ASYNC, 1), (MigrateMode.SYNC_LIGHT, 7), (MigrateMode.SYNC, 12)],
)
def test_tries_by_mode(mode: MigrateMode, calls: int) -> None:
    memory = Memory("base", 16 * PAGE, node=0)
    pinned = Pinned([memory.address + 4 * PAGE])
    result = move(range(memory.address + 4 * PAGE, memory.address + 5 * PAGE), 1, mode=mode)
    assert result.failed == {errno.EBUSY: 1}
    assert result.calls == calls
    assert result.retried == (0 if mode == MigrateMode.ASYNC else 1)
    pinned.release()
    memory.check()


def test_a_pin_that_ends_while_sync_waits() -> None:
    memory = Memory("base", 16 * PAGE, node=0)
    pinned = Pinned([memory.address])
    timer = threading.Timer(0.03, pinned.release)
    timer.start()
    result = move(memory.words, 1)
    timer.join()
    if result.complete:  # the machine may have been too slow for the waits to be long enough
        assert result.retried == 1 and memory.nodes() == {1: memory.bytes}
    else:
        assert result.failed == {errno.EBUSY: 1}
    memory.check()

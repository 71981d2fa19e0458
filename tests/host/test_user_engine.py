# SPDX-License-Identifier: Apache-2.0
"""The user engine from Python, on one node: pages are moved to where they are, as new ones."""

from __future__ import annotations

import errno
import mmap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from regions import HUGE, PAGE, PRIVATE, Region, needs_thp

import pageferry
from pageferry import page_size, plan, procfs, user_choice, user_engine
from pageferry._native import lib
from pageferry.nodes import machine
from pageferry.pages import BASE, EXTENT, HUGETLB, THP, extents_bytes
from pageferry.stalls import _end_us
from pageferry.survey import Survey
from pageferry.target import resolve
from pageferry.user_engine import UserRun, _cut

SIZE = 8 << 20
NODE = next(node.id for node in machine().nodes if node.has_memory)

needs_checked = pytest.mark.skipif(
    user_engine.why_not("checked") is not None, reason="no UFFDIO_MOVE for this process"
)
needs_pagemap = pytest.mark.skipif(
    not Path("/proc/self/pagemap").exists(), reason="this kernel shows no page tables"
)


def pattern(size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, size, np.uint8)


def extents_of(region: Region) -> np.ndarray:
    windows = Survey(resolve(region.range())).windows()
    return np.concatenate([window.copy() for window in windows])


def user_run(way: str = "checked", **more: object) -> UserRun:
    run = UserRun(NODE, way, trial=False, stall_ms=None, exact=True, again=True, **more)  # type: ignore[arg-type]
    run.follow(plan.make_plan(machine(), NODE, {PAGE: SIZE // PAGE}, threads=2))
    return run


def frames(region: Region) -> np.ndarray:
    """The frame numbers of all pages; zeros for those who may not know."""
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(region.address // PAGE * 8)
        entries = np.frombuffer(file.read(region.size // PAGE * 8), np.uint64)
    return entries & np.uint64((1 << 55) - 1)


@pytest.mark.parametrize(("size", "judge", "threads"), [(1, True, 1), (8, True, 2), (1, False, 2)])
def test_nobody_is_asked_to_help_with_little(size: int, judge: bool, threads: int) -> None:
    """Who asks for two threads gets them; of the planner's only those that have 4 MiB to do."""
    if user_engine.why_not("checked") is not None:
        pytest.skip("this kernel lacks what it needs")
    region = Region(size << 20)
    wanted = pattern(region.size)
    region.bytes[:] = wanted
    run = UserRun(NODE, "checked", trial=False, stall_ms=None, exact=False, again=True)
    run.follow(plan.make_plan(machine(), NODE, {PAGE: region.size // PAGE}, threads=2), judge=judge)
    code, _ = run.run(run.sort(extents_of(region))[0])
    assert code == 0 and run._c.threads == threads and run._c.workers <= threads
    assert np.array_equal(region.bytes, wanted)


@pytest.mark.parametrize("way", ["checked", "hold", "protect"])
@pytest.mark.parametrize("huge", [False, pytest.param(True, marks=needs_thp)])
@needs_pagemap
def test_every_way_gives_new_pages_and_keeps_the_bytes(way: str, huge: bool) -> None:
    if user_engine.why_not(way) is not None or (huge and user_engine.why_not("checked")):
        pytest.skip("this kernel lacks what it needs")
    region = Region(SIZE, huge=huge)
    wanted = pattern(SIZE)
    region.bytes[:] = wanted
    run = user_run(way)
    before = frames(region)
    here, others = run.sort(extents_of(region))
    assert extents_bytes(here) == SIZE and not len(others)
    code, left = run.run(here)
    assert (code, len(left)) == (0, 0)
    assert run.bytes_moved == run.bytes_done == SIZE
    assert np.array_equal(region.bytes, wanted)
    assert not before.any() or (before != frames(region)).all()


@needs_checked
@needs_thp
def test_huge_pages_become_base_pages_on_request() -> None:
    region = Region(SIZE, huge=True)
    wanted = pattern(SIZE)
    region.bytes[:] = wanted
    assert pageferry.locate(region.bytes).by_kind("thp") == SIZE
    result = pageferry.move(region.bytes, NODE, page_size="4K")
    assert result.complete and result.bytes_moved == SIZE
    assert result.pages_moved == {"base": SIZE // PAGE, "thp": 0, "hugetlb": 0}
    assert pageferry.locate(region.bytes).by_kind("base") == SIZE
    assert np.array_equal(region.bytes, wanted)
    assert [(part.engine, part.bytes) for part in result.parts] == [("user", SIZE)]
    stalls = result.stalls
    assert stalls is not None and stalls.pieces > 0
    assert 0 < stalls.p50_ms <= stalls.p99_ms <= stalls.max_ms
    again = pageferry.move(region.bytes, NODE, page_size="4K")
    assert again.bytes_already == SIZE and not again.bytes_moved and again.stalls is None
    assert result.as_dict()["parts"][0]["engine"] == "user"


@needs_checked
def test_what_does_not_fit_goes_to_the_kernel_engine_and_is_named() -> None:
    region = Region(SIZE)
    region.write(0, SIZE)
    shared = mmap.mmap(-1, SIZE)
    np.frombuffer(shared, np.uint8)[:] = 7
    result = pageferry.move(shared, NODE, engine="user")
    assert result.complete and result.bytes_already == SIZE and not result.bytes_moved
    assert [(part.engine, part.bytes) for part in result.parts] == [("left", SIZE)]
    assert "not private anonymous" in result.parts[0].reason
    result = pageferry.move(region.bytes, NODE, engine="user")
    assert result.complete and result.bytes_already == SIZE
    single = Region(2 << 20)
    for page in range(0, 512, 2):
        single.write(page * PAGE, PAGE)
    result = pageferry.move(single.bytes, NODE, engine="user")
    assert [part.reason for part in result.parts] == ["too few pages together"]
    assert result.bytes_already == 256 * PAGE


@needs_checked
def test_a_python_writer_goes_on_while_pages_are_away() -> None:
    region = Region(SIZE)
    region.bytes[:] = 0
    stop = threading.Event()
    rounds = 0

    def write() -> None:
        nonlocal rounds
        while not stop.is_set():  # holds the GIL while it waits for a page
            region.bytes[::64] += np.uint8(1)
            rounds += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        extents = extents_of(region)
        for _ in range(40):
            run = user_run()
            code, left = run.run(extents)
            assert (code, len(left)) == (0, 0)
            assert run.bytes_moved == SIZE
    finally:
        stop.set()
        writer.join(300)
    assert not writer.is_alive()
    assert (region.bytes[::64] == np.uint8(rounds % 256)).all()


needs_collapse = pytest.mark.skipif(
    user_engine.why_not("checked") is not None
    or not user_engine.features() & lib.PF_USER_HAS_COLLAPSE,
    reason="no MADV_COLLAPSE here",
)


def small_pages(size: int = SIZE) -> tuple[Region, np.ndarray]:
    """Base pages, all present, of memory that may have huge ones; and what is in them."""
    region = Region(size)
    bytes_ = pattern(size)
    region.bytes[:] = bytes_
    assert sizes(region) == {12: size}
    region.advise(mmap.MADV_HUGEPAGE)  # from now on khugepaged, too, makes huge pages here
    return region, bytes_


def sizes(region: Region) -> dict[int, int]:
    """Bytes by the shift of the pages that they are in."""
    found: dict[int, int] = {}
    for extent in extents_of(region):
        found[int(extent["shift"])] = found.get(int(extent["shift"]), 0) + (
            int(extent["pages"]) << int(extent["shift"])
        )
    return found


@needs_collapse
@needs_thp
@needs_pagemap
@pytest.mark.parametrize("way", ["checked", "hold", "protect"])
def test_base_pages_become_huge_ones_and_back(way: str) -> None:
    if user_engine.why_not(way):
        pytest.skip(f"no {way} here")
    region, bytes_ = small_pages()
    run = user_run(way, shift=21)
    assert run.run(extents_of(region))[0] == 0
    counts = run._c.progress
    assert (counts.bytes_moved, counts.bytes_collapsed) == (SIZE, SIZE)
    assert list(counts.pages_moved) == [0, SIZE // HUGE, 0]
    assert sizes(region) == {21: SIZE} and np.array_equal(region.bytes, bytes_)
    region.advise(mmap.MADV_NOHUGEPAGE)  # for khugepaged
    run = user_run(way, shift=12)
    assert run.run(extents_of(region))[0] == 0
    assert sizes(region) == {12: SIZE} and np.array_equal(region.bytes, bytes_)
    assert list(run._c.progress.pages_moved) == [SIZE // PAGE, 0, 0]


@needs_collapse
@needs_thp
@needs_pagemap
def test_pages_that_are_there_already_become_huge_too() -> None:
    region, bytes_ = small_pages()
    result = pageferry.move(region.bytes, NODE, page_size="2M", exact=True)
    assert result.complete and result.bytes_already == SIZE and not result.bytes_moved
    assert result.bytes_collapsed == SIZE and not result.parts
    assert result.pages_already == {"base": 0, "thp": SIZE // HUGE, "hugetlb": 0}
    assert sizes(region) == {21: SIZE} and np.array_equal(region.bytes, bytes_)
    assert result.as_dict()["bytes_collapsed"] == SIZE
    again = pageferry.move(region.bytes, NODE, page_size="2M")
    assert again.bytes_already == SIZE and not again.bytes_collapsed


@needs_collapse
@needs_thp
@needs_pagemap
def test_what_is_not_a_whole_huge_page_keeps_its_size() -> None:
    region, bytes_ = small_pages()
    hole = 2 * HUGE + 300 * PAGE
    region.advise(mmap.MADV_DONTNEED, hole, PAGE)
    bytes_[hole : hole + PAGE] = 0
    part = region.bytes[5 * PAGE :]
    result = pageferry.move(part, NODE, page_size="2M")
    assert result.complete
    assert result.bytes_collapsed == SIZE - 2 * HUGE
    kept = [part for part in result.parts if part.engine == "kept"]
    assert [part.bytes for part in kept] == [2 * HUGE - 6 * PAGE]
    assert "not 2 MiB" in kept[0].reason
    assert sizes(region) == {21: SIZE - 2 * HUGE, 12: 2 * HUGE - PAGE}
    assert np.array_equal(region.bytes, bytes_)


@needs_collapse
@needs_thp
def test_memory_that_is_to_have_small_pages_keeps_them() -> None:
    region, bytes_ = small_pages()
    region.advise(mmap.MADV_NOHUGEPAGE)
    result = pageferry.move(region.bytes, NODE, page_size="2M")
    assert result.complete and not result.bytes_collapsed
    kept = [part for part in result.parts if part.engine == "kept"]
    assert [part.bytes for part in kept] == [SIZE] and "MADV_NOHUGEPAGE" in kept[0].reason
    assert np.array_equal(region.bytes, bytes_)


def test_huge_pages_are_refused_where_the_kernel_makes_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everything_else = lib.PF_USER_HAS_COLLAPSE - 1  # this kernel may have it
    monkeypatch.setattr(user_engine, "features", lambda: everything_else)
    monkeypatch.setattr(user_choice, "features", lambda: everything_else)
    monkeypatch.setattr(user_choice, "parse_page_size", lambda _: page_size.PageSize(21))
    region = Region(PAGE)
    region.write(0, PAGE)
    with pytest.raises(pageferry.UnsupportedError, match=r"6\.1"):
        pageferry.move(region.bytes, NODE, page_size="2M")


@needs_checked
def test_the_traffic_of_the_user_engine_is_bounded() -> None:
    region = Region(SIZE)
    bytes_ = region.bytes[:] = pattern(SIZE)
    rate = 50 * SIZE
    run = user_run(max_rate=rate)
    begun = time.monotonic_ns() // 1000
    assert run.run(extents_of(region))[0] == 0
    counts = run._c
    assert counts.progress.bytes_moved == SIZE
    # What was moved was paid for: not a measurement, the sum of what the pieces reserved.
    assert counts.due_us - begun >= SIZE * 1_000_000 // rate - counts.progress.pieces
    assert time.monotonic_ns() // 1000 >= counts.due_us
    assert np.array_equal(region.bytes, bytes_)
    held_back = pageferry.move(region.bytes, NODE, engine="user", max_gbps=100.0)
    assert held_back.complete


@needs_checked
def test_cancel_and_progress_reach_both_engines() -> None:
    region = Region(SIZE)
    region.write(0, SIZE)
    cancel = threading.Event()
    cancel.set()
    result = pageferry.move(region.bytes, NODE, engine="user", cancel=cancel)
    assert result.cancelled and not result.complete
    assert result.bytes_skipped == SIZE and not result.bytes_already


def test_auto_leaves_small_and_foreign_memory_to_the_kernel() -> None:
    region = Region(SIZE)
    region.write(0, SIZE)
    for target in (region.bytes, region.range()):
        result = pageferry.move(target, NODE)
        assert result.complete and result.parts == () and result.stalls is None


def test_requests_that_make_no_sense_are_refused() -> None:
    region = Region(PAGE)
    region.write(0, PAGE)
    for bad in (
        {"engine": "both"},
        {"way": "soft"},
        {"engine": "kernel", "way": "hold"},
        {"engine": "kernel", "page_size": "4K"},
        {"page_size": "3K"},
        {"engine": "user", "statuses": True},
    ):
        with pytest.raises(ValueError, match=r"engine|way|page_size|page size"):
            pageferry.move(region.bytes, NODE, **bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leave pid out"):
        pageferry.move(region.range(), NODE, pid=1, engine="user")


def test_the_errors_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_engine, "features", lambda: -1)  # cannot be withdrawn from root
    error = user_engine.why_not("checked")
    assert isinstance(error, pageferry.NotPermittedError) and "CAP_SYS_PTRACE" in str(error)
    region = Region(PAGE)
    region.write(0, PAGE)
    with pytest.raises(pageferry.NotPermittedError):
        pageferry.move(region.bytes, NODE, engine="user")
    monkeypatch.setattr(user_engine, "features", lambda: 1)
    with pytest.raises(pageferry.UnsupportedError, match=r"6\.8"):
        pageferry.move(region.bytes, NODE, engine="user")


def test_extents_are_cut_at_mappings() -> None:
    assert _cut(0, 10, 12, [(0, 10 * PAGE)]) == [(0, 10, True)]
    assert _cut(0, 10, 12, []) == [(0, 10, False)]
    assert _cut(0, 10, 12, [(2 * PAGE, 4 * PAGE), (4 * PAGE, 20 * PAGE)]) == [
        (0, 2, False),
        (2 * PAGE, 2, True),
        (4 * PAGE, 6, True),
    ]
    assert _cut(0, 4, 21, [(HUGE + PAGE, 4 * HUGE)]) == [(0, 2, False), (2 * HUGE, 2, True)]


def test_buckets_of_stalls_are_a_quarter_of_an_octave() -> None:
    ends = [_end_us(bucket) for bucket in range(40)]
    assert ends == sorted(set(ends))
    assert ends[:12] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]


def test_hugetlb_pages_and_stacks_are_not_for_this_engine() -> None:
    run = UserRun(NODE, "checked", trial=False, stall_ms=None, exact=False)
    region = Region(SIZE)
    here, others = run.sort(np.array([(region.address, 1, 21, HUGETLB)], EXTENT))
    assert not len(here) and len(others) == 1
    stack = next(m for m in procfs.mappings() if m.name == "[stack]")
    here, others = run.sort(np.array([(stack.end - 32 * PAGE, 32, 12, BASE)], EXTENT))
    assert not len(here) and extents_bytes(others) == 32 * PAGE
    private = mmap.mmap(-1, SIZE, flags=PRIVATE)
    at = int(np.frombuffer(private, np.uint8).ctypes.data)
    here, others = UserRun(NODE, "hold", trial=False, stall_ms=None, exact=False).sort(
        np.array([(at, SIZE // PAGE, 12, BASE)], EXTENT)
    )
    assert extents_bytes(here) == SIZE and not len(others)


@needs_checked
def test_after_a_cancel_pages_of_every_size_are_counted_as_skipped() -> None:
    region = Region(SIZE)
    half = SIZE // 2
    extents = np.array(
        [
            (region.address, half // PAGE, PAGE.bit_length() - 1, BASE),
            (region.address + half, half // HUGE, HUGE.bit_length() - 1, THP),
        ],
        EXTENT,
    )
    run = user_run()
    run.end()
    code, left = run.run(extents)
    assert (code, len(left)) == (errno.ECANCELED, 0)
    assert run._c.progress.bytes_skipped == SIZE

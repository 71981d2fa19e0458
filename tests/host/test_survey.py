# SPDX-License-Identifier: Apache-2.0
"""Which pages are present and of what size: three methods, which must agree."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from child import in_a_child
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from regions import HUGE, PAGE, PRIVATE, Region, kinds, needs_thp

from pageferry import ProcessGoneError, UnsupportedError, locate, move
from pageferry import survey as module
from pageferry._native import lib
from pageferry.engine import status_table
from pageferry.pages import EXTENT, THP
from pageferry.survey import METHODS, Survey
from pageferry.target import resolve

NOBODY = 65534


def scan_works() -> bool:
    return module._scan_error() == 0


needs_scan = pytest.mark.skipif(not scan_works(), reason="this kernel has no PAGEMAP_SCAN")
methods = pytest.mark.parametrize(
    "method", [pytest.param("scan", marks=needs_scan), "pagemap", "query"]
)


def look(
    addresses: range, method: str | None = None, partial: str = "touched", pid: int | None = None
) -> tuple[list[tuple[int, int, int]], Survey]:
    """The extents as (offset in base pages, pages, page size), adjacent ones joined."""
    survey = Survey(resolve(addresses, pid, partial), method=method, partial=partial)
    found: list[tuple[int, int, int]] = []
    for extents in survey.windows():
        for start, pages, shift, _ in extents.tolist():
            first = (start - addresses.start // PAGE * PAGE) // PAGE
            if found and found[-1][2] == 1 << shift:
                last, count, size = found[-1]
                if last + count * size // PAGE == first:
                    found[-1] = (last, count + pages, size)
                    continue
            found.append((first, pages, 1 << shift))
    return found, survey


# --- base pages


@methods
def test_untouched_memory_is_absent(method: str) -> None:
    region = Region(HUGE)
    found, survey = look(region.range(), method)
    assert found == []
    assert survey.bytes_present == survey.bytes_zero == survey.bytes_swapped == 0


@methods
def test_base_pages_with_holes(method: str) -> None:
    region = Region(4 * HUGE)
    region.write(0, PAGE)
    region.write(7 * PAGE, 3 * PAGE)
    region.write(511 * PAGE, 2 * PAGE)  # over the border of a page table
    region.write(2 * HUGE, HUGE)  # a whole table of base pages is no huge page
    region.write(4 * HUGE - PAGE, PAGE)
    found, survey = look(region.range(), method)
    assert found == [
        (0, 1, PAGE),
        (7, 3, PAGE),
        (511, 2, PAGE),
        (1024, 512, PAGE),
        (2047, 1, PAGE),
    ]
    assert survey.bytes_present == 519 * PAGE
    assert survey.method == method


@methods
def test_a_range_cuts_base_pages_at_its_ends(method: str) -> None:
    region = Region(HUGE)
    region.write(0, HUGE)
    assert look(region.range(10 * PAGE, 5 * PAGE), method)[0] == [(0, 5, PAGE)]
    unaligned = region.range(10 * PAGE + 1, 5 * PAGE)
    assert look(unaligned, method)[0] == [(0, 6, PAGE)]
    assert look(unaligned, method, "inside")[0] == [(1, 4, PAGE)]


@methods
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pattern=st.binary(min_size=1, max_size=200),
    cut=st.tuples(st.integers(0, 99), st.integers(0, 99)),
)
def test_any_pattern_of_touched_pages(method: str, pattern: bytes, cut: tuple[int, int]) -> None:
    region = Region(len(pattern) * 8 * PAGE)
    present = np.unpackbits(np.frombuffer(pattern, np.uint8)).astype(bool)
    for page in np.flatnonzero(present):
        region.write(int(page) * PAGE, PAGE)
    first, last = sorted(c * len(present) // 100 for c in cut)
    last += 1
    found, survey = look(region.range(first * PAGE, (last - first) * PAGE), method)
    seen = np.zeros(last - first, bool)
    for start, pages, size in found:
        assert size == PAGE
        assert not seen[start : start + pages].any()
        seen[start : start + pages] = True
    assert (seen == present[first:last]).all()
    assert survey.bytes_present == int(present[first:last].sum()) * PAGE


# --- the zero page


@methods
def test_zero_page_is_nothing_to_move(method: str) -> None:
    region = Region(HUGE)
    region.read(0, 8 * PAGE)
    region.write(4 * PAGE, PAGE)
    survey = look(region.range(), method)[1]
    placement = locate(region.range(), survey=method)
    assert placement.bytes_present == PAGE
    result = move(region.range(), 0, survey=method)
    assert result.bytes_already == PAGE and result.complete
    if method == "scan":  # the only one that can tell
        assert survey.bytes_zero == placement.bytes_zero == result.bytes_zero == 7 * PAGE
        assert survey.bytes_present == PAGE
    if method == "pagemap":  # present for pagemap, on no node for move_pages
        assert survey.bytes_present == 8 * PAGE
        assert placement.bytes_unknown == result.bytes_gone == 7 * PAGE
    if method == "query":
        assert survey.bytes_present == PAGE
    assert not region.bytes[:PAGE].any() and region.bytes[4 * PAGE]


@needs_thp
@methods
def test_huge_zero_page_is_no_huge_page(method: str) -> None:
    region = Region(2 * HUGE, huge=True)
    assert region.bytes[0] == 0  # a read in an empty huge page: the huge zero page, or a small one
    region.write(HUGE, PAGE)
    placement = locate(region.range(), survey=method)
    assert placement.bytes_present == placement.on(0) == HUGE
    assert placement.by_kind("base" if method == "query" else "thp") == HUGE


# --- transparent huge pages


@needs_thp
@pytest.mark.parametrize("method", [pytest.param("scan", marks=needs_scan), "pagemap"])
def test_huge_and_base_pages(method: str) -> None:
    region = Region(8 * HUGE)
    region.advise(mmap.MADV_HUGEPAGE, HUGE, 2 * HUGE)
    region.advise(mmap.MADV_HUGEPAGE, 5 * HUGE, HUGE)
    region.write(HUGE - 3 * PAGE, 3 * PAGE)
    region.write(HUGE, PAGE)  # one byte makes all of it present
    region.write(2 * HUGE, PAGE)
    region.write(3 * HUGE, 5 * PAGE)
    region.write(5 * HUGE + PAGE, PAGE)
    region.write(7 * HUGE, HUGE)
    found, survey = look(region.range(), method)
    assert found == [
        (509, 3, PAGE),
        (512, 2, HUGE),
        (1536, 5, PAGE),
        (2560, 1, HUGE),
        (3584, 512, PAGE),
    ]
    assert survey.bytes_present == 3 * HUGE + 520 * PAGE
    placement = locate(region.range(), survey=method, statuses=True)
    assert placement.by_kind("thp") == 3 * HUGE
    assert placement.by_kind("base") == 520 * PAGE
    assert placement.statuses is not None
    assert kinds(placement.statuses) == {PAGE: 520, HUGE: 3}


@needs_thp
def test_all_methods_agree_on_present_bytes() -> None:
    region = Region(6 * HUGE)
    region.advise(mmap.MADV_HUGEPAGE, 0, 3 * HUGE)
    region.write(0, PAGE)
    region.write(2 * HUGE, PAGE)
    for start in range(3 * HUGE, 6 * HUGE, 3 * PAGE):
        region.write(start, PAGE)
    expected = 2 * HUGE + len(range(3 * HUGE, 6 * HUGE, 3 * PAGE)) * PAGE
    for method in METHODS if scan_works() else METHODS[1:]:
        assert look(region.range(), method)[1].bytes_present == expected, method
        assert locate(region.range(), survey=method).on(0) == expected, method


@needs_thp
@methods
def test_a_split_huge_page_is_base_pages(method: str) -> None:
    region = Region(2 * HUGE, huge=True)
    region.write(0, PAGE)
    region.write(HUGE, PAGE)
    region.advise(mmap.MADV_DONTNEED, 100 * PAGE, PAGE)  # splits it, and makes a hole
    found, _ = look(region.range(), method)
    last = (512, 512, PAGE) if method == "query" else (512, 1, HUGE)
    joined = [(0, 100, PAGE), (101, 923, PAGE)]
    assert found == (joined if method == "query" else [(0, 100, PAGE), (101, 411, PAGE), last])


@needs_thp
@pytest.mark.parametrize("method", [pytest.param("scan", marks=needs_scan), "pagemap"])
def test_huge_pages_that_the_range_cuts(method: str) -> None:
    region = Region(6 * HUGE, huge=True)
    for start in range(HUGE, 5 * HUGE, HUGE):
        region.write(start, PAGE)
    middle = region.range(HUGE + 5 * PAGE, 2 * HUGE)  # the end of one, one whole, 5 pages of one
    found, survey = look(middle, method)
    assert [(pages, size) for _, pages, size in found] == [(3, HUGE)]
    assert found[0][0] == -5  # taken whole: it begins before the range
    assert survey.bytes_present == 3 * HUGE and survey.bytes_cut == 0
    found, survey = look(middle, method, "inside")
    assert found == [(507, 1, HUGE)]
    assert survey.bytes_present == HUGE
    assert survey.bytes_cut == HUGE
    result = move(middle, 0, partial="inside", survey=method)
    assert result.bytes_already == HUGE and result.bytes_cut == HUGE
    assert result.pages_already == {"base": 0, "thp": 1, "hugetlb": 0}
    assert result.bytes_not_present == 0
    # Without counting what the two cut pages have outside of the range.
    holes = region.range(HUGE - 7 * PAGE, 4 * HUGE + PAGE)
    assert move(holes, 0, survey=method).bytes_not_present == 7 * PAGE
    holes = region.range(4 * HUGE + 3 * PAGE, 2 * HUGE - 3 * PAGE)
    assert move(holes, 0, survey=method).bytes_not_present == HUGE
    assert locate(holes, survey=method).bytes_not_present == HUGE
    small = region.range(2 * HUGE + PAGE, PAGE)
    assert move(small, 0, survey=method).bytes_already == HUGE
    result = move(small, 0, partial="inside", survey=method)
    assert result.bytes_already == 0 and result.bytes_cut == PAGE and result.complete


@needs_thp
def test_no_frame_numbers_smaps_tells_the_huge_pages() -> None:
    def unprivileged() -> str:
        pure = Region(4 * HUGE, huge=True)
        pure.write(HUGE, PAGE)
        pure.write(2 * HUGE, PAGE)
        # A huge page, and enough base pages in one mapping that a full table of them may hide.
        mixed = Region(4 * HUGE)
        mixed.write(2 * HUGE, HUGE)
        mixed.advise(mmap.MADV_HUGEPAGE)
        mixed.write(0, PAGE)
        # A table of zero pages and real ones that looks like a huge page to pagemap.
        zeros = Region(4 * HUGE)
        zeros.read(2 * HUGE, HUGE)
        zeros.write(2 * HUGE, 100 * PAGE)
        zeros.advise(mmap.MADV_HUGEPAGE)
        zeros.write(0, PAGE)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        # What a program that begins as this user has; setuid() takes it away.
        libc = __import__("ctypes").CDLL(None)
        libc.prctl(4, 1, 0, 0, 0)
        assert not os.access("/proc/kpageflags", os.R_OK)
        placements = [locate(r.range(), survey="pagemap") for r in (pure, mixed, zeros)]
        sizes = [(p.by_kind("thp"), p.by_kind("base"), p.bytes_unknown) for p in placements]
        found, survey = look(pure.range(HUGE + PAGE, HUGE), "pagemap", "inside")
        result = move(zeros.range(), 0, survey="pagemap")
        return repr(
            (sizes, found, survey.bytes_cut, result.bytes_already, result.pages_already["thp"])
        )

    assert in_a_child(unprivileged) == repr(
        (
            [
                (2 * HUGE, 0, 0),
                (0, 2 * HUGE, 0),
                (HUGE, 100 * PAGE, HUGE - 100 * PAGE),
            ],
            [],
            HUGE,
            HUGE + 100 * PAGE,
            1,
        )
    )


# --- choice of the method


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="scan, pagemap, query"):
        locate(np.ones(1), survey="guess")


def test_without_pagemap_scan_the_next_method_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    # This kernel has it; tests/guest runs one that has not.
    monkeypatch.setattr(module, "_scan_error", lambda: errno.ENOTTY)
    region = Region(HUGE)
    region.write(0, 5 * PAGE)
    assert look(region.range())[1].method == "pagemap"
    assert locate(region.range()).survey == "pagemap"
    assert locate(region.range()).on(0) == 5 * PAGE
    with pytest.raises(UnsupportedError, match=r"6\.7"):
        locate(region.range(), survey="scan")


def test_without_proc_the_last_method_is_taken() -> None:
    def no_proc() -> str:
        region = Region(HUGE)
        region.write(0, 5 * PAGE)
        # A root without /proc: what is mapped stays, no file can be opened any more.
        os.chroot("/sys/kernel/mm")
        os.chdir("/")
        placement = locate(region.range())
        result = move(region.range(), 0)
        return f"{placement.survey} {placement.on(0)} {result.survey} {result.bytes_already}"

    assert in_a_child(no_proc) == f"query {5 * PAGE} query {5 * PAGE}"


def test_a_process_that_gave_up_its_user_and_may_not_open_its_own_files() -> None:
    def unprivileged() -> str:
        region = Region(HUGE)
        region.write(0, 5 * PAGE)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        assert not os.access("/proc/self/pagemap", os.R_OK)
        placement = locate(region.range())
        result = move(region.range(), 0)
        return f"{placement.survey} {placement.on(0)} {result.survey} {result.bytes_already}"

    assert in_a_child(unprivileged) == f"query {5 * PAGE} query {5 * PAGE}"


# --- windows


def test_status_table() -> None:
    extents = np.array(
        [(0x1000, 3, 12, 0), (0x200000, 2, 21, 1), (0x40000000, 1, 30, 2), (0x9000, 0, 12, 0)],
        EXTENT,
    )
    table = status_table(extents)
    assert table["address"].tolist() == [
        *(0x1000, 0x2000, 0x3000),
        *(0x200000, 0x400000),
        0x40000000,
    ]
    assert table["size"].tolist() == [PAGE] * 3 + [HUGE] * 2 + [1 << 30]
    assert len(status_table(extents[:0])) == 0


def test_more_extents_than_a_window_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    region = Region(16 * HUGE)
    for start in range(0, 16 * HUGE, 2 * PAGE):
        region.write(start, PAGE)
    monkeypatch.setattr(module, "_WINDOW_EXTENTS", 600)
    survey = Survey(resolve(region.range()))
    windows = [extents.copy() for extents in survey.windows()]
    assert len(windows) > 5
    assert all(len(extents) <= 600 for extents in windows)
    joined = np.concatenate(windows)
    assert (
        joined["start"] == region.address + np.arange(16 * 256, dtype=np.uint64) * 2 * PAGE
    ).all()
    assert (joined["pages"] == 1).all()
    result = move(region.range(), 0, statuses=True)
    assert result.bytes_already == 16 * 256 * PAGE
    assert result.statuses is not None
    assert (result.statuses["address"] == joined["start"]).all()
    assert result.bytes_not_present == 16 * 256 * PAGE


@methods
def test_a_process_that_ends_between_windows(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from regions import HUGE, PAGE, Region
        region = Region(16 * HUGE)
        for start in range(0, 16 * HUGE, 2 * PAGE):
            region.write(start, PAGE)
        print(hex(region.address), flush=True)
        input()
    """
    monkeypatch.setattr(module, "_WINDOW_EXTENTS", 600)
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(Path(__file__).parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        start = int(child.stdout.readline(), 16)
        survey = Survey(resolve(range(start, start + 16 * HUGE), child.pid), method=method)
        windows = survey.windows()
        next(windows)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        # Its pages are gone; that they were never there would be a wrong answer.
        with pytest.raises(ProcessGoneError):
            list(windows)
    finally:
        child.kill()
        child.communicate()


TERABYTE = """
    import mmap, os, sys
    sys.path.insert(0, sys.argv[1])
    import numpy as np
    from regions import HUGE, PAGE
    from pageferry import locate, move

    def peak():
        with open("/proc/self/status") as file:
            (line,) = (line for line in file if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    locate(np.ones(1 << 20))
    move(np.ones(1 << 20), 0)
    noreserve = 0x4000
    size = 1 << 40
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | noreserve)
    view = np.frombuffer(memory, np.uint8)
    touched = [0, 5 * PAGE, 1 << 30, (1 << 39) + 7 * PAGE, size - PAGE]
    for at in touched:
        view[at] = 1
    before = peak()
    placement = locate(view)
    result = move(view, 0)
    again = move(view, 0, statuses=True)
    grown = peak() - before
    assert placement.bytes_present == result.bytes_already == len(touched) * PAGE, placement
    assert result.bytes_not_present == placement.bytes_not_present == size - len(touched) * PAGE
    start = view.ctypes.data
    assert (again.statuses["address"] - start).tolist() == touched, again.statuses
    print(grown)
"""


@needs_scan
def test_a_terabyte_needs_no_list_of_its_pages() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TERABYTE), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 << 20


def test_hugetlb_pages() -> None:
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    if not pool.exists() or int(pool.read_text()) < 2:
        pytest.skip("no free hugetlb pages here; tests/guest has them")
    hugetlb = 0x40000
    with mmap.mmap(-1, 2 * HUGE, flags=PRIVATE | hugetlb) as memory:
        memory[0] = 1
        for method in METHODS:
            placement = locate(memory, survey=method)
            assert placement.by_kind("hugetlb") == placement.bytes_present == HUGE


def test_the_page_size_of_a_mapping() -> None:
    """Linux before 6.11 cannot be asked; then smaps is read."""
    region = Region(HUGE)
    with open("/proc/self/maps", "rb", buffering=0) as maps:
        answers = [lib.pf_mapping_page_bytes(maps.fileno(), at) for at in (region.address, 0)]
    assert answers in ([PAGE, -errno.ENOENT], [-errno.ENOTTY] * 2)


def test_extents_are_what_the_core_writes() -> None:
    assert EXTENT.itemsize == 24
    region = Region(HUGE)
    region.write(PAGE, PAGE)
    survey = Survey(resolve(region.range()))
    (extents,) = (window.copy() for window in survey.windows())
    assert extents.tolist() == [(region.address + PAGE, 1, 12, 0)]
    assert THP == 1

# SPDX-License-Identifier: Apache-2.0
"""Linux 6.1, without PAGEMAP_SCAN: the survey by pagemap, with kpageflags or smaps.

Run by: pageferry lab run --topology two-node --memory 768M --kernel stock-6.1
"""

from __future__ import annotations

import errno
import mmap
import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest
from placement import HUGE, PAGE, Memory, Pinned, become_nobody, in_a_child

from pageferry import UnsupportedError, locate, move

SIZE = 8 << 20
ROOT = Path(__file__).parents[2]


def test_the_machine() -> None:
    assert tuple(map(int, platform.release().split(".")[:2])) < (6, 7)
    with pytest.raises(UnsupportedError, match=r"6\.7"):
        locate(np.ones(1), survey="scan")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", Memory.KINDS)
def test_there_and_back(kind: str, threads: int, pools: tuple[Path, Path]) -> None:
    if kind == "hugetlb":
        for pool in pools:
            pool.write_text(str(SIZE // HUGE))
    memory = Memory(kind, SIZE, node=0)
    for node in (1, 0):
        result = move(memory.words, node, threads=threads)
        assert result.survey == "pagemap" and result.complete
        assert result.pages_moved == {
            name: SIZE // memory.unit if name == memory.report_kind else 0
            for name in ("base", "thp", "hugetlb")
        }
        assert memory.nodes() == {node: SIZE}
        assert locate(memory.words).by_kind(memory.report_kind) == SIZE
        memory.check()


@pytest.mark.parametrize("dumpable", [True, False])
def test_unprivileged(dumpable: bool) -> None:
    """Without frame numbers, smaps tells the huge pages; without smaps, pages are asked for."""

    def moves() -> object:
        huge = Memory("thp", SIZE, node=0)
        base = Memory("base", SIZE, node=0)
        become_nobody(dumpable=dumpable)
        found = []
        for memory in (huge, base):
            result = move(memory.words, 1)
            memory.check()
            assert memory.bytes == result.bytes_moved and result.complete
            found.append((result.survey, result.pages_moved["thp"]))
        return found

    expected = [("pagemap", 4), ("pagemap", 0)] if dumpable else [("query", 0), ("query", 0)]
    assert in_a_child(moves) == repr(expected)


def test_huge_pages_stay_huge_without_rights() -> None:
    huge = Memory("thp", SIZE, node=0)
    assert move(huge.words, 1, survey="query").bytes_moved == SIZE
    assert locate(huge.words).by_kind("thp") == SIZE
    assert huge.nodes() == {1: SIZE}
    huge.check()


def test_unprivileged_mixture() -> None:
    def moves() -> object:
        region = mmap.mmap(-1, 8 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        whole = np.frombuffer(region, np.uint8)
        start = -whole.ctypes.data % HUGE
        data = whole[start : start + 6 * HUGE]
        region.madvise(mmap.MADV_NOHUGEPAGE)
        data[:HUGE] = 1  # a full table of base pages
        region.madvise(mmap.MADV_HUGEPAGE)
        data[2 * HUGE : 4 * HUGE] = 2
        expected = data.copy()[: 4 * HUGE]
        become_nobody()
        size = 3 * HUGE
        for node in (1, 0):
            for target in (data[:HUGE], data[2 * HUGE : 4 * HUGE]):
                result = move(target, node)
                assert result.complete, result
            placement = locate(data[: 4 * HUGE])
            assert placement.on(node) == size, placement
        assert (data[: 4 * HUGE] == expected).all()
        return "whole"

    assert in_a_child(moves) == "'whole'"


def test_source_filter_and_statuses() -> None:
    memory = Memory("base", SIZE, node=0)
    half = memory.words[: len(memory.words) // 2]
    assert move(half, 1).bytes_moved == SIZE // 2
    result = move(memory.words, 1, source=[0], statuses=True)
    assert result.bytes_moved == result.bytes_already == SIZE // 2
    assert result.statuses is not None and (result.statuses["status"] == 1).all()
    memory.check()


def test_pinned_page() -> None:
    memory = Memory("base", 1 << 20, node=0)
    pinned = Pinned([memory.address + 9 * PAGE])
    result = move(memory.words, 1)
    assert result.failed == {errno.EBUSY: 1}
    assert result.failures[0].address == memory.address + 9 * PAGE
    assert memory.nodes() == {0: PAGE, 1: (1 << 20) - PAGE}
    pinned.release()
    assert move(memory.words, 1).complete and memory.nodes() == {1: 1 << 20}
    memory.check()


def test_c_program() -> None:
    path = ROOT / "build-tests-gcc/tests/c/test-kernel_engine"
    if not path.exists():
        pytest.skip("tests/host/test_c_programs.py has not built it")
    done = subprocess.run([path], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "2 nodes" in done.stdout

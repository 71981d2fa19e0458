# SPDX-License-Identifier: Apache-2.0
"""Transparent huge pages switched off.

Run by: pageferry lab run --topology two-node --memory 1536M --cpus 2
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from placement import HUGE, PAGE, Memory, on

from pageferry import locate, move
from pageferry.bench.memory import PageArray

SIZE = 8 << 20
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.fixture(scope="module", autouse=True)
def _never() -> Iterator[None]:
    before = re.search(r"\[(\w+)\]", ENABLED.read_text())
    assert before
    ENABLED.write_text("never")
    yield
    ENABLED.write_text(before[1])


def test_the_machine() -> None:
    assert "[never]" in ENABLED.read_text()


@pytest.mark.parametrize("method", ["scan", "pagemap", "query"])
def test_advice_for_huge_pages_gives_base_pages(method: str) -> None:
    region = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region.madvise(mmap.MADV_HUGEPAGE)
    data = np.frombuffer(region, np.uint64)
    with on(0):
        data[:] = np.arange(len(data))
    for node in (1, 0):
        result = move(data, node, survey=method, threads=2)
        assert result.complete and result.bytes_moved == SIZE
        assert result.pages_moved == {"base": SIZE // PAGE, "thp": 0, "hugetlb": 0}
        assert locate(data, survey=method).nodes == {node: {"base": SIZE, "thp": 0, "hugetlb": 0}}
    assert (data == np.arange(len(data))).all()


def test_hugetlb_pages_are_another_thing(pools: tuple[Path, Path]) -> None:
    for pool in pools:
        pool.write_text("4")
    memory = Memory("hugetlb", 4 * HUGE, node=0)
    result = move(memory.words, 1)
    assert result.pages_moved["hugetlb"] == 4 and memory.nodes() == {1: SIZE}
    memory.check()


def test_the_bench_says_what_is_missing() -> None:
    with pytest.raises(MemoryError, match="transparent_hugepage"):
        PageArray(2, HUGE)

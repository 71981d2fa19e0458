# SPDX-License-Identifier: Apache-2.0
"""The patched kernel with its own checks on: a copy that fails, fails its folio only.

Run by: pageferry lab run --topology hot-plug --memory 640M --cpus 4 --kernel patched-debug
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kernel_loads import failing_copies, failures, move_pages
from kernel_log import complaints
from placement import HUGE, Memory

SIZE = 16 << 20


@pytest.fixture(autouse=True)
def _nothing_to_complain() -> Iterator[None]:
    assert complaints() == []
    yield
    assert complaints() == []


@pytest.fixture(scope="module")
def fail() -> Iterator[Callable[[int], None]]:
    """Make so many percent of the page copies by several threads fail."""
    with failing_copies() as set_percent:
        yield set_percent


@pytest.mark.parametrize("percent", [1, 100])
@pytest.mark.parametrize("kind", ["base", "thp", "hugetlb"])
def test_a_copy_that_fails_fails_its_folio_only(
    kind: str, percent: int, fail: Callable[[int], None], pools: tuple[Path, Path]
) -> None:
    if kind == "hugetlb":
        for pool in pools:
            pool.write_text(str(SIZE // HUGE))
    memory = Memory(kind, SIZE, node=0)
    before = failures()
    fail(percent)
    for turn in range(6):
        assert move_pages(memory, 1 - turn % 2) >= 0
        memory.check()
    fail(0)
    assert failures() > before
    for node in (1, 0):
        for _ in range(20):
            if move_pages(memory, node) == 0:
                break
        assert memory.nodes() == {node: SIZE}
        memory.check()

# SPDX-License-Identifier: Apache-2.0
"""The patched kernel with its own checks on: copies that fail, and huge pages not to be had.

Run by: pageferry lab run --topology hot-plug --memory 640M --cpus 4 --kernel patched-debug
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kernel_loads import failing_copies, failures, move_pages
from kernel_log import complaints
from placement import HUGE, PAGE, Memory

from pageferry.procfs import migration_counters

SIZE = 16 << 20
NO_MEMORY = Path("/sys/kernel/debug/fail_page_alloc")


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


@pytest.fixture
def no_huge_pages() -> Iterator[None]:
    """Have each allocation of 2 MiB and more fail."""
    wanted = {
        "ignore-gfp-wait": "N",
        "ignore-gfp-highmem": "N",
        "min-order": "9",
        "times": "-1",
        "interval": "1",
        "verbose": "0",
        "probability": "100",
    }
    for name, value in wanted.items():
        (NO_MEMORY / name).write_text(value)
    try:
        yield
    finally:
        (NO_MEMORY / "probability").write_text("0")


def test_huge_pages_without_room_for_them_are_split(request: pytest.FixtureRequest) -> None:
    """A batch of several huge pages is split, and all of it is moved by base pages."""
    memory = Memory("thp", SIZE, node=0)
    request.getfixturevalue("no_huge_pages")
    before = migration_counters()["thp_migration_split"]
    assert move_pages(memory, 1) >= 0
    assert migration_counters()["thp_migration_split"] == before + SIZE // HUGE
    memory.check()
    memory.unit = PAGE  # one that somebody looks at just then stays for another time
    for _ in range(20):
        if move_pages(memory, 1) == 0:
            break
    assert memory.nodes() == {1: SIZE}
    memory.check()

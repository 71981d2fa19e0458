# SPDX-License-Identifier: Apache-2.0
"""The live module on the stock kernel: loads, is in force, copies right, and leaves.

Run by: pageferry lab run --memory 512M --cpus 2 (scripts/test_kernel live-module builds it)

Nothing else migrates while it loads: rewriting code that another CPU runs is what the emulator
gets wrong, with any module and with none (docs/kernel.md).
"""

from __future__ import annotations

import errno
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from placement import HUGE, Memory
from test_patched import SIZE, VM, move_pages

from pageferry.flags import MPOL_MF_MOVE, MPOL_MF_MOVE_MT

MODULE = Path(__file__).parents[2] / "build-tests-kernel/pageferry_mt.ko"
LIVE = Path("/sys/kernel/livepatch/pageferry_mt")
QUEUE = Path("/sys/devices/virtual/workqueue/pageferry_mt")


def wait_until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def unload() -> None:
    (LIVE / "enabled").write_text("0")
    wait_until(lambda: not LIVE.exists())
    # The last reference goes a moment after the directory.
    wait_until(
        lambda: not subprocess.run(["rmmod", "pageferry_mt"], capture_output=True).returncode
    )


@pytest.fixture
def loaded() -> Iterator[None]:
    if not MODULE.exists():
        pytest.skip("scripts/test_kernel live-module has not built it")
    subprocess.run(["insmod", MODULE], check=True)
    wait_until(lambda: (LIVE / "transition").read_text().strip() == "0")
    yield
    unload()
    assert not (VM / "mt_page_copy").exists() and not QUEUE.exists()


def test_off_at_first_and_no_flag(loaded: None) -> None:
    assert (VM / "mt_page_copy").read_text() == "0\n"
    assert (VM / "mt_page_copy_threads").read_text() == "4\n"
    assert move_pages(None, 0, MPOL_MF_MOVE | MPOL_MF_MOVE_MT) == -errno.EINVAL
    with pytest.raises(OSError):
        (VM / "mt_page_copy").write_text("2")


@pytest.mark.parametrize("turn", [1, 2])
@pytest.mark.parametrize("kind", ["base", "thp", "hugetlb"])
def test_there_and_back(kind: str, turn: int, loaded: None, pools: tuple[Path, Path]) -> None:
    if kind == "hugetlb":
        for pool in pools:
            pool.write_text(str(SIZE // HUGE))
    memory = Memory(kind, SIZE, node=0)
    for value in ("1", "0"):
        (VM / "mt_page_copy").write_text(value)
        for node in (1, 0):
            while (code := move_pages(memory, node, MPOL_MF_MOVE)) > 0:
                pass
            assert code == 0 and memory.nodes() == {node: SIZE}
            memory.check()

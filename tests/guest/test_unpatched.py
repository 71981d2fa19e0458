# SPDX-License-Identifier: Apache-2.0
"""A kernel without the series: what is new in it is not there, and is not taken to be.

Run by: scripts/test_kernel vanilla, which is the same source and configuration, and live-module,
which is the distribution's kernel.
"""

from __future__ import annotations

import errno
import subprocess

import pytest
from placement import Memory
from test_patched import MT, SELFTEST, SIZE, VM, mbind, move_pages

from pageferry import move, syscalls


def test_the_flag_is_refused_and_nothing_moves() -> None:
    memory = Memory("base", 1 << 20, node=0)
    assert move_pages(memory, 1, MT) == -errno.EINVAL
    assert mbind(memory, 1, MT) == -errno.EINVAL
    assert memory.nodes() == {0: 1 << 20}
    assert not syscalls.kernel_has_mt()


@pytest.mark.parametrize("kind", ["base", "thp"])
def test_the_kernel_engine_does_without(kind: str) -> None:
    memory = Memory(kind, SIZE, node=0)
    result = move(memory.words, 1, threads=2)
    assert result.complete and result.bytes_moved == SIZE and not result.kernel_mt
    memory.check()


def test_no_tunable() -> None:
    assert not list(VM.glob("mt_page_copy*"))


def test_kselftests_are_skipped() -> None:
    if not SELFTEST.exists():
        pytest.skip("scripts/test_kernel has not built it")
    done = subprocess.run([SELFTEST, "-f", "migration_mt"], capture_output=True, text=True)
    assert done.returncode == 0 and "# SKIP" in done.stdout, done.stdout + done.stderr

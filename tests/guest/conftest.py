# SPDX-License-Identifier: Apache-2.0
"""These tests run in lab guests: see machines.toml for which machine runs which file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pageferry import pressure

if os.environ.get("PAGEFERRY_LAB") != "1":
    collect_ignore_glob = ["test_*.py"]

#: What moves or holds pages at moments of its own: a page that is held is a page that is busy.
_QUIET = {
    "/proc/sys/kernel/numa_balancing": "0",
    "/proc/sys/vm/compaction_proactiveness": "0",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs": "4000000000",
}
_POOL = "/sys/devices/system/node/node{}/hugepages/hugepages-2048kB/nr_hugepages"


@pytest.fixture(scope="session", autouse=True)
def _the_kernel_moves_nothing_by_itself() -> None:
    for path, value in _QUIET.items():
        if Path(path).exists():
            Path(path).write_text(value)


@pytest.fixture(autouse=True)
def _nobody_else_wants_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in tests/conftest.py: plans take fewer threads on a busy machine."""
    monkeypatch.setattr(pressure, "_last", (time.monotonic() + 1e9, pressure.Pressure()))
    monkeypatch.setattr(pressure, "others_running", lambda _=0: 0)


@pytest.fixture
def pools() -> Iterator[tuple[Path, Path]]:
    """The number of hugetlb pages of nodes 0 and 1, to be written; given back at the end."""
    files = Path(_POOL.format(0)), Path(_POOL.format(1))
    yield files
    for file in files:
        file.write_text("0")

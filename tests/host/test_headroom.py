# SPDX-License-Identifier: Apache-2.0
"""How much memory may still be taken before the OOM killer is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pageferry import NodeFullError, headroom, populate
from pageferry.headroom import PER_THREAD, cgroup_room, threads_with_room
from pageferry.pages import BASE, EXTENT
from pageferry.user_engine import UserRun

MIB = 1 << 20


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A machine with 1 GiB available, and a cgroup of each version two levels down."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("5:cpu,memory:/pod/box\n0::/pod/box\n")
    (tmp_path / "proc/meminfo").write_text("MemAvailable:    1048576 kB\n")
    for base in ("sys/fs/cgroup", "sys/fs/cgroup/memory"):
        (tmp_path / base / "pod/box").mkdir(parents=True)
    return tmp_path


def limit(group: Path, most: object, used: int, cache: int = 0, *, old: bool = False) -> None:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(
        names if old else ("memory.max", "memory.current"), (most, used), strict=True
    ):
        (group / name).write_text(f"{value}\n")
    prefix = "total_" if old else ""
    (group / "memory.stat").write_text(
        f"anon 5\n{prefix}inactive_file {cache}\n{prefix}active_file {cache}\nworkingset 1\n"
    )


def test_no_limit(tree: Path) -> None:
    assert cgroup_room(tree) is None
    limit(tree / "sys/fs/cgroup/pod/box", "max", 5 * MIB)
    limit(tree / "sys/fs/cgroup/memory/pod/box", 9223372036854771712, 5 * MIB, old=True)
    assert cgroup_room(tree) is None
    assert cgroup_room(tree / "nowhere") is None
    (tree / "proc/self/cgroup").write_text("0::/../other\n")
    limit(tree / "sys/fs/cgroup", 10 * MIB, 5 * MIB)
    assert cgroup_room(tree) is None  # whose cgroup that is cannot be known


def test_the_tightest_counts_with_half_its_cache(tree: Path) -> None:
    limit(tree / "sys/fs/cgroup/pod/box", 100 * MIB, 90 * MIB, cache=8 * MIB)
    assert cgroup_room(tree) == 18 * MIB
    limit(tree / "sys/fs/cgroup/pod", 200 * MIB, 195 * MIB)
    assert cgroup_room(tree) == 5 * MIB
    limit(tree / "sys/fs/cgroup/memory/pod", 50 * MIB, 60 * MIB, cache=2 * MIB, old=True)
    assert cgroup_room(tree) == 0


@pytest.mark.parametrize(
    ("room", "size", "threads"),
    [
        (1000 * MIB, 1000 * MIB, 4),
        (56 * MIB, 1000 * MIB, 3),
        (24 * MIB, 1000 * MIB, 1),
        (23 * MIB, 1000 * MIB, 0),
        (10 * MIB, 2 * MIB, 4),
        (9 * MIB, 2 * MIB, 0),
        (0, 4096, 0),
    ],
)
def test_threads_that_have_room(tree: Path, room: int, size: int, threads: int) -> None:
    limit(tree / "sys/fs/cgroup/pod/box", 2000 * MIB, 2000 * MIB - room)
    found, why = threads_with_room(4, size, tree)
    assert found == threads
    assert ("memory cgroup" in why) == (threads == 0)


def test_a_machine_that_is_almost_full(tree: Path) -> None:
    (tree / "proc/meminfo").write_text("MemAvailable: 20480 kB\n")
    assert threads_with_room(2, 100 * MIB, tree)[0] == 0
    assert "machine" in threads_with_room(2, 100 * MIB, tree)[1]
    (tree / "proc/meminfo").write_text("Nothing: 1 kB\n")
    assert threads_with_room(2, 100 * MIB, tree) == (2, "")


def test_without_room_all_is_for_the_kernel_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is made up: what happens at a real one is in tests/guest/test_death.py."""
    monkeypatch.setattr(headroom, "cgroup_room", lambda root: 3 * MIB)
    run = UserRun(0, "checked", trial=False, stall_ms=None, exact=False)
    extents = np.array([(1 << 30, PER_THREAD >> 12, 12, BASE)], EXTENT)
    code, left = run.run(extents)
    assert code == 0 and (left == extents).all() and not run.bytes_done


def test_an_array_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(populate, "cgroup_room", lambda root: 3 * MIB)
    with pytest.raises(NodeFullError, match="allows about 3 MiB"):
        populate.check_room(0, 4 * MIB)
    populate.check_room(0, 2 * MIB)

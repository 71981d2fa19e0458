# SPDX-License-Identifier: Apache-2.0
"""bind(), interleave() and migrate_pages(): policies, refusals, and the kernel's node mapping."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest
from regions import HUGE, PAGE, Region

import pageferry
from pageferry import flags
from pageferry.policy import POLICIES, node_pairs
from pageferry.syscalls import get_mempolicy

HERE = min(get_mempolicy(flags=flags.MPOL_F_MEMS_ALLOWED).nodes)


@pytest.fixture
def region() -> Region:
    region = Region(4 * HUGE)
    region.write(0, region.size)
    return region


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy(region: Region, policy: str) -> None:
    nodes = [] if policy in ("default", "local") else [HERE]
    try:
        bound = pageferry.bind(region.bytes, nodes, policy=policy)
    except pageferry.UnsupportedError:
        assert policy in ("weighted-interleave", "preferred-many")
        pytest.skip("not in this kernel")
    assert bound.complete and bound.policy == policy and bound.nodes == tuple(nodes)
    assert bound.placement.on(HERE) == region.size and bound.bytes_elsewhere == 0
    now = get_mempolicy(region.address, flags.MPOL_F_ADDR)
    assert now == (POLICIES[policy], frozenset(nodes))


def test_only_the_policy(region: Region) -> None:
    assert pageferry.bind(region.bytes, HERE, move=False).bytes_moved == 0
    assert get_mempolicy(region.address, flags.MPOL_F_ADDR).mode == flags.MPOL_BIND


def test_part_of_an_array(region: Region) -> None:
    """Whole pages, and no others."""
    pageferry.bind(region.bytes[PAGE + 5 : 2 * PAGE + 6], HERE)
    modes = [get_mempolicy(region.address + i * PAGE, flags.MPOL_F_ADDR).mode for i in range(4)]
    assert modes == [0, flags.MPOL_BIND, flags.MPOL_BIND, 0]


def test_interleave(region: Region) -> None:
    bound = pageferry.interleave(region.bytes, [HERE])
    assert bound.complete and bound.policy == "interleave"
    assert get_mempolicy(region.address, flags.MPOL_F_ADDR).mode == flags.MPOL_INTERLEAVE


def test_an_empty_array() -> None:
    bound = pageferry.bind(np.zeros(0), HERE)
    assert bound.complete and bound.placement.bytes_present == 0


def test_refusals(region: Region) -> None:
    with pytest.raises(pageferry.NodeError, match="1000"):
        pageferry.bind(region.bytes, 1000)
    with pytest.raises(pageferry.NodeError, match="empty"):
        pageferry.bind(region.bytes, [])
    with pytest.raises(pageferry.NodeError, match="takes no nodes"):
        pageferry.bind(region.bytes, [HERE], policy="local")
    with pytest.raises(TypeError, match="a node is a number"):
        pageferry.bind(region.bytes, ["0"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="policy is one of"):
        pageferry.bind(region.bytes, HERE, policy="nearest")
    hole = range(region.address, region.address + (1 << 46))
    with pytest.raises(pageferry.RangeError, match="mapped"):
        pageferry.bind(hole, HERE, move=False)


def test_migrate_a_process() -> None:
    sleeper = subprocess.Popen(["sleep", "600"])
    try:
        done = pageferry.migrate_pages(sleeper.pid, HERE, HERE)
        assert done.pairs == () and done.not_moved == 0 and done.pid == sleeper.pid
        assert done.placement.bytes_present > 0
    finally:
        sleeper.kill()
        sleeper.wait()
    with pytest.raises(pageferry.ProcessGoneError):
        pageferry.migrate_pages(sleeper.pid, HERE, HERE)
    with pytest.raises(pageferry.NodeError):
        pageferry.migrate_pages(os.getpid(), HERE, 1000)
    with pytest.raises(pageferry.NodeError, match="empty"):
        pageferry.migrate_pages(os.getpid(), [], HERE)


@pytest.mark.parametrize(
    ("old", "new", "pairs"),
    [
        ([0], [1], [(0, 1)]),
        ([0], [0], []),
        ([0, 1], [1], [(0, 1)]),
        ([0, 1], [2, 3], [(0, 2), (1, 3)]),
        ([2, 3, 4], [3, 4, 5], [(4, 5), (3, 4), (2, 3)]),  # the kernel's own examples
        (range(8), [3, 4, 5], [(7, 4), (6, 3), (2, 5), (1, 4), (0, 3)]),
        ([0, 1, 2], [1, 2], [(0, 1)]),
        ([0, 1], [0, 1], []),
    ],
)
def test_nodes_are_mapped_as_the_kernel_maps_them(
    old: list[int], new: list[int], pairs: list[tuple[int, int]]
) -> None:
    assert list(node_pairs(old, new)) == pairs

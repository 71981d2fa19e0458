# SPDX-License-Identifier: Apache-2.0
"""Arrays kept on one of two nodes, and processes dealt out over both.

Run by: pageferry lab run --topology two-node --memory 1536M --cpus 2
"""

from __future__ import annotations

import os

import numpy as np
from placement import Memory, in_a_child

import pageferry
from pageferry.keeping import Keeper
from pageferry.own_node import own_node, pin_to

SIZE = 8 << 20


def test_arrays_come_to_the_node() -> None:
    memories = [Memory("base", SIZE, node=1) for _ in range(2)]
    first, second = (memory.words for memory in memories)
    small = np.full(1000, 3, "u1")
    keeper = Keeper(0, threads=2)
    try:
        keeper.keep({"first": first, "more": [second, small]})
        assert keeper.settle(300)
        kept = keeper.kept()
    finally:
        keeper.close()
    assert kept.arrays == 2 and kept.bytes_moved >= 2 * SIZE
    assert not kept.bytes_failed and not kept.errors
    for memory in memories:
        assert memory.nodes() == {0: SIZE}
        memory.check()


def test_processes_are_dealt_out() -> None:
    machine = pageferry.topology()
    (first, a), (second, b), (third, c) = (own_node(machine, "test") for _ in range(3))
    assert (first, second, third) == (0, 1, 0)
    assert a and b and c
    b.close()
    again, d = own_node(machine, "test")
    assert again == 1 and d
    other, e = own_node(machine, "another-test")
    assert other == 0 and e
    # A process that ended, however, counts no more.
    assert in_a_child(lambda: own_node(machine, "third-test")[0]) == "0"
    assert in_a_child(lambda: own_node(machine, "third-test")[0]) == "0"
    for claim in (a, c, d, e):
        claim.close()


def test_pinned_to_a_node() -> None:
    def pinned() -> tuple[set[int], tuple[int, bool]]:
        pin_to(pageferry.topology(), 1)
        node, claim = own_node(pageferry.topology(), "test")
        return os.sched_getaffinity(0), (node, claim is None)

    cpus = set(pageferry.topology().node(1).cpus)
    assert in_a_child(pinned) == repr((cpus, (1, True)))

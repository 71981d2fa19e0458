# SPDX-License-Identifier: Apache-2.0
"""Policies with a move, on a machine with two nodes.

Run by: pageferry lab run --topology two-node --memory 896M --cpus 2
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
from placement import HUGE, PAGE, PRIVATE, Memory, Pinned, Script

import pageferry
from pageferry import flags
from pageferry.syscalls import get_mempolicy

SIZE = 8 << 20
_WEIGHTS = Path("/sys/kernel/mm/mempolicy/weighted_interleave")


def policy_at(address: int) -> tuple[int, frozenset[int]]:
    return get_mempolicy(address, flags.MPOL_F_ADDR)


@pytest.mark.parametrize("policy", ["bind", "preferred", "preferred-many"])
def test_bind(policy: str) -> None:
    memory = Memory("base", SIZE, node=0)
    for node in (1, 0):
        bound = pageferry.bind(memory.words, node, policy=policy)
        assert bound.complete and bound.bytes_moved == SIZE and bound.bytes_failed == 0
        assert memory.nodes() == {node: SIZE} and bound.placement.on(node) == SIZE
        memory.check()


def test_several_nodes_are_the_kernels() -> None:
    memory = Memory("base", SIZE, node=1)
    bound = pageferry.bind(memory.words, [0, 1])
    assert bound.complete and bound.bytes_moved == 0 and memory.nodes() == {1: SIZE}


def test_future_pages_follow() -> None:
    area = mmap.mmap(-1, SIZE, flags=PRIVATE)
    array = np.frombuffer(area, np.uint8)
    pageferry.bind(array, 1)
    array[::PAGE] = 1
    assert pageferry.locate(array).on(1) == SIZE


def test_a_page_that_stays() -> None:
    memory = Memory("base", SIZE, node=0)
    pinned = Pinned([memory.address])
    bound = pageferry.bind(memory.words, 1)
    assert not bound.complete and bound.bytes_elsewhere == bound.bytes_failed == PAGE
    assert policy_at(memory.address) == (flags.MPOL_BIND, {1})
    pinned.release()
    assert pageferry.bind(memory.words, 1).complete


@pytest.mark.parametrize("kind", ["base", "thp"])
def test_interleave(kind: str) -> None:
    """Each page goes where the policy would have put it, had it been touched now."""
    memory = Memory(kind, SIZE, node=0)
    bound = pageferry.interleave(memory.words, [0, 1], threads=2)
    assert bound.complete and memory.nodes() == {0: SIZE // 2, 1: SIZE // 2}
    assert bound.bytes_moved == SIZE // 2
    statuses = pageferry.locate(memory.words, statuses=True).statuses
    assert statuses is not None
    place = statuses["address"] // memory.unit
    assert (statuses["status"] == place % 2).all()
    memory.check()
    fresh = Memory(kind, SIZE, node=1)
    pageferry.interleave(fresh.words, [0, 1])
    area = mmap.mmap(-1, 3 * HUGE, flags=PRIVATE)
    area.madvise(mmap.MADV_NOHUGEPAGE if kind == "base" else mmap.MADV_HUGEPAGE)
    array = np.frombuffer(area, np.uint8)
    pageferry.interleave(array, [0, 1])
    array[::PAGE] = 1  # put there by the kernel
    table = pageferry.locate(array, statuses=True).statuses
    assert table is not None
    table = table[table["size"] == memory.unit]
    assert len(table) and (table["status"] == table["address"] // memory.unit % 2).all()
    assert pageferry.interleave(array, [0, 1]).bytes_moved == 0


@pytest.mark.skipif(not _WEIGHTS.exists(), reason="this kernel has no weighted interleaving")
def test_weighted_interleave() -> None:
    for node, weight in ((0, 3), (1, 1)):
        (_WEIGHTS / f"node{node}").write_text(str(weight))
    try:
        memory = Memory("base", SIZE, node=1)
        bound = pageferry.interleave(memory.words, [0, 1], weighted=True)
        assert bound.complete and memory.nodes() == {0: SIZE // 4 * 3, 1: SIZE // 4}
        area = mmap.mmap(-1, SIZE, flags=PRIVATE)
        area.madvise(mmap.MADV_NOHUGEPAGE)
        array = np.frombuffer(area, np.uint8)
        pageferry.interleave(array, [0, 1], weighted=True)
        array[::PAGE] = 1
        assert pageferry.interleave(array, [0, 1], weighted=True).bytes_moved == 0
    finally:
        for node in (0, 1):
            (_WEIGHTS / f"node{node}").write_text("0")


def test_migrate_a_process() -> None:
    code = f"""
        memory = Memory("base", {SIZE}, node=0)
        say(memory.address)
        hear(); memory.check(); say("whole")
    """
    with Script(code) as child:
        address = int(child.hear())
        done = pageferry.migrate_pages(child.pid, 0, 1, threads=2)
        assert done.pairs == ((0, 1),) and done.not_moved >= 0
        assert pageferry.locate(range(address, address + SIZE), pid=child.pid).on(1) == SIZE
        assert done.placement.on(1) >= SIZE
        child.say()
        assert child.hear() == "whole"

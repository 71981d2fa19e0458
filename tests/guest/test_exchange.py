# SPDX-License-Identifier: Apache-2.0
"""Two ranges swap their nodes while neither node has room for a copy, and programs write.

Run by: pageferry lab run --topology two-node --memory 1536M --cpus 2
"""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pytest
from placement import HUGE, PAGE

import pageferry
from pageferry import exchange
from pageferry.topology import node_free

SIZE = 128 << 20
FREE = 112 << 20  # less than either range has; the guest itself needs some
CHUNK = 1 << 18  # words


def fill(pools: tuple[Path, Path]) -> list[np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    """Take memory of both nodes until less is free than a range has; hold what is returned."""
    Path("/proc/sys/vm/drop_caches").write_text("3")
    held = []
    for node in (0, 1):
        # Pages set aside for hugetlb cost no time, but there may not be enough in one piece.
        pools[node].write_text(str(max(node_free(node) - FREE, 0) // HUGE))
    # What others have given up comes back to a node in the kernel's own time: until none is left.
    for _ in range(20):
        for node in (0, 1):
            rest = node_free(node) - FREE
            if rest > 0:
                held.append(pageferry.empty(rest, np.uint8, node=node, page_size="4K"))
        if all(node_free(node) < SIZE for node in (0, 1)):
            break
    return held


def write(side: np.ndarray[tuple[int], np.dtype[np.uint64]], factor: int) -> None:
    for first in range(0, len(side), CHUNK):
        side[first : first + CHUNK] = np.arange(first, first + CHUNK) * factor


def check(side: np.ndarray[tuple[int], np.dtype[np.uint64]], factor: int) -> None:
    """Compare every byte, in chunks: there is no memory for more."""
    for first in range(0, len(side), CHUNK):
        expected = np.arange(first, first + CHUNK) * factor
        assert (side[first : first + CHUNK] == expected.astype(np.uint64)).all()


def where(array: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> dict[int, int]:
    return {node: sum(sizes.values()) for node, sizes in pageferry.locate(array).nodes.items()}


@pytest.mark.parametrize(("pages", "threads"), [("4K", 2), ("2M", 1)])
def test_nodes_swap_and_bytes_stay(pages: str, threads: int, pools: tuple[Path, Path]) -> None:
    gc.collect()
    sides = [pageferry.empty(SIZE // 8, np.uint64, node=node, page_size=pages) for node in (0, 1)]
    for node, side in enumerate(sides):
        write(side, 2 + node)
    held = fill(pools)
    assert all(node_free(node) < SIZE for node in (0, 1))
    result = exchange(sides[0], sides[1], threads=threads)
    assert result.complete, result
    assert result.bytes_exchanged == SIZE and result.bytes_same == result.bytes_alone == 0
    kind = "base" if pages == "4K" else "thp"
    for node, side in enumerate(sides):
        assert where(side) == {1 - node: SIZE}
        assert pageferry.locate(side).by_kind(kind) == SIZE
        check(side, 2 + node)
    # Both on one node, or swapped in part: only what differs is exchanged.
    again = exchange(sides[0][: len(sides[0]) // 2], sides[1][: len(sides[1]) // 2])
    assert again.bytes_exchanged == SIZE // 2
    rest = exchange(sides[0], sides[1])
    assert rest.complete and rest.bytes_exchanged == SIZE
    assert where(sides[0]) == {0: SIZE // 2, 1: SIZE // 2}
    del held
    for node, side in enumerate(sides):
        check(side, 2 + node)


def test_one_node_already() -> None:
    sides = [pageferry.full(64 * PAGE, 1, np.uint8, node=1) for _ in range(2)]
    result = exchange(sides[0], sides[1])
    assert result.complete and result.bytes_same == 64 * PAGE and not result.bytes_exchanged


@pytest.mark.parametrize("pages", ["4K", "2M"])
def test_under_writers(pages: str) -> None:
    """Each writer adds 1 to a word of its own in every 512 bytes; none may get lost."""
    gc.collect()
    size = 8 << 20
    sides = [pageferry.zeros(size // 8, np.uint64, node=n, page_size=pages) for n in (0, 1)]
    stop = threading.Event()
    rounds = [0, 0]

    def add(own: int) -> None:
        words = [side[own::64] for side in sides]
        while not stop.is_set():
            for side in words:
                side += np.uint64(1)
            rounds[own] += 1

    threads = [threading.Thread(target=add, args=(own,)) for own in (0, 1)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(3):
            result = exchange(sides[0], sides[1])
            assert result.complete and result.bytes_exchanged == size
            assert where(sides[0]) == {1 - turn % 2: size}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for side in sides:
        for own in (0, 1):
            assert (side[own::64] == rounds[own]).all()
        assert not side[2::64].any()
    assert all(rounds)

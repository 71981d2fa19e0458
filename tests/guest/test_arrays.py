# SPDX-License-Identifier: Apache-2.0
"""Arrays and reservations on either of two nodes, and on a node that is full.

Run by: pageferry lab run --topology two-node --memory 1536M --cpus 2
"""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from placement import HUGE, PAGE, in_a_child, nodes_of, on

import pageferry
from pageferry import NodeFullError, populate

SIZE = 8 << 20


def nodes(array: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> dict[int, int]:
    """Bytes by node: by numa_maps, or by the kernel's answer for each page."""
    found = nodes_of(int(array.ctypes.data), array.nbytes)
    if sum(found.values()) == array.nbytes:
        return found
    return {node: sum(sizes.values()) for node, sizes in pageferry.locate(array).nodes.items()}


@pytest.mark.parametrize("node", [0, 1])
@pytest.mark.parametrize("pages", ["auto", "4K", "2M"])
def test_on_the_node(node: int, pages: str) -> None:
    gc.collect()
    with on(1 - node):  # the thread's own policy has no say
        array = pageferry.zeros(SIZE, np.uint8, node=node, page_size=pages)
    assert nodes(array) == {node: SIZE}
    kind = "base" if pages == "4K" else "thp"
    assert pageferry.locate(array).by_kind(kind) == SIZE
    array[:] = 7
    assert pageferry.move(array, 1 - node).complete
    assert nodes(array) == {1 - node: SIZE} and (array == 7).all()


@pytest.mark.parametrize("node", [0, 1])
def test_touched_later(node: int) -> None:
    gc.collect()
    array = pageferry.empty(SIZE, np.uint8, node=node, page_size="4K", populate=False)
    with on(1 - node):
        array[:] = 1
    assert nodes(array) == {node: SIZE}


@pytest.mark.parametrize("node", [0, 1])
def test_hugetlb_pages_of_the_node(node: int, pools: tuple[Path, Path]) -> None:
    pools[node].write_text(str(SIZE // HUGE))
    array = pageferry.zeros(SIZE, np.uint8, node=node, page_size="2M-hugetlb")
    assert nodes(array) == {node: SIZE}
    with pytest.raises(NodeFullError, match=f"node {1 - node} .*pool of 2M-hugetlb"):
        pageferry.zeros(HUGE, np.uint8, node=1 - node, page_size="2M-hugetlb")
    del array
    # All of them are free again; they move with the array when the other node's pool has none.
    again = pageferry.full(SIZE, 3, np.uint8, node=1 - node, page_size="2M-hugetlb")
    assert nodes(again) == {1 - node: SIZE} and (again == 3).all()


def anonymous() -> dict[int, int]:
    """Bytes of anonymous memory of this process by node, by numa_maps."""
    found = {0: 0, 1: 0}
    for line in Path("/proc/self/numa_maps").read_text().splitlines():
        words = line.split()
        if any(word.startswith("anon=") for word in words):
            for node in found:
                found[node] += sum(int(w[3:]) * PAGE for w in words if w.startswith(f"N{node}="))
    return found


@pytest.mark.parametrize("pages", ["4K", "2M"])
@pytest.mark.parametrize("node", [0, 1])
def test_reserved_memory_is_on_the_node(node: int, pages: str) -> None:
    gc.collect()
    size = 16 << 20
    before = anonymous()
    with on(1 - node), pageferry.reserve(node, size, pages) as reservation:
        assert reservation.held == size
        now = anonymous()
        assert now[node] - before[node] >= size - size // 8  # Python frees pages meanwhile
        assert now[1 - node] - before[1 - node] < size // 4
    assert anonymous()[node] - before[node] < size // 4


@pytest.mark.parametrize("what", ["4K", "auto", "reservation"])
def test_a_full_node_is_an_error(
    what: str, monkeypatch: pytest.MonkeyPatch, pools: tuple[Path, Path]
) -> None:
    """And neither SIGBUS nor the OOM killer: 128 MiB more than node 1 can give.

    The estimate that refuses this at once is switched off, as if others had taken the memory
    since; in a child, as the OOM killer would be the end of it. Pages set aside for hugetlb fill
    most of the node.
    """
    gc.collect()
    pools[1].write_text(str(int(populate.room(1) * 0.85) // HUGE))
    size = populate.room(1) + (128 << 20)
    size += -size % HUGE

    def ask() -> None:
        monkeypatch.setattr(populate, "room", lambda node: 1 << 40)
        before = sum(anonymous().values())
        with pytest.raises(NodeFullError, match=f"node 1 has no room for {size} bytes"):
            if what == "reservation":
                pageferry.reserve(1, size)
            else:
                pageferry.zeros(size, np.uint8, node=1, page_size=what)
        assert sum(anonymous().values()) - before < 8 << 20  # nothing is left behind
        assert pageferry.zeros(64 * PAGE, np.uint8, node=0).nbytes

    assert in_a_child(ask) == "None"


def test_the_estimate_refuses_first() -> None:
    with pytest.raises(NodeFullError, match="MiB can be had there"):
        pageferry.zeros(populate.room(1) + (256 << 20), np.uint8, node=1)

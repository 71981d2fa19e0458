# SPDX-License-Identifier: Apache-2.0
"""The warm pool: pages populated ahead, so that a move need not wait for the kernel's zeroing."""

from __future__ import annotations

import threading
from operator import index
from types import TracebackType

from ._native import lib
from .nodes import check_node
from .page_size import PageSize, parse_page_size
from .populate import PORTION, check_code, check_room, crew_for


class Reservation:
    """Bytes of pages on a node that the pool may hold, from ``reserve``; a context manager.

    ``bytes`` are what was reserved (0 after ``release``), in pages of ``page_size``.
    """

    def __init__(self, node: int, page_size: PageSize) -> None:
        self.node = node
        self.page_size = page_size.name
        self.bytes = 0
        self._shift = page_size.shift
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """What the pool holds of this node and page size now, all reservations together."""
        return int(lib.pf_pool_bytes(self.node, self._shift))

    def release(self) -> int:
        """Give the reservation up and return the bytes that were unmapped; again: nothing.

        Memory that an engine has taken out is its own and is unmapped when it comes back.
        """
        with self._lock:
            size, self.bytes = self.bytes, 0
        return int(lib.pf_pool_release(self.node, self._shift, size))

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Reservation of {self.bytes} bytes of {self.page_size} pages on node {self.node}>"


def reserve(
    node: int, nbytes: int, page_size: str = "4K", *, threads: int | str = "auto"
) -> Reservation:
    """Populate ``nbytes`` (rounded up to whole pages) on a node ahead of moves to it.

    The user engine copies into these pages instead of fresh ones, and gives the pages that a
    move leaves over back to the reservation of their node: what is reserved on both of two nodes
    stays warm when memory goes to and fro. The memory stays taken until ``release()``, or the end
    of the ``with`` block. It is not locked: where there is swap, the kernel may swap it out. A
    forked child has no pool.

    ``page_size`` is ``"4K"`` (the base page) or ``"2M"`` (a transparent huge page). Raises
    ``NodeError`` for a bad node, ``NodeFullError`` (a ``MemoryError``) when the node has no room,
    ``UnsupportedError`` where THPs are switched off; then nothing is left reserved. Rests on
    mbind(2), madvise(2) and, to know that the pages are there, move_pages(2).
    """
    check_node(node, None)
    size = parse_page_size(page_size)
    if size.hugetlb:
        raise ValueError(f"the pool has no hugetlb pages; take {page_size!r} arrays instead")
    nbytes = index(nbytes)
    if nbytes < 0:
        raise ValueError(f"cannot reserve {nbytes} bytes")
    reservation = Reservation(int(node), size)
    wanted = size.whole(nbytes)
    check_room(node, wanted)
    count, cpus = crew_for(node, wanted, threads)
    try:
        while reservation.bytes < wanted:
            portion = min(PORTION, wanted - reservation.bytes)
            check_room(node, portion)
            code = lib.pf_pool_reserve(node, size.shift, portion, count, cpus)
            if code >= 0:
                reservation.bytes += portion
            check_code(code, node, wanted, size)
    except BaseException:
        reservation.release()
        raise
    return reservation

# SPDX-License-Identifier: Apache-2.0
"""on_local_node(): memory on the node of the thread that works on it, and back afterwards."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from . import syscalls
from .errors import NodeError
from .flags import MPOL_MF_MOVE, MPOL_MF_MOVE_MT
from .locate import locate
from .migrate import move
from .nodes import machine

if TYPE_CHECKING:
    import numpy.typing as npt

    from .report import MoveResult
    from .target import Movable

_libc = ctypes.CDLL(None)


def local_node() -> int:
    """Return the node of the CPU that this thread runs on, or the nearest one with memory.

    Where the thread may run elsewhere too, the scheduler may take it there at any time: pin it
    (``os.sched_setaffinity``) if that matters. Raises ``NodeError`` when no node may be used.
    """
    here = machine()
    cpu = here.cpu(_libc.sched_getcpu())
    node = next((node for node in here.nodes if cpu is not None and node.id == cpu.node), None)
    usable = here.target_nodes
    if not usable:
        raise NodeError(errno.ENODEV, "this process may use no node's memory")
    if node is None:
        return usable[0]
    far = node.distances
    return min(usable, key=lambda id: (id != node.id, far.get(id, 1 << 16), id))


@contextmanager
def on_local_node(
    *targets: Movable, node: int | None = None, back: bool = True, threads: int | str = "auto"
) -> Iterator[list[MoveResult]]:
    """Bring ``targets`` to the node of this thread while the context is open, and back after it.

    ``with pageferry.on_local_node(a, b) as results:`` gives the ``MoveResult`` of each. ``node``
    is another one to bring them to. ``back=False`` leaves them there; else each page goes back to
    the node that it was on, as far as there is room there; pages that are new stay. Arguments
    and errors are those of ``move``; should it raise for one target, those before it are back.
    """
    chosen = local_node() if node is None else node
    results: list[MoveResult] = []
    origins: list[npt.NDArray[np.void]] = []
    try:
        for target in targets:
            if back:
                table = locate(target, threads=threads, statuses=True).statuses
                assert table is not None
                origins.append(table[(table["status"] >= 0) & (table["status"] != chosen)])
            results.append(move(target, chosen, threads=threads))
        yield results
    finally:
        for table in reversed(origins):
            if len(table):
                syscalls.move_pages(
                    0,
                    table["address"],
                    table["status"],
                    MPOL_MF_MOVE | MPOL_MF_MOVE_MT,
                    threads=None if isinstance(threads, str) else threads,
                )

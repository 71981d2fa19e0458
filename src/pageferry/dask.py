# SPDX-License-Identifier: Apache-2.0
"""A plugin for Dask: each worker's arrays stay on its node, and each says where they are.

``client.register_plugin(pageferry.dask.KeepOnNode())`` gives each worker a node, and has the
arrays among its results moved there. ``placement(client)`` tells where they are. Needs the package
distributed (``pip install 'pageferry[dask]'``), and pageferry where workers run.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import extras
from .errors import PageferryError
from .keeping import Keeper, Kept, arrays_in
from .locate import locate
from .own_node import own_node, pin_to
from .topology import topology

extras.require("distributed", "dask", "keeping the arrays of Dask's workers on their nodes")
from distributed.diagnostics.plugin import WorkerPlugin  # noqa: E402

_SETTLE_SECONDS = 30.0


@dataclass(frozen=True)
class WorkerPlacement:
    """Where the arrays of a worker are now. Sizes are bytes, whole pages.

    ``node`` is the worker's, ``cpus`` those that it may use. ``nodes`` has its arrays of at least
    ``least`` bytes by node; pages that two of them share count twice. ``kept`` is what the plugin
    did since it was registered. ``settled`` is False while it has more to move.
    """

    node: int
    cpus: tuple[int, ...]
    nodes: Mapping[int, int]
    kept: Kept
    settled: bool = True

    @property
    def bytes_elsewhere(self) -> int:
        """Bytes of its arrays on other nodes than its own."""
        return sum(size for node, size in self.nodes.items() if node != self.node)


class KeepOnNode(WorkerPlugin):  # type: ignore[misc]  # mypy does not look into distributed
    """Keeps the arrays that a worker holds on one node: results, and what it got from others.

    - ``node``: of every worker; by default each has its own. A worker whose CPUs are all on one
      node (numactl, a cpuset, Slurm) has that; workers that may run on several nodes are dealt
      out, machine by machine, over those with CPUs and memory.
    - ``pin``: keep the worker's threads on the CPUs of its node, if it may use any. In a worker
      with ``processes=False`` that is the whole program.
    - ``least``: smaller arrays than so many bytes stay where they are.
    - further options are those of ``pageferry.move``: ``threads``, ``max_gbps``, ``engine``.

    numpy arrays, buffers and tensors with DLPack are moved, also in lists, tuples and dicts; data
    frames are not looked into. A move runs beside the tasks, on a thread of its own; what is
    freed before its turn is not moved. What was spilled to disk is left there. A worker that
    joins later gets the plugin from the scheduler.
    """

    name = "pageferry"

    def __init__(
        self, node: int | None = None, *, pin: bool = True, least: int = 1 << 20, **options: Any
    ) -> None:
        if node is not None and (isinstance(node, bool) or not isinstance(node, int)):
            raise TypeError(f"a node is a number, not {node!r}")
        self.node = node
        self.pin = pin
        self.least = least
        self.options = options
        self._worker: Any = None
        self._keeper: Keeper | None = None
        self._claim: socket.socket | None = None

    def setup(self, worker: Any) -> None:
        """Choose the node, pin, and begin with what the worker holds. Raises ``NodeError``."""
        machine = topology()
        node = self.node
        if node is None:
            node, self._claim = own_node(machine, "pageferry-dask")
        self._keeper = Keeper(node, least=self.least, **self.options)
        self._worker = worker
        if self.pin:
            pin_to(machine, self._keeper.node)
        for value in _in_memory(worker).values():
            self._keeper.keep(value)

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Look at what has come into the worker's memory."""
        if finish == "memory" and self._keeper is not None:
            self._keeper.keep(_in_memory(self._worker).get(key))

    def teardown(self, worker: Any) -> None:
        """End the moves. CPUs and arrays stay as they are."""
        if self._keeper is not None:
            self._keeper.close()
        if self._claim is not None:
            self._claim.close()

    def placement(self, timeout: float = _SETTLE_SECONDS) -> WorkerPlacement:
        """Say where this worker's arrays are, after waiting for moves under way."""
        assert self._keeper is not None, "the plugin is not set up"
        settled = self._keeper.settle(timeout)
        nodes: Counter[int] = Counter()
        for value in list(_in_memory(self._worker).values()):
            for array in arrays_in(value, self.least):
                found = locate(array)
                nodes.update({at: found.on(at) for at in found.nodes})
        cpus = tuple(sorted(os.sched_getaffinity(0)))
        return WorkerPlacement(self._keeper.node, cpus, dict(nodes), self._keeper.kept(), settled)


def placement(client: Any, workers: Iterable[str] | None = None) -> Any:
    """Return where each worker's arrays are: a ``WorkerPlacement`` by address of the worker.

    ``client`` is a ``distributed.Client``; with an asynchronous one, await the answer. Raises
    ``PageferryError`` (ENOENT) when a worker does not have the plugin.
    """
    return client.run(_placement, workers=None if workers is None else list(workers))


async def _placement(dask_worker: Any) -> WorkerPlacement:
    plugins = (each for each in dask_worker.plugins.values() if isinstance(each, KeepOnNode))
    plugin = next(plugins, None)
    if plugin is None:
        raise PageferryError(
            errno.ENOENT,
            f"worker {dask_worker.address} does not keep its arrays on a node",
            "client.register_plugin(pageferry.dask.KeepOnNode())",
        )
    return await asyncio.to_thread(plugin.placement)


def _in_memory(worker: Any) -> Mapping[Any, Any]:
    """Return what the worker holds, but not what it has spilled to disk, by key."""
    data = getattr(worker.data, "memory", worker.data)  # of a SpillBuffer
    held: Mapping[Any, Any] = getattr(data, "d", data)  # asked past its order of use
    return held

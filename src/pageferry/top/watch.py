# SPDX-License-Identifier: Apache-2.0
"""What ``pageferry top`` watches: nodes, processes, and the rates of the kernel's counters."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from .. import procfs
from ..nodestat import NodeStat, memory_pressure, node_stats
from ..pages import PAGE_SIZE
from ..scan import BackgroundScan, ProcessScan, ProcessStat
from ..steering import moves

#: Names of the ways to sort, in the order in which a key goes through them.
SORTS = ("remote", "resident", "thp", "name", "pid")
_KEYS: dict[str, Callable[[ProcessStat], Any]] = {
    "remote": lambda process: (-process.remote, -process.resident),
    "resident": lambda process: -process.resident,
    "thp": lambda process: (-process.thp, -process.resident),
    "name": lambda process: (process.name, process.pid),
    "pid": lambda process: process.pid,
}


@dataclass(frozen=True)
class Sample:
    """One look at the machine. ``rates`` are changes of the kernel's counters per second."""

    nodes: tuple[NodeStat, ...]
    processes: tuple[ProcessStat, ...]
    pressure: dict[str, float]
    rates: dict[str, float] = field(default_factory=dict)
    waiting: int | None = None
    """The process whose lock the reading waits for, if it does for long."""
    moves: tuple[dict[str, Any], ...] = ()
    """What ``pageferry move`` does now in other processes, see ``steering.moves``."""

    @property
    def migrated(self) -> float:
        """Bytes that migrate per second, for whatever reason, huge pages too."""
        return self.rates.get("pgmigrate_success", 0.0) * PAGE_SIZE

    @property
    def unread(self) -> int:
        """Processes whose memory by node is not known: not read yet, or not to be read."""
        return sum(process.nodes is None for process in self.processes)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "nodes": [node.as_dict() for node in self.nodes],
            "processes": [process.as_dict() for process in self.processes],
            "memory_pressure_percent": self.pressure,
            "per_second": {name: round(rate, 3) for name, rate in self.rates.items()},
            "migrated_bytes_per_second": round(self.migrated),
            "moves": list(self.moves),
        }


class Watch:
    """Look again and again; rates are over the time between two looks."""

    def __init__(self, sort: str = "remote", scan: ProcessScan | None = None) -> None:
        self.sort = sort
        self._scan = BackgroundScan(scan or ProcessScan())
        self._counters = procfs.vmstat()
        self._looked = time.monotonic()

    def look(self, budget: float) -> Sample:
        """Look now; spend about ``budget`` seconds on reading where processes' memory is."""
        counters, now = procfs.vmstat(), time.monotonic()
        passed = max(now - self._looked, 1e-3)
        rates = {
            name: (value - self._counters.get(name, value)) / passed
            for name, value in counters.items()
        }
        self._counters, self._looked = counters, now
        processes = self._scan.refresh(budget)
        return Sample(
            node_stats(),
            self.sorted(processes),
            memory_pressure(),
            rates,
            waiting=self._scan.waiting,
            moves=tuple(moves()),
        )

    def sorted(self, processes: list[ProcessStat]) -> tuple[ProcessStat, ...]:
        """Return the processes in the order that was asked for."""
        return tuple(sorted(processes, key=_KEYS[self.sort]))

    def sort_next(self, sample: Sample) -> Sample:
        """Go on to the next way to sort; return ``sample`` in that order."""
        self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
        return replace(sample, processes=self.sorted(list(sample.processes)))

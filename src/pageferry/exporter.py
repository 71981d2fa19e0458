# SPDX-License-Identifier: Apache-2.0
"""Metrics of the machine for Prometheus: node memory, migration counters, process placement."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterator, Sequence
from typing import Any

from . import extras, procfs
from .nodestat import memory_pressure, node_stats
from .scan import BackgroundScan, ProcessScan, ProcessStat

_USES = ("anonymous", "shared", "file", "hugetlb", "kernel", "free")
_PRESSURES = ("none", "reclaim", "stall")


class MachineCollector:
    """What ``pageferry export`` shows.

    ``patterns`` are shell patterns for names of processes. A scrape spends about ``budget`` seconds
    on reading where processes' memory is; what it cannot reread is shown as it was, with its age.
    """

    def __init__(self, patterns: Sequence[str] = (), *, budget: float = 1.0) -> None:
        self._core = extras.require(
            "prometheus_client.core", "export", "showing metrics to Prometheus"
        )
        self._patterns = tuple(dict.fromkeys(patterns))
        self._budget = budget
        self._scan = BackgroundScan(
            ProcessScan(lambda pid, name: any(_matches(name, p) for p in self._patterns))
        )

    def collect(self) -> Iterator[Any]:
        """Yield the metrics as they are now."""
        begun = time.perf_counter()
        yield from self._nodes()
        yield from self._kernel()
        if self._patterns:
            yield from self._processes(self._scan.refresh(self._budget))
        yield self._gauge(
            "pageferry_scrape_seconds", "What collecting this took", time.perf_counter() - begun
        )

    def describe(self) -> list[Any]:
        """Return nothing: a registry then does not collect just to learn names."""
        return []

    def _nodes(self) -> Iterator[Any]:
        stats = node_stats()
        memory = self._gauges(
            "pageferry_node_memory_bytes", "Memory of a node, by use", "node", "use"
        )
        total = self._gauges("pageferry_node_memory_total_bytes", "Memory of a node", "node")
        hugetlb = self._gauges(
            "pageferry_node_hugetlb_free_bytes", "Free part of a node's hugetlb pools", "node"
        )
        pressure = self._gauges(
            "pageferry_node_pressure",
            "Free memory of a node against its watermarks: 0 above, 1 the kernel reclaims, "
            "2 whoever allocates waits",
            "node",
        )
        misses = self._counters(
            "pageferry_node_miss_bytes",
            "Allocated on this node as the node that was wanted was full",
            "node",
        )
        for stat in stats:
            node = str(stat.id)
            for use in _USES:
                memory.add_metric([node, use], getattr(stat, use))
            total.add_metric([node], stat.total)
            hugetlb.add_metric([node], stat.hugetlb_free)
            pressure.add_metric([node], _PRESSURES.index(stat.pressure))
            misses.add_metric([node], stat.misses)
        yield from (memory, total, hugetlb, pressure, misses)

    def _kernel(self) -> Iterator[Any]:
        vmstat = self._counters(
            "pageferry_vmstat",
            "The kernel's migration and NUMA counters: pages, in base pages or huge ones",
            "counter",
        )
        for name, value in procfs.vmstat().items():
            vmstat.add_metric([name], value)
        yield vmstat
        waiting = self._gauges(
            "pageferry_memory_pressure_ratio",
            "Share of the last 10 s in which tasks waited for memory",
            "tasks",
        )
        for tasks, percent in memory_pressure().items():
            waiting.add_metric([tasks], percent / 100)
        yield waiting
        yield self._gauge(
            "pageferry_numa_balancing", "1 if the kernel moves pages by itself",
            float(procfs.numa_balancing_on()),
        )  # fmt: skip

    def _processes(self, processes: Sequence[ProcessStat]) -> Iterator[Any]:
        count = self._gauges("pageferry_processes", "Processes, by name pattern", "pattern")
        unread = self._gauges(
            "pageferry_processes_unread",
            "Processes whose placement may not be read, or was not yet",
            "pattern",
        )
        placed = self._gauges(
            "pageferry_process_memory_bytes",
            "Memory of processes, by name pattern and node",
            "pattern",
            "node",
        )
        remote = self._gauges(
            "pageferry_process_remote_bytes",
            "Memory of processes on nodes that their threads do not run on",
            "pattern",
        )
        huge = self._gauges(
            "pageferry_process_huge_bytes", "Memory of processes in huge pages", "pattern", "kind"
        )
        age = self._gauges(
            "pageferry_process_age_seconds", "How long ago the oldest of these was read", "pattern"
        )
        for pattern in self._patterns:
            mine = [process for process in processes if _matches(process.name, pattern)]
            read = [process for process in mine if process.nodes is not None]
            count.add_metric([pattern], len(mine))
            unread.add_metric([pattern], len(mine) - len(read))
            nodes: dict[int, int] = {}
            for process in read:
                for node, size in (process.nodes or {}).items():
                    nodes[node] = nodes.get(node, 0) + size
            for node, size in sorted(nodes.items()):
                placed.add_metric([pattern, str(node)], size)
            remote.add_metric([pattern], sum(process.remote for process in read))
            huge.add_metric([pattern, "thp"], sum(process.thp for process in read))
            huge.add_metric([pattern, "hugetlb"], sum(process.hugetlb for process in read))
            age.add_metric([pattern], max((process.age for process in read), default=0.0))
        yield from (count, unread, placed, remote, huge, age)

    def _gauge(self, name: str, text: str, value: float) -> Any:
        return self._core.GaugeMetricFamily(name, text, value=value)

    def _gauges(self, name: str, text: str, *labels: str) -> Any:
        return self._core.GaugeMetricFamily(name, text, labels=list(labels))

    def _counters(self, name: str, text: str, *labels: str) -> Any:
        return self._core.CounterMetricFamily(name, text, labels=list(labels))


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern)

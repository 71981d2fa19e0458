# SPDX-License-Identifier: Apache-2.0
"""Processes and the nodes that their memory is on, looked at without getting in their way.

``/proc/PID/numa_maps`` tells the pages of a process by node. For it the kernel walks the page
tables with the process's mmap lock held, so a large process is held up by whoever looks too often.
Each round of a ``ProcessScan`` has a budget of time, and no process is looked at for more than a
small part of the time.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import procfs
from .pages import PAGE_SIZE
from .topology import Topology, topology

_PAGES = re.compile(rb" N(\d{1,9})=(\d{1,18})")
_PAGE_SIZE = re.compile(rb" kernelpagesize_kB=(\d{1,9})")
_HUGE = re.compile(rb"^AnonHugePages: +(\d{1,15}) kB", re.MULTILINE)

#: A process is not read again before this many times the time that reading it took.
PATIENCE = 50
_REFUSED_S = 30.0  # until a process that may not be read is asked again
_THREADS = 32  # of a process that are asked for their CPU


@dataclass(frozen=True)
class ProcessStat:
    """A process and its memory, sizes in bytes.

    ``nodes`` maps nodes to bytes; None before it was read, or when it may not be (``readable``
    False). ``home`` are the nodes on whose CPUs its threads ran last. ``age`` says how many seconds
    ago ``nodes`` was read, ``cost`` how many seconds that took.
    """

    pid: int
    name: str
    resident: int
    started: int
    nodes: dict[int, int] | None = None
    home: frozenset[int] = frozenset()
    thp: int = 0
    hugetlb: int = 0
    readable: bool = True
    age: float = field(default=0.0, compare=False)
    cost: float = field(default=0.0, compare=False)

    @property
    def remote(self) -> int:
        """Bytes on nodes none of whose CPUs its threads ran on last."""
        return sum(size for node, size in (self.nodes or {}).items() if node not in self.home)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "pid": self.pid,
            "name": self.name,
            "bytes_resident": self.resident,
            "nodes": None if self.nodes is None else {str(n): b for n, b in self.nodes.items()},
            "home_nodes": sorted(self.home),
            "bytes_remote": self.remote,
            "bytes_thp": self.thp,
            "bytes_hugetlb": self.hugetlb,
            "readable": self.readable,
            "age_seconds": round(self.age, 3),
        }


def memory_by_node(
    pid: int, *, proc: str | os.PathLike[str] = "/proc"
) -> tuple[dict[int, int], int]:
    """Return the bytes of a process by node, and how much of them is in hugetlb pages.

    Raises ``OSError`` as reading ``/proc/PID/numa_maps`` does. Pages that several processes map
    count for each of them.
    """
    nodes: dict[int, int] = {}
    hugetlb = 0
    for line in Path(proc, str(pid), "numa_maps").read_bytes().split(b"\n"):
        found = _PAGES.findall(line)
        if not found:
            continue
        told = _PAGE_SIZE.search(line)
        size = int(told[1]) * 1024 if told else PAGE_SIZE
        for node, pages in found:
            nodes[int(node)] = nodes.get(int(node), 0) + int(pages) * size
            hugetlb += int(pages) * size if size > PAGE_SIZE else 0
    return dict(sorted(nodes.items())), hugetlb


class ProcessScan:
    """All processes, their memory by node read little by little.

    ``wanted`` chooses by process id and name. Not for several threads at once.
    """

    def __init__(
        self,
        wanted: Callable[[int, str], bool] | None = None,
        *,
        machine: Topology | None = None,
        clock: Callable[[], float] = time.monotonic,
        proc: str | os.PathLike[str] = "/proc",
    ) -> None:
        self._wanted = wanted
        self._clock = clock
        self._proc = Path(proc)
        self._node_of = {cpu.id: cpu.node for cpu in (machine or topology()).cpus}
        self._known: dict[tuple[int, int], tuple[ProcessStat, float]] = {}
        self.latest: list[ProcessStat] = []
        """What is known so far; any thread may look."""
        self.reading: int | None = None
        """The process that is being read; any thread may look."""

    def refresh(self, budget: float) -> list[ProcessStat]:
        """Read for about ``budget`` seconds, at least one process; return all processes.

        Those never read come first, the largest of them first; then those read longest ago.
        """
        begun = self._clock()
        listed = {(stat.pid, stat.started): stat for stat in self._list()}
        self._known = {key: known for key, known in self._known.items() if key in listed}
        self.latest = [self._combined(stat, begun) for stat in listed.values()]
        due = [(self._order(key, stat, begun), key) for key, stat in listed.items()]
        for number, (order, key) in enumerate(sorted(due)):
            if order[0] == _NOT_YET or (number and self._clock() - begun > budget):
                break
            stat = listed[key]
            before = self._clock()
            self.reading = stat.pid
            read = self._read(stat)
            self.reading = None
            now = self._clock()
            self._known[key] = replace(read, cost=now - before), now
        now = self._clock()
        self.latest = [self._combined(stat, now) for stat in listed.values()]
        return self.latest

    def _order(self, key: tuple[int, int], stat: ProcessStat, now: float) -> tuple[int, float]:
        known = self._known.get(key)
        if known is None:
            return 0, -stat.resident
        old, read_at = known
        pause = PATIENCE * old.cost if old.readable else _REFUSED_S
        return (1, read_at) if now - read_at >= pause else (_NOT_YET, 0)

    def _combined(self, stat: ProcessStat, now: float) -> ProcessStat:
        known = self._known.get((stat.pid, stat.started))
        if known is None:
            return stat
        return replace(known[0], name=stat.name, resident=stat.resident, age=now - known[1])

    def _list(self) -> Iterator[ProcessStat]:
        """Yield the processes that have memory of their own, as cheaply as can be."""
        for folder in self._proc.iterdir():
            if not folder.name.isdecimal():
                continue
            try:
                name, fields = procfs.stat(folder / "stat")
            except (OSError, ValueError, IndexError):
                continue  # it has ended
            resident, started = int(fields[21]) * PAGE_SIZE, int(fields[19])
            # Kernel threads have none, and zombies have none any more.
            pid = int(folder.name)
            if int(fields[20]) and (self._wanted is None or self._wanted(pid, name)):
                yield ProcessStat(pid, name, resident, started)

    def _read(self, stat: ProcessStat) -> ProcessStat:
        try:
            nodes, hugetlb = memory_by_node(stat.pid, proc=self._proc)
        except OSError:
            return replace(stat, readable=False)
        folder = self._proc / str(stat.pid)
        try:
            huge = _HUGE.search((folder / "smaps_rollup").read_bytes())
        except OSError:
            huge = None
        return replace(
            stat,
            nodes=nodes,
            hugetlb=hugetlb,
            thp=int(huge[1]) * 1024 if huge else 0,
            home=self._home(folder),
        )

    def _home(self, folder: Path) -> frozenset[int]:
        nodes = set()
        try:
            threads = list((folder / "task").iterdir())
        except OSError:
            threads = []
        for thread in threads[:_THREADS]:
            try:
                cpu = int(procfs.stat(thread / "stat")[1][36])
            except (OSError, ValueError, IndexError):
                continue
            if (node := self._node_of.get(cpu)) is not None:
                nodes.add(node)
        return frozenset(nodes)


class BackgroundScan:
    """A scan that its caller never has to wait for: a thread of its own does the reading.

    Whoever reads ``numa_maps`` waits for the process's mmap lock, for as long as somebody else
    holds it. Then what is known of the others is returned. Any thread may call it.
    """

    def __init__(self, scan: ProcessScan) -> None:
        self._scan = scan
        self._lock = threading.Lock()
        self._idle = threading.Event()
        self._idle.set()
        self._error: BaseException | None = None

    def refresh(self, budget: float) -> list[ProcessStat]:
        """Read for about ``budget`` seconds; return all processes, after twice that at the latest.

        While a process holds the reading up, as ``waiting`` tells, nothing new is read.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._idle.is_set():
                self._idle.clear()
                # It must not keep the program from ending, however long it waits.
                threading.Thread(
                    target=self._work, args=(budget,), name="pageferry scan", daemon=True
                ).start()
        self._idle.wait(2 * budget + 0.1)
        return self._scan.latest

    @property
    def waiting(self) -> int | None:
        """The process that holds the reading up now, or None."""
        return None if self._idle.is_set() else self._scan.reading

    def _work(self, budget: float) -> None:
        try:
            self._scan.refresh(budget)
        except BaseException as error:
            self._error = error
        finally:
            self._idle.set()


_NOT_YET = 2

# SPDX-License-Identifier: Apache-2.0
"""Plan: the engine, the threads, their CPUs and the batch for one move, and the reasons."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from functools import lru_cache
from numbers import Integral
from typing import Any

from .flags import MigrateMode
from .topology import Topology

#: What one call of move_pages(2) should take: progress and Ctrl-C are looked at in between. The
#: program does not wait that long for a page: the kernel unmaps at most 512 at a time.
CALL_MS = 200
#: First size of a batch; the core adapts it to ``CALL_MS`` while it runs.
FIRST_BATCH_BYTES = 128 << 20
#: Each call drains lists on every CPU, whatever it moves: less than this for a thread and
#: sharing costs more than it brings.
BYTES_PER_THREAD = 16 << 20
MAX_THREADS = 1024


@dataclass(frozen=True)
class Plan:
    """How a move is done. ``reasons`` say why, in words, one to a line.

    ``cpus`` has one CPU for each thread, the caller's included; empty means that threads run
    where the scheduler puts them. ``batch_bytes`` is the first size of a batch, in bytes, and
    ``call_ms`` the time that one system call is kept to, in milliseconds.
    """

    engine: str
    threads: int
    cpus: tuple[int, ...]
    mode: MigrateMode
    batch_bytes: int
    call_ms: int
    reasons: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the plan for JSON."""
        value = asdict(self)
        value["mode"] = " | ".join(flag.name or "" for flag in self.mode)
        return value


def make_plan(
    machine: Topology,
    node: int,
    size: int,
    pages: int,
    *,
    threads: int | str = "auto",
    mode: MigrateMode = MigrateMode.SYNC,
) -> Plan:
    """Plan the move of ``pages`` pages, ``size`` bytes together, to ``node``.

    ``threads`` is a number, or ``"auto"``: one for each core that this process may use, target
    node's first, but no more than there is work for. ``MigrateMode.ST`` makes it one. Raises
    ``ValueError`` for other values.
    """
    if not isinstance(mode, int):
        raise TypeError(f"a mode is made of MigrateMode bits, not {mode!r}")
    mode, single, multi = _understood(int(mode))
    reasons = ["kernel engine: move_pages(2) works for every kind of memory and any process"]
    if single:
        count = 1
        reasons.append("1 thread: single-threaded mode was asked for")
    elif threads == "auto":
        count, reason = _auto(machine, size, pages, multi)
        reasons.append(reason)
    elif isinstance(threads, Integral) and not isinstance(threads, bool) and threads >= 1:
        threads = int(threads)
        count = min(threads, MAX_THREADS, max(pages, 1))
        limit = f", no more than there are pages ({pages})" if count < threads else ""
        reasons.append(f"{_threads(count)}: asked for{limit}")
    else:
        raise ValueError(f"threads must be 'auto' or a number from 1 up, not {threads!r}")
    cpus: tuple[int, ...] = ()
    order = machine.spread(os.sched_getaffinity(0), prefer_node=node) if count > 1 else ()
    if order:
        cpus = tuple(order[i % len(order)] for i in range(count))
        reasons.append(
            f"CPUs {', '.join(map(str, cpus[:16]))}{'…' if count > 16 else ''}: "
            f"allowed ones, node {node}'s first, one per cache and core first"
        )
    return Plan("kernel", count, cpus, mode, FIRST_BATCH_BYTES, CALL_MS, tuple(reasons))


@lru_cache(maxsize=64)
def _understood(mode: int) -> tuple[MigrateMode, bool, bool]:
    """Check the mode, and say whether it asks for one or for several threads (flags are slow)."""
    checked = MigrateMode.check(mode)
    return checked, MigrateMode.ST in checked, MigrateMode.MT in checked


def _auto(machine: Topology, size: int, pages: int, insist: bool) -> tuple[int, str]:
    work = max(size // BYTES_PER_THREAD, 2 if insist else 1)
    if pages <= 1 or work <= 1:
        return 1, f"1 thread: {size} bytes are not work for more"
    allowed = os.sched_getaffinity(0)
    cores = sum(1 for core in machine.cores() if core & allowed) or 1
    count = min(cores, work, pages)
    if count == cores:
        return count, f"{_threads(count)}: one for each core this process may use"
    if count == pages:
        return count, f"{_threads(count)}: one for each page"
    return count, f"{_threads(count)}: {size} bytes are not work for more"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"

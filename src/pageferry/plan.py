# SPDX-License-Identifier: Apache-2.0
"""Plan: the engine, the threads, their CPUs and the batch for one move, and the reasons."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Integral
from typing import Any

from .calibration import Calibration, current
from .flags import MigrateMode
from .model import SMALLEST_CALL_BYTES, Prediction, best_threads, pieces, predict, smallest_piece
from .pressure import Pressure
from .quota import threads_within_quota
from .seats import Seats, seats_near
from .strict import Fields, whole
from .topology import Topology

#: What one call of move_pages(2) should take: progress and Ctrl-C are looked at in between. The
#: program does not wait that long for a page: the kernel unmaps at most 512 at a time.
CALL_MS = 200
#: First size of a batch; the core adapts it to ``CALL_MS`` while it runs.
FIRST_BATCH_BYTES = 128 << 20
MAX_THREADS = 1024
#: The core wakes no thread for less (native/kernel_run.c).
THREAD_BYTES = 128 << 10
ENGINES = ("kernel",)
#: In which order pages are taken: ``address``, from the lowest address up.
ORDERS = ("address",)
_WHY_KERNEL = "kernel engine: move_pages(2) works for every kind of memory and any process"


@dataclass(frozen=True)
class Plan:
    """How a move is done. ``reasons`` say why, in words, one to a line.

    ``cpus`` has one CPU for each thread, the caller's included; empty means that threads run
    where the scheduler puts them. ``batch_bytes`` is the first size of a batch, in bytes,
    ``smallest_bytes`` the least that one of several threads takes towards the end, and ``call_ms``
    the time that one system call is kept to, in milliseconds. ``expected_seconds``
    and ``expected_gbps`` (10**9 bytes a second) are what the model expects if every page has to
    move; 0 for a plan of nothing.
    """

    engine: str
    threads: int
    cpus: tuple[int, ...]
    mode: MigrateMode
    batch_bytes: int
    call_ms: int
    reasons: tuple[str, ...]
    smallest_bytes: int = SMALLEST_CALL_BYTES
    order: str = "address"
    expected_seconds: float = 0.0
    expected_gbps: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the plan for JSON; ``from_dict`` reads it back."""
        return {
            "engine": self.engine,
            "threads": self.threads,
            "cpus": list(self.cpus),
            "mode": " | ".join(flag.name or "" for flag in self.mode),
            "batch_bytes": self.batch_bytes,
            "smallest_bytes": self.smallest_bytes,
            "call_ms": self.call_ms,
            "order": self.order,
            "expected_seconds": self.expected_seconds,
            "expected_gbps": self.expected_gbps,
            "reasons": list(self.reasons),
        }

    @classmethod
    def from_dict(cls, value: object) -> Plan:
        """Return the plan that ``as_dict`` made.

        Raises ``ValueError`` that names the field for unknown fields, wrong types and impossible
        values. Whether this machine has the CPUs is looked at when the plan is run.
        """
        fields = Fields(value)
        threads = fields.integer("threads", 1, MAX_THREADS)
        cpus = [whole(cpu, name, 0, (1 << 16) - 1) for name, cpu in fields.items("cpus", 1024)]
        if cpus and len(cpus) != threads:
            raise ValueError(f"cpus must be empty or have one CPU for each of {threads} threads")
        reasons = []
        for name, reason in fields.items("reasons", 100):
            if not isinstance(reason, str) or len(reason) > 1000:
                raise ValueError(f"{name} must be a text of at most 1000 characters")
            reasons.append(reason)
        plan = cls(
            engine=fields.choice("engine", ENGINES),
            threads=threads,
            cpus=tuple(cpus),
            mode=_mode(fields.text("mode")),
            batch_bytes=fields.integer("batch_bytes", 1, 1 << 60),
            smallest_bytes=fields.integer("smallest_bytes", 1, 1 << 60, SMALLEST_CALL_BYTES),
            call_ms=fields.integer("call_ms", 0, 3_600_000),
            order=fields.choice("order", ORDERS),
            expected_seconds=fields.number("expected_seconds", 0.0, 1e12),
            expected_gbps=fields.number("expected_gbps", 0.0, 1e12),
            reasons=tuple(reasons),
        )
        fields.end()
        if MigrateMode.ST in plan.mode and threads > 1:
            raise ValueError(f"mode is single-threaded (ST), but threads is {threads}")
        return plan

    def allowed(self, machine: Topology) -> Plan:
        """Return this plan, or one that keeps to the CPUs that this process may use now.

        CPUs that were taken away (affinity, cpuset, offline) are left out, and their threads
        with them; if all were, the allowed ones are used. The reasons say so.
        """
        if not self.cpus:
            return self
        may = os.sched_getaffinity(0)
        if may.issuperset(self.cpus):
            return self
        kept = tuple(cpu for cpu in self.cpus if cpu in may)
        if not kept:
            kept = seats_near(machine, may, None).cpus[: self.threads]
        gone = _listed(tuple(dict.fromkeys(cpu for cpu in self.cpus if cpu not in may)))
        why = f"{_threads(len(kept) or 1)}: the plan's CPUs {gone} may not be used now"
        return replace(self, threads=len(kept) or 1, cpus=kept, reasons=(*self.reasons, why))


def make_plan(
    machine: Topology,
    node: int,
    pages: Mapping[int, int],
    *,
    threads: int | str = "auto",
    mode: MigrateMode = MigrateMode.SYNC,
    source: int | None = None,
    calibration: Calibration | None = None,
    pressure: Pressure | None = None,
) -> Plan:
    """Plan the move of ``pages`` (page size in bytes to number of pages) to ``node``.

    ``threads`` is a number, or ``"auto"``: as many as the model expects to help, on CPUs that
    this process may use, one for each core. ``MigrateMode.ST`` makes it one, ``MT`` at least two
    where there are two cores and two pages. ``source`` is the node that the pages come from, where
    it is known; ``calibration`` that of this machine by default; ``pressure``, how busy the machine
    is, makes automatic threads fewer. Raises ``ValueError`` for other
    values.
    """
    mode, single, multi = check_request(threads, mode)
    known = current() if calibration is None else calibration
    count = sum(pages.values())
    near = node if known.cpus_near == "target" or source is None else source
    seats = seats_near(machine, os.sched_getaffinity(0), near)
    link = known.link(source, node)
    reasons = [_WHY_KERNEL]
    pinned = True
    if single:
        number = 1
        reasons.append("1 thread: single-threaded mode was asked for")
    elif threads == "auto":
        number, reason = _auto(known, seats, pages, count, link, multi)
        if pressure is not None and not multi:
            number, busy = pressure.threads(number)
            reason = f"{_threads(number)}, {busy}" if busy else reason
            pinned = not busy
        reasons.append(reason)
    else:
        threads = int(threads)
        number = min(threads, MAX_THREADS, max(count, 1))
        limit = f", no more than there are pages ({count})" if number < threads else ""
        reasons.append(f"{_threads(number)}: asked for{limit}")
    cpus: tuple[int, ...] = ()
    if number > 1 and not pinned:
        reasons.append("any CPU: the scheduler knows which are idle")
    elif number > 1 and seats.cpus:
        cpus = tuple(seats.cpus[i % len(seats.cpus)] for i in range(number))
        first = f"node {near}'s first, " if near >= 0 else ""
        reasons.append(f"CPUs {_listed(cpus)}: allowed ones, {first}one per cache and core first")
    smallest = SMALLEST_CALL_BYTES
    if number > 1:
        smallest = smallest_piece(known.costs, seats, pages, number)
    expected = predict(known.costs, seats, pages, number, link_gbps=link)
    if count > 1:
        reasons.append(_held_up(expected))
        if known.note:
            reasons.append(known.note)
    if pressure is not None and pressure.warning:
        reasons.append(pressure.warning)
    return Plan(
        engine="kernel",
        threads=number,
        cpus=cpus,
        mode=mode,
        batch_bytes=FIRST_BATCH_BYTES,
        smallest_bytes=smallest,
        call_ms=CALL_MS,
        reasons=tuple(reasons),
        expected_seconds=expected.seconds,
        expected_gbps=expected.gbps,
    )


def check_request(threads: int | str, mode: int) -> tuple[MigrateMode, bool, bool]:
    """Return the mode in full, and whether it asks for one and for several threads.

    Raises ``ValueError`` and ``TypeError`` for threads and modes that make no sense.
    """
    if not isinstance(mode, int):
        raise TypeError(f"a mode is made of MigrateMode bits, not {mode!r}")
    understood = _understood(int(mode))
    if threads != "auto" and (
        isinstance(threads, bool) or not isinstance(threads, Integral) or threads < 1
    ):
        raise ValueError(f"threads must be 'auto' or a number from 1 up, not {threads!r}")
    return understood


@lru_cache(maxsize=64)
def _understood(mode: int) -> tuple[MigrateMode, bool, bool]:
    """Check the mode, and say whether it asks for one or for several threads (flags are slow)."""
    checked = MigrateMode.check(mode)
    return checked, MigrateMode.ST in checked, MigrateMode.MT in checked


def _auto(
    known: Calibration,
    seats: Seats,
    pages: Mapping[int, int],
    count: int,
    link: float | None,
    insist: bool,
) -> tuple[int, str]:
    if count <= 1:
        return 1, "1 thread: one page is no work for more" if count else "1 thread: no pages"
    most = pieces(pages)
    if most == 1 and not (insist and seats.cores > 1 and _bytes(pages) >= 2 * THREAD_BYTES):
        return 1, "1 thread: so little is one call's work"
    quota = threads_within_quota()
    number = best_threads(known.costs, seats, pages, most=quota, link_gbps=link, worth=known.worth)
    if insist and number == 1 and seats.cores > 1:
        return 2, "2 threads: multi-threaded mode was asked for"
    if quota is not None and number == quota < seats.cores:
        return number, f"{_threads(number)}: the cgroup has CPU time for no more (cpu.max)"
    if number == seats.cores:
        return number, f"{_threads(number)}: one for each core this process may use"
    if number == most:
        return number, f"{_threads(number)}: one for each piece of 2 MiB, or page"
    if number == 1:
        return number, "1 thread: the model expects too little of more"
    return number, f"{_threads(number)}: the model expects next to nothing of more"


def _bytes(pages: Mapping[int, int]) -> int:
    return sum(size * number for size, number in pages.items())


_HOLDS_UP = {
    "fixed": "the fixed cost of calls and threads",
    "bookkeeping": "the kernel's bookkeeping for each page",
    "copy": "copying",
    "link": "the link between the nodes",
}


def _held_up(expected: Prediction) -> str:
    term = expected.dominant
    share = expected.terms[term] / expected.seconds if expected.seconds else 0.0
    return (
        f"expected: {expected.seconds * 1e3:.3g} ms, {expected.gbps:.3g} GB/s, "
        f"{share:.0%} of it {_HOLDS_UP[term]}"
    )


def _listed(cpus: tuple[int, ...]) -> str:
    return ", ".join(map(str, cpus[:16])) + ("…" if len(cpus) > 16 else "")


def _mode(text: str) -> MigrateMode:
    bits = 0
    for name in text.split("|"):
        if name.strip() not in MigrateMode.__members__:
            raise ValueError(f"mode: {name.strip()[:60]!r} is no bit of MigrateMode")
        bits |= MigrateMode[name.strip()]
    try:
        mode = MigrateMode.check(bits)
    except ValueError as error:
        raise ValueError(f"mode: {error}") from None
    if mode != bits:
        raise ValueError(f"mode: {text!r} does not say how to block")
    return mode


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"

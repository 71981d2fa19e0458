# SPDX-License-Identifier: Apache-2.0
"""Report: what a move did, and where pages are."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import errno_name
from .pages import KINDS
from .plan import Plan

if TYPE_CHECKING:
    import numpy.typing as npt

#: One row of ``MoveResult.statuses``: a page, its size in bytes, and its node or -errno
#: (``NOT_TRIED`` when the move stopped before).
STATUS = np.dtype([("address", "u8"), ("size", "u8"), ("status", "i4")])
NOT_TRIED = -(2**31) + 1

#: What to do about the errno of a single page.
_PAGE_HINTS = {
    errno.EBUSY: "in use by the kernel or a device (pinned); try again later",
    errno.EACCES: "shared with another process; shared=True (--shared) moves it too, "
    "which needs CAP_SYS_NICE",
    errno.ENOMEM: "the target node is full; free memory there (hugetlb pages: its "
    "hugepages/*/nr_hugepages) or choose another node",
    errno.EIO: "could not be written back; look for disk errors",
    errno.EINVAL: "this kind of memory cannot be migrated",
}


def page_hint(number: int) -> str:
    """Return what to do about a page that failed with this errno, or an empty string."""
    return _PAGE_HINTS.get(number, "")


@dataclass(frozen=True)
class Failure:
    """One page that did not move: address, size in bytes, errno."""

    address: int
    size: int
    errno: int

    def __str__(self) -> str:
        return f"page {self.address:#x}: {errno_name(self.errno)}"


@dataclass(frozen=True)
class EnginePart:
    """Bytes that one engine moved, and why that one; or that the user engine left to the other.

    ``engine`` is ``user``, ``kernel``, or ``left``; or ``kept``, which is of all of these: bytes
    whose pages did not become huge ones as was asked.
    """

    engine: str
    bytes: int
    reason: str


@dataclass(frozen=True)
class Stalls:
    """How long an access to a piece under way may have waited, over all pieces; milliseconds.

    From before a piece was taken away until whoever waited was woken: the kernel does not say
    whether anyone did. The quantiles are exact to a quarter.
    """

    pieces: int
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True)
class MoveResult:
    """What a move did. Sizes are bytes, page counts are pages of their own size.

    ``seconds`` is the time that it took, without ``seconds_paused`` (by a ``MoveControl``).

    ``pages_moved`` and ``pages_already`` count by kind: ``base``, ``thp``, ``hugetlb``. Nothing
    to move was in: ``bytes_elsewhere``, on none of the ``source`` nodes; ``bytes_not_present``,
    never touched; ``bytes_swapped``, in swap or on the way between nodes; ``bytes_zero``, the
    shared zero page; ``bytes_gone``, freed meanwhile (or the zero page after all);
    ``bytes_cut``, in huge pages that the range covers in part; ``bytes_other_size``, in pages of
    another size than ``only_page_size``; ``bytes_other_activity``, idle where ``hot=`` was asked
    for, or the other way round. ``failed`` counts pages by errno, ``failures`` are the first of
    them. ``bytes_skipped`` had been looked at and were not tried, as the move ended early:
    ``stopped`` is the errno that ended it, or 0, ``cancelled`` and ``timed_out`` (by
    ``timeout=``) tell of other reasons.
    ``exact`` is
    False when only a sample of the base pages was asked for its node beforehand, so that pages
    which were on the target already may be counted as moved. ``cpu_seconds`` is the CPU time that
    this process used meanwhile, all its threads together, and ``helpers_left`` how often a thread
    of the crew left early, as its CPU was wanted by others. With ``threads="auto"`` the rate
    of the caller alone (``alone_gbps``, on the first piece) is compared with that of all threads
    (``together_gbps``); 0 where it was not measured. ``fell_back`` says in words that one thread
    went on alone, as together they were slower, or is None. ``kernel_mt`` is True when the kernel
    was allowed to copy with several threads as well (MPOL_MF_MOVE_MT, a patched kernel; see
    ``pgmigrate_mt_success`` in ``counters``). ``verified`` maps nodes to pages of a sample that
    was asked again after the move. ``counters`` is the change of the kernel's own counters, which
    are system-wide. Where the user engine took part, ``parts`` says which engine moved how much and
    why, and ``stalls`` how long accesses may have waited for their pages; ``bytes_collapsed`` of
    base pages became huge ones (``page_size="2M"``).
    """

    node: int
    pid: int | None
    plan: Plan
    seconds: float
    bytes_moved: int = 0
    bytes_already: int = 0
    bytes_elsewhere: int = 0
    bytes_not_present: int = 0
    bytes_swapped: int = 0
    bytes_zero: int = 0
    bytes_gone: int = 0
    bytes_cut: int = 0
    bytes_other_size: int = 0
    bytes_other_activity: int = 0
    bytes_failed: int = 0
    bytes_skipped: int = 0
    pages_moved: Mapping[str, int] = field(default_factory=dict)
    pages_already: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[int, int] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    stopped: int = 0
    cancelled: bool = False
    timed_out: bool = False
    whole_process: bool = False
    exact: bool = True
    workers: int = 1
    helpers_left: int = 0
    kernel_mt: bool = False
    cpu_seconds: float = 0.0
    seconds_paused: float = 0.0
    alone_gbps: float = 0.0
    together_gbps: float = 0.0
    fell_back: str | None = None
    calls: int = 0
    retried: int = 0
    longest_call_ms: float = 0.0
    survey: str = "scan"
    verified: Mapping[int, int] = field(default_factory=dict)
    counters: Mapping[str, int] | None = None
    warnings: tuple[str, ...] = ()
    parts: tuple[EnginePart, ...] = ()
    bytes_collapsed: int = 0
    stalls: Stalls | None = None
    statuses: npt.NDArray[np.void] | None = field(default=None, repr=False, compare=False)

    @property
    def gbps(self) -> float:
        """Throughput of what moved, in GB/s (10**9 bytes)."""
        return self.bytes_moved / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def shared(self) -> int:
        """Pages left alone because other processes use them too (EACCES)."""
        return self.failed.get(errno.EACCES, 0)

    @property
    def complete(self) -> bool:
        """True when every page that was to move is on the target.

        Pages shared with other processes do not count against the move of a whole process:
        nearly every process shares its libraries.
        """
        failed = sum(self.failed.values()) - (self.shared if self.whole_process else 0)
        ended = self.stopped or self.cancelled or self.timed_out
        return not (failed or self.bytes_skipped or ended)

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON; errnos by name, without the per-page statuses."""
        value = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in ("plan", "statuses", "failed", "failures", "stopped", "verified")
        }
        value.update(
            gbps=self.gbps,
            complete=self.complete,
            plan=self.plan.as_dict(),
            failed={errno_name(number): count for number, count in self.failed.items()},
            failures=[
                {"address": hex(f.address), "bytes": f.size, "errno": errno_name(f.errno)}
                for f in self.failures
            ],
            stopped=errno_name(self.stopped) if self.stopped else None,
            verified={str(node): pages for node, pages in self.verified.items()},
            parts=[asdict(part) for part in self.parts],
            stalls=None if self.stalls is None else asdict(self.stalls),
        )
        return value


@dataclass(frozen=True)
class Placement:
    """Where the present pages of a target are: bytes by node and by kind of page.

    ``pages`` counts by node and by size of page in bytes.
    """

    pid: int | None
    nodes: Mapping[int, Mapping[str, int]]
    pages: Mapping[int, Mapping[int, int]] = field(default_factory=dict)
    bytes_swapped: int = 0
    bytes_zero: int = 0
    bytes_not_present: int = 0
    bytes_unknown: int = 0
    survey: str = "scan"
    statuses: npt.NDArray[np.void] | None = field(default=None, repr=False, compare=False)

    def on(self, node: int) -> int:
        """Return the bytes on one node."""
        return sum(self.nodes.get(node, {}).values())

    @property
    def bytes_present(self) -> int:
        """Bytes on all nodes together."""
        return sum(self.on(node) for node in self.nodes)

    def by_kind(self, kind: str) -> int:
        """Return the bytes in pages of one kind: ``base``, ``thp`` or ``hugetlb``."""
        if kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}, not {kind!r}")
        return sum(sizes.get(kind, 0) for sizes in self.nodes.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the placement for JSON, without the per-page statuses."""
        return {
            "pid": self.pid,
            "nodes": {str(node): dict(sizes) for node, sizes in self.nodes.items()},
            "bytes_present": self.bytes_present,
            "bytes_swapped": self.bytes_swapped,
            "bytes_zero": self.bytes_zero,
            "bytes_not_present": self.bytes_not_present,
            "bytes_unknown": self.bytes_unknown,
            "survey": self.survey,
        }

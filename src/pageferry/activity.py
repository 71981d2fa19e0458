# SPDX-License-Identifier: Apache-2.0
"""Hot and idle pages: watched for some time, to move only the ones or the others.

Two ways to know, the better that works is taken: idle page tracking (page_idle.py) tells of each
page; ``/proc/PID/clear_refs`` and ``Referenced`` in ``smaps`` tell of each mapping. PAGEMAP_SCAN
has no category for accessed pages (Linux 6.18).
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import logs, page_idle, procfs
from .engine import status_table
from .errors import NotPermittedError, PageferryError, ProcessGoneError, UnsupportedError
from .pages import EXTENT, HUGETLB
from .survey import Survey
from .target import Target, resolve

if TYPE_CHECKING:
    import numpy.typing as npt

    from .processes import Process

_logger = logging.getLogger(__name__)

WAYS = ("pages", "mappings")

_MOST_S = 1e6
_CHUNK_PAGES = 1 << 20  # looked at together

_MAPPINGS_NOTE = {
    False: "hot was told of whole mappings: pages that nobody touched are among what moved",
    True: "idle was told of whole mappings: idle pages in mappings that are touched stayed",
}


class Activity:
    """Which pages of ``target`` are touched from now on.

    ``way`` forces one of ``WAYS``: ``"pages"`` (a bit for each page, kept for all processes) or
    ``"mappings"`` (whether any page of a mapping was touched by this process). Making one clears
    the accessed bits that the kernel's reclaim looks at too: it takes these pages for old until
    they are touched again. Raises ``UnsupportedError`` where neither is to be had,
    ``NotPermittedError``, ``ProcessGoneError``.
    """

    def __init__(self, target: Target, *, way: str | None = None) -> None:
        if way is not None and way not in WAYS:
            raise ValueError(f"the way is one of {', '.join(WAYS)}, not {way!r}")
        self._pid = target.pid
        self._known: tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]] | None = None
        self.way = way or ("pages" if page_idle.available() else "mappings")
        if self.way == "mappings":
            self._clear_references()
            return
        page_idle.drain()
        for extents in Survey(target).windows():
            for part in _chunks(extents):
                with _reasons(self._pid):
                    page_idle.mark(self._pid, status_table(part)["address"])

    def touched(self, table: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
        """Say of each page (dtype ``report.STATUS``) whether it, or its mapping, was touched."""
        if self.way == "pages":
            with _reasons(self._pid):
                return ~page_idle.idle(self._pid, table["address"])
        if self._known is None:
            self._known = self._referenced()
        edges, hot = self._known
        return hot[np.searchsorted(edges, table["address"], side="right")]

    def _clear_references(self) -> None:
        path = Path(f"/proc/{self._pid or 'self'}/clear_refs")
        if not path.exists() and path.parent.exists():
            raise UnsupportedError(
                errno.ENOSYS,
                "this kernel cannot tell hot pages from idle ones",
                "it needs CONFIG_IDLE_PAGE_TRACKING, or CONFIG_PROC_PAGE_MONITOR",
            )
        with _reasons(self._pid):
            path.write_bytes(b"1")

    def _referenced(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
        """Return where mappings begin and end, and whether what lies before each was touched."""
        edges: list[int] = []
        hot: list[bool] = []
        for use in procfs.smaps(self._pid or None):
            if use.referenced is None:
                raise UnsupportedError(errno.ENOSYS, "smaps does not tell what is referenced here")
            # What lies in no mapping any more counts as touched.
            edges += [use.mapping.start, use.mapping.end]
            hot += [True, use.referenced > 0]
        return np.array(edges, np.uint64), np.array([*hot, True])


class Selection:
    """The hot or the idle pages of a target, for a survey. ``bytes_left``: in the other ones."""

    def __init__(self, activity: Activity, *, idle: bool) -> None:
        self._activity = activity
        self._idle = idle
        self.bytes_left = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say of how it was told."""
        return (_MAPPINGS_NOTE[self._idle],) if self._activity.way == "mappings" else ()

    def keep(self, extents: npt.NDArray[np.void]) -> Iterator[npt.NDArray[np.void]]:
        """Yield the extents (dtype ``pages.EXTENT``) of what is wanted among ``extents``."""
        for part in _chunks(extents):
            table = status_table(part)
            of = np.repeat(np.arange(len(part)), part["pages"].astype(np.int64))
            wanted = self._activity.touched(table) != self._idle
            wanted &= part["kind"][of] != HUGETLB  # of which the kernel tells neither
            self.bytes_left += int(table["size"][~wanted].sum())
            kept = np.flatnonzero(wanted)
            if len(kept):
                yield _extents(part, table, of, kept)


def _extents(
    part: npt.NDArray[np.void],
    table: npt.NDArray[np.void],
    of: npt.NDArray[np.int64],
    kept: npt.NDArray[np.int64],
) -> npt.NDArray[np.void]:
    """Return the pages with the numbers ``kept`` as extents; ``of`` is the extent of each page."""
    new = (np.diff(kept, prepend=-2) != 1) | (np.diff(of[kept], prepend=-1) != 0)
    first = np.flatnonzero(new)
    found = np.empty(len(first), EXTENT)
    found["start"] = table["address"][kept[first]]
    found["pages"] = np.diff(first, append=len(kept))
    for name in ("shift", "kind"):
        found[name] = part[name][of[kept[first]]]
    return found


def _chunks(extents: npt.NDArray[np.void]) -> Iterator[npt.NDArray[np.void]]:
    """Yield ``extents`` in parts of not more than ``_CHUNK_PAGES`` pages."""
    rows: list[tuple[int, int, int, int]] = []
    pages = 0
    for start, count, shift, kind in extents.tolist():
        while count:
            taken = min(count, _CHUNK_PAGES - pages)
            rows.append((start, taken, shift, kind))
            start, count, pages = start + (taken << shift), count - taken, pages + taken
            if pages == _CHUNK_PAGES:
                yield np.array(rows, EXTENT)
                rows, pages = [], 0
    if rows:
        yield np.array(rows, EXTENT)


@contextmanager
def _reasons(pid: int) -> Iterator[None]:
    """Turn what the files of ``pid`` answer into errors that say what to do."""
    who = f"process {pid}" if pid else "this process"
    try:
        yield
    except PageferryError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            raise ProcessGoneError(errno.ESRCH, f"{who} ended", "check the process id") from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise NotPermittedError(
                error.errno,
                f"may not watch which pages of {who} are touched",
                "run as its user, or as root",
            ) from None
        raise PageferryError(error.errno or errno.EIO, f"cannot watch the pages of {who}") from None


def _seconds(name: str, value: object) -> float:
    """Check the time that is watched. Raises ``ValueError``."""
    good = isinstance(value, Real) and not isinstance(value, bool)
    if not good or not 0 < float(value) <= _MOST_S:  # type: ignore[arg-type]
        raise ValueError(f"{name} is a number of seconds above 0 and up to {_MOST_S:g}: {value!r}")
    return float(value)  # type: ignore[arg-type]


def selection(
    target: Target,
    hot: float | Activity | None,
    idle: float | Activity | None,
    cancel: threading.Event | None = None,
) -> Selection | None:
    """Return which pages ``hot=`` or ``idle=`` mean, after watching for that long.

    A set ``cancel`` ends the wait. What has been watched already is given as an ``Activity``. None
    without either. Raises ``ValueError`` for both, and for no time; and as ``Activity``.
    """
    check(hot, idle)
    wanted = hot if idle is None else idle
    if wanted is None:
        return None
    if not isinstance(wanted, Activity):
        activity = Activity(target)
        wait(wanted, cancel)
        wanted = activity
    return Selection(wanted, idle=idle is not None)


def check(hot: float | Activity | None, idle: float | Activity | None) -> None:
    """Raise ``ValueError`` for both at once, and for what is no time."""
    if hot is not None and idle is not None:
        raise ValueError("hot and idle pages together are all pages: give one of them")
    for name, value in (("hot", hot), ("idle", idle)):
        if value is not None and not isinstance(value, Activity):
            _seconds(name, value)


def wait(seconds: float, cancel: threading.Event | None = None) -> None:
    """Watch for so long, or until ``cancel`` is set."""
    logs.event(_logger, logging.INFO, f"watching for {seconds:g} s which pages are touched")
    if cancel is None:
        time.sleep(seconds)
    else:
        cancel.wait(seconds)


def watched(
    processes: Iterable[Process],
    hot: float | None,
    idle: float | None,
    cancel: threading.Event | None = None,
) -> dict[Process, dict[str, Activity]]:
    """Watch several processes at once; return ``hot=`` or ``idle=`` for the move of each.

    Those that cannot be watched are left out: their moves say why.
    """
    check(hot, idle)
    name, seconds = ("hot", hot) if idle is None else ("idle", idle)
    found: dict[Process, dict[str, Activity]] = {}
    if seconds is None:
        return found
    for process in processes:
        with suppress(PageferryError):
            found[process] = {name: Activity(resolve(None, process.pid))}
    if found:
        wait(seconds, cancel)
    return found

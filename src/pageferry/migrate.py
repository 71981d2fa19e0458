# SPDX-License-Identifier: Apache-2.0
"""move() and locate(): survey, plan, run, verify, report."""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from . import procfs
from .engine import KernelRun, Progress, locate_extents
from .errors import (
    NodeError,
    NotPermittedError,
    PageferryError,
    ProcessGoneError,
    RangeError,
    UnsupportedError,
)
from .flags import MigrateMode
from .pages import BASE, HUGETLB, KINDS, THP
from .plan import Plan, make_plan
from .process import HeldProcess
from .report import STATUS, MoveResult, Placement
from .survey import Survey
from .target import Target, resolve
from .topology import Topology, topology

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt

    from .target import Movable

# Below this a move takes less time than reading /proc/vmstat twice.
_COUNTERS_BYTES = 1 << 20
_VERIFY_PAGES = 512  # asked again after each window


class MoveInterrupted(KeyboardInterrupt):
    """Ctrl-C during a move. ``result`` is the ``MoveResult`` of what was done until then."""

    def __init__(self, result: MoveResult) -> None:
        super().__init__("the move was interrupted")
        self.result = result


@lru_cache(maxsize=1)
def _machine() -> Topology:
    return topology()


def check_node(node: int, pid: int | None) -> None:
    """Raise ``NodeError`` for a target that cannot be; another process has its own cpuset."""
    if isinstance(node, bool) or not isinstance(node, (int, np.integer)):
        raise TypeError(f"a node is a number, not {node!r}")
    for fresh in (False, True):
        if fresh:
            _machine.cache_clear()  # memory may have come online since
        try:
            found = _machine().node(node) if pid else _machine().check_target(node)
        except NodeError:
            if fresh:
                raise
            continue
        if found.has_memory:
            return
    raise NodeError(errno.ENODEV, f"node {node} has no memory", "choose a node with memory")


def move(
    target: Movable = None,
    node: int = -1,
    *,
    pid: int | None = None,
    source: Iterable[int] | int | None = None,
    mode: MigrateMode = MigrateMode.SYNC,
    threads: int | str = "auto",
    partial: str = "touched",
    shared: bool = False,
    statuses: bool = False,
    exact: bool = False,
    progress: Callable[[Progress], object] | None = None,
    cancel: threading.Event | None = None,
    survey: str | None = None,
) -> MoveResult:
    """Move the pages of ``target`` to ``node`` with many threads, and say what happened.

    ``target`` is a numpy array, any buffer (also a read-only one), an mmap, or a ``range`` of
    addresses; with ``pid``, a ``range`` of that process, or ``None`` for all of it.

    - ``source``: move only pages that are now on this node, or these nodes.
    - ``mode``: how to treat busy pages, and ``ST`` or ``MT``; see ``MigrateMode``.
    - ``threads``: a number, or ``"auto"``.
    - ``partial``: ``"touched"`` moves every page that the target has a byte in; ``"inside"``
      only pages that lie in it whole.
    - ``shared``: also move pages that other processes use too (MPOL_MF_MOVE_ALL; needs
      CAP_SYS_NICE). Without it they count as failed with EACCES.
    - ``statuses``: keep the outcome of every page in ``MoveResult.statuses``.
    - ``exact``: ask for the node of every page first, so that pages which are there already are
      never counted as moved. Costs several percent with base pages; implied by ``source``.
    - ``progress``: called about ten times a second with a ``Progress``; an exception ends the
      move between two batches and is raised again.
    - ``cancel``: an event that ends the move in the same way when set.
    - ``survey``: force one of ``survey.METHODS``.

    A page that cannot be moved stays where it is and is counted with its errno; the call raises
    only when nothing could be done at all: ``NodeError``, ``RangeError``, ``ProcessGoneError``,
    ``NotPermittedError``, ``UnsupportedError``. Ctrl-C raises ``MoveInterrupted``, whose
    ``result`` says what moved. Rests on move_pages(2).
    """
    with HeldProcess(pid) as process:
        what = resolve(target, pid, partial)
        node = int(node) if isinstance(node, np.integer) else node
        check_node(node, pid)
        run = KernelRun(
            what.pid,
            node,
            total=what.bytes,
            process=process,
            sources=_sources(source),
            shared=shared,
            exact=exact or statuses,
            progress=progress,
            cancel=cancel,
        )
        # Refuses what makes no sense before anything is looked at.
        plan = make_plan(_machine(), node, 0, 0, threads=threads, mode=mode)
        pages = Survey(what, method=survey, partial=partial)
        return _move(what, node, plan, run, pages, threads=threads, statuses=statuses)


def _move(
    what: Target,
    node: int,
    plan: Plan,
    run: KernelRun,
    pages: Survey,
    *,
    threads: int | str,
    statuses: bool,
) -> MoveResult:
    """Survey, plan and run window after window; verify; report."""
    before = procfs.migration_counters() if what.bytes >= _COUNTERS_BYTES else None
    begun = time.perf_counter()
    verified: Counter[int] = Counter()
    planned = -1
    interrupted = False
    ended_with = 0
    try:
        for extents in pages.windows():
            size = _bytes(extents)
            if size > planned:  # the largest window is what the plan is for
                plan = make_plan(
                    _machine(), node, size, _pages(extents), threads=threads, mode=plan.mode
                )
                planned = size
                run.follow(plan)
            run.look()
            code = run.run(extents, statuses=statuses)
            if code in (0, errno.ENOMEM) and run.bytes_moved:
                verified.update(_verify(extents, what.pid))
            if code:
                break
    except KeyboardInterrupt:
        interrupted = True
    except PageferryError as error:
        if not run.touched:
            raise
        ended_with = error.errno or errno.EIO
    seconds = time.perf_counter() - begun
    ended_with = run.error or ended_with
    if planned < 0:
        _explain_nothing(what)
    elif ended_with and not run.touched:
        raise _refusal(ended_with, what, node)
    counts = run.counts()
    ended = interrupted or ended_with or run.cancelled
    result = MoveResult(
        node=node,
        pid=what.pid or None,
        plan=plan,
        seconds=seconds,
        bytes_not_present=0 if ended else pages.bytes_absent,
        bytes_swapped=pages.bytes_swapped,
        bytes_zero=pages.bytes_zero,
        bytes_cut=pages.bytes_cut,
        stopped=ended_with,
        cancelled=interrupted or run.cancelled,
        whole_process=what.whole_process,
        survey=pages.method,
        verified=dict(verified),
        warnings=_warnings(verified, node, counts),
        counters=_change(before),
        statuses=_joined(run) if statuses else None,
        **counts,
    )
    if interrupted or isinstance(run.exception, KeyboardInterrupt):
        raise MoveInterrupted(result) from None
    if run.exception is not None:
        raise run.exception
    return result


def locate(
    target: Movable = None,
    *,
    pid: int | None = None,
    partial: str = "touched",
    threads: int | str = "auto",
    statuses: bool = False,
    survey: str | None = None,
) -> Placement:
    """Say where the pages of ``target`` are: bytes by node and kind of page.

    Arguments as in ``move``. With ``statuses`` the placement has a table with the node of every
    page. Raises ``RangeError`` for unmapped addresses, ``ProcessGoneError`` and
    ``NotPermittedError``. Rests on move_pages(2) without nodes.
    """
    what = resolve(target, pid, partial)
    pages = Survey(what, method=survey, partial=partial)
    nodes: dict[int, dict[str, int]] = {}
    tables: list[npt.NDArray[np.void]] = []
    unknown = 0
    seen = False
    for extents in pages.windows():
        seen = True
        size = _bytes(extents)
        plan = make_plan(_machine(), -1, size, _pages(extents), threads=threads)
        for kind in (BASE, THP, HUGETLB):
            for shift in np.unique(extents["shift"][extents["kind"] == kind]):
                chosen = extents[(extents["kind"] == kind) & (extents["shift"] == shift)]
                error, found, gone, failed, table = locate_extents(
                    chosen, what.pid, threads=plan.threads, statuses=statuses
                )
                if error:
                    raise _refusal(error, what, -1)
                unknown += (gone + failed) << int(shift)
                for node in np.flatnonzero(found[:, kind]):
                    sizes = nodes.setdefault(int(node), dict.fromkeys(KINDS, 0))
                    sizes[KINDS[kind]] += int(found[node, kind]) << int(shift)
                if table is not None:
                    tables.append(table)
    if not seen:
        _explain_nothing(what)
    return Placement(
        pid=pid,
        nodes=dict(sorted(nodes.items())),
        bytes_swapped=pages.bytes_swapped,
        bytes_zero=pages.bytes_zero,
        bytes_not_present=pages.bytes_absent,
        bytes_unknown=unknown,
        survey=pages.method,
        statuses=np.sort(np.concatenate(tables), order="address")
        if tables
        else (np.zeros(0, STATUS) if statuses else None),
    )


def _sources(source: Iterable[int] | int | None) -> frozenset[int] | None:
    if source is None:
        return None
    named = [source] if isinstance(source, (int, np.integer)) else list(source)
    for node in named:
        if isinstance(node, bool) or not isinstance(node, (int, np.integer)):
            raise TypeError(f"a source node is a number, not {node!r}")
        _machine().node(int(node))
    nodes = frozenset(map(int, named))
    if not nodes:
        raise NodeError(errno.EINVAL, "the set of source nodes is empty", "leave source out")
    return nodes


def _bytes(extents: npt.NDArray[np.void]) -> int:
    return int((extents["pages"] << extents["shift"].astype(np.uint64)).sum())


def _pages(extents: npt.NDArray[np.void]) -> int:
    return int(extents["pages"].sum())


def _verify(extents: npt.NDArray[np.void], pid: int) -> Counter[int]:
    """Ask again where a sample of the pages is; nothing is learned of a process that ended."""
    stride = max(_pages(extents) // _VERIFY_PAGES, 1)
    error, found, _, _, _ = locate_extents(extents, pid, stride=stride)
    by_node = found.sum(axis=1)
    return Counter() if error else Counter({int(n): int(by_node[n]) for n in by_node.nonzero()[0]})


def _joined(run: KernelRun) -> npt.NDArray[np.void]:
    return np.concatenate(run.statuses) if run.statuses else np.zeros(0, STATUS)


def _change(before: dict[str, int] | None) -> dict[str, int] | None:
    if before is None:
        return None
    return {
        name: value - before.get(name, 0) for name, value in procfs.migration_counters().items()
    }


def _warnings(verified: Counter[int], node: int, counts: dict[str, Any]) -> tuple[str, ...]:
    astray = sum(pages for at, pages in verified.items() if at != node)
    expected = counts["bytes_failed"] or counts["bytes_skipped"] or counts["bytes_elsewhere"]
    if not astray or expected:
        return ()
    text = f"{astray} of {verified.total()} sampled pages are not on node {node} after the move"
    if procfs.numa_balancing_on():
        text += "; NUMA balancing is on and moves pages (kernel.numa_balancing)"
    return (text,)


def _explain_nothing(what: Target) -> None:
    """Raise when nothing was found because the addresses are not mapped at all."""
    if what.whole_process or what.owner is not None or not what.ranges:
        return
    wanted = what.ranges[0]
    try:
        maps = procfs.mappings(what.pid or None)
    except (UnsupportedError, NotPermittedError):
        return
    if any(m.start < wanted.stop and wanted.start < m.end for m in maps):
        return
    raise RangeError(
        errno.EFAULT,
        f"nothing is mapped at {wanted.start:#x}-{wanted.stop:#x}",
        f"/proc/{what.pid or 'self'}/maps lists what is",
    )


def _refusal(number: int, what: Target, node: int) -> PageferryError:
    """Return the error for a call that the kernel refused as a whole."""
    who = f"process {what.pid}" if what.pid else "this process"
    if number == errno.ESRCH:
        return ProcessGoneError(number, f"{who} does not exist or has ended", "check the id")
    if number == errno.EPERM:
        return NotPermittedError(
            number,
            f"the kernel refuses to {'say where' if node < 0 else 'move'} pages of {who}"
            + (" are" if node < 0 else ""),
            "another user's process or shared pages need CAP_SYS_NICE; in a container, the "
            "seccomp profile must allow move_pages (see pageferry doctor)",
        )
    if number == errno.EACCES:
        return NodeError(
            number, f"{who} may not use node {node}", "its cpuset.mems does not have that node"
        )
    if number == errno.ENODEV:
        return NodeError(number, f"node {node} has no memory", "see pageferry topology")
    if number == errno.ENOSYS:
        return UnsupportedError(
            number, "this kernel cannot move pages", "it needs CONFIG_NUMA and CONFIG_MIGRATION"
        )
    if number == errno.ENOMEM:
        return PageferryError(
            number, f"node {node} is full: nothing was moved", "free memory there, or take another"
        )
    if number == errno.ENOBUFS:
        return PageferryError(number, "no memory for the lists of pages", "free some memory")
    return PageferryError(number, f"move_pages failed for {who}", "see pageferry doctor")

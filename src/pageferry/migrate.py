# SPDX-License-Identifier: Apache-2.0
"""move(): survey, plan, run, verify, report."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

from . import logs, metrics, procfs
from .activity import Activity, selection
from .activity import check as check_activity
from .control import MoveControl
from .engine import KernelRun, Progress, locate_extents
from .errors import PageferryError, errno_name
from .filters import Filter
from .flags import MigrateMode
from .limits import Limits
from .nodes import check_node, check_sources
from .pages import extents_pages
from .plan import Plan
from .planning import Planning
from .process import HeldProcess
from .refusal import explain_nothing, refusal
from .report import STATUS, MoveResult
from .survey import Survey
from .target import Target, resolve
from .user_choice import choose_engine

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt

    from .target import Movable

_logger = logging.getLogger(__name__)

# Below this a move takes less time than reading /proc/vmstat twice.
_COUNTERS_BYTES = 1 << 20
_VERIFY_PAGES = 512  # asked again after each window


class MoveInterrupted(KeyboardInterrupt):
    """Ctrl-C during a move. ``result`` is the ``MoveResult`` of what was done until then."""

    def __init__(self, result: MoveResult) -> None:
        super().__init__("the move was interrupted")
        self.result = result


def move(
    target: Movable = None,
    node: int = -1,
    *,
    pid: int | None = None,
    source: Iterable[int] | int | None = None,
    mode: MigrateMode = MigrateMode.SYNC,
    threads: int | str = "auto",
    plan: Plan | None = None,
    partial: str = "touched",
    kind: str | Iterable[str] | None = None,
    only_page_size: str | None = None,
    hot: float | Activity | None = None,
    idle: float | Activity | None = None,
    shared: bool = False,
    statuses: bool = False,
    exact: bool = False,
    progress: Callable[[Progress], object] | bool | None = None,
    cancel: threading.Event | None = None,
    survey: str | None = None,
    max_gbps: float | None = None,
    stall_ms: float | None = None,
    timeout: float | None = None,
    control: MoveControl | None = None,
    engine: str = "auto",
    way: str = "auto",
    page_size: str | None = None,
) -> MoveResult:
    """Move the pages of ``target`` to ``node`` with many threads, and say what happened.

    ``target`` is a numpy array, any buffer (also a read-only one), an mmap, or a ``range`` of
    addresses; with ``pid``, a ``range`` of that process, or ``None`` for all of it.

    - ``source``: move only pages that are now on this node, or these nodes.
    - ``mode``: how to treat busy pages, and ``ST`` or ``MT``; see ``MigrateMode``.
    - ``threads``: a number, or ``"auto"``.
    - ``plan``: do it as this plan says (see ``plan_move``), instead of planning anew; ``threads``
      and ``mode`` are the plan's then. CPUs that this process may not use any more are left out,
      and ``MoveResult.plan`` says so. Raises ``ValueError`` for an impossible plan.
    - ``partial``: ``"touched"`` moves every page that the target has a byte in; ``"inside"``
      only pages that lie in it whole.
    - ``kind``: only memory of this kind or these, ``filters.MEMORY_KINDS``: ``"anon"`` (private
      memory without a file, heap and stack among it), ``"heap"``, ``"stack"`` (of the main
      thread), ``"file"`` (mapped files and shared memory).
    - ``only_page_size``: only pages of this size: ``"4K"``, ``"2M"`` (transparent huge pages),
      ``"2M-hugetlb"``, ``"1G"``. Raises ``UnsupportedError`` where sizes cannot be told.
    - ``hot``, ``idle``: only pages that are touched (that nobody touches) while it watches for so
      many seconds, which it does first; ``timeout`` begins after it. Told of each page where the
      kernel has idle page tracking, else of whole mappings, and ``warnings`` says so; never of
      hugetlb pages, which stay. Clears what reclaim knows of these pages' use. Raises
      ``UnsupportedError`` where the kernel tells neither. See ``activity.Activity``.
    - ``shared``: also move pages that other processes use too (MPOL_MF_MOVE_ALL; needs
      CAP_SYS_NICE). Without it they count as failed with EACCES.
    - ``statuses``: keep the outcome of every page in ``MoveResult.statuses``.
    - ``exact``: ask for the node of every page first, so that pages which are there already are
      never counted as moved. Costs several percent with base pages; implied by ``source``.
    - ``progress``: called about ten times a second with a ``Progress``; an exception ends the
      move between two batches and is raised again. True: a bar on the terminal or in the notebook.
    - ``cancel``: an event that ends the move in the same way when set.
    - ``survey``: force one of ``survey.METHODS``.
    - ``max_gbps``: move no more than so many GB/s (10**9 bytes), all threads together, pausing
      between pieces that take at most 20 ms at that rate.
    - ``stall_ms``: what one system call should take, in milliseconds, instead of 200. Shorter calls
      are more of them, each with a fixed cost; the program's own waits for a page do not get
      shorter (see docs/design.md). For the user engine: what no access to memory should wait
      longer than, instead of 20.
    - ``control``: a ``MoveControl``, which pauses and resumes the move and limits its rate while it
      runs; with it, ``max_gbps`` is the control's.
    - ``timeout``: after so many seconds, paused or not, the move ends between two batches, as by
      ``cancel``; ``MoveResult.timed_out`` says so.
    - ``engine``: ``"kernel"``; ``"user"``, which copies this process's private anonymous memory
      itself and hands what it can't do to the kernel's; or ``"auto"``: the user engine for
      arrays and buffers of this process, by ``checked``, where a trial on the first pieces shows
      that it is faster. ``MoveResult.parts`` says which engine moved what, and why.
    - ``way``: how the user engine keeps accesses out of a piece meanwhile. ``"checked"`` leaves
      pages that a device may write into to the kernel engine, and is what ``"auto"`` means.
      ``"hold"`` and ``"protect"`` do not see devices (O_DIRECT, io_uring, RDMA): what one
      writes into the range meanwhile is lost, and no other thread may unmap, remap, protect or
      madvise the range. See docs/design.md.
    - ``page_size``: ``"4K"`` turns huge pages into base pages on the way, ``"2M"`` turns base
      pages into huge ones once they are there: each 2 MiB that lies so and is all present, by
      MADV_COLLAPSE, which copies it again. Both also do so with pages that are on the node
      already, and with the user engine only. ``MoveResult.bytes_collapsed`` became huge; what
      stayed as it was is in ``parts`` as ``kept``, with the reason. What the kernel engine
      moves, and memory marked MADV_NOHUGEPAGE, keeps its page size.

    A page that cannot be moved stays where it is and is counted with its errno; the call raises
    only when nothing could be done at all: ``NodeError``, ``RangeError``, ``ProcessGoneError``,
    ``NotPermittedError``, ``UnsupportedError``. Ctrl-C raises ``MoveInterrupted``, whose
    ``result`` says what moved. Rests on move_pages(2), the user engine on userfaultfd(2).
    """
    if control is not None and max_gbps is not None:
        raise ValueError("with a control, the limit is the control's: MoveControl(max_gbps=…)")
    with HeldProcess(pid) as process, _shown(progress, node) as show:
        part = Filter.of(kind, only_page_size)
        what = part.narrowed(resolve(target, pid, partial))
        node = int(node) if isinstance(node, np.integer) else node
        check_node(node, pid)
        check_activity(hot, idle)
        sources = check_sources(source)
        limits = Limits(max_gbps, stall_ms, timeout)
        bound = shared or statuses or sources is not None
        user = choose_engine(
            what,
            node,
            engine,
            way,
            page_size,
            limits=limits,
            exact=exact,
            bound=bound,
            steered=control is not None,
        )
        run = KernelRun(
            what.pid,
            node,
            total=what.bytes,
            process=process,
            sources=sources,
            shared=shared,
            exact=exact or statuses,
            progress=show,
            cancel=cancel,
            limits=limits,
            user=user,
            control=control,
        )
        # Refuses what makes no sense before anything is looked at.
        planning = Planning(node, plan, threads=threads, mode=mode, sources=sources)
        chosen = selection(what, hot, idle, cancel)
        pages = Survey(what, method=survey, partial=partial, only=part.page_size, selection=chosen)
        try:
            return _move(what, node, planning, run, pages, statuses=statuses)
        finally:
            run.close()


def _shown(
    progress: Callable[[Progress], object] | bool | None, node: int
) -> AbstractContextManager[Callable[[Progress], object] | None]:
    """Return what to call: a bar for True."""
    if not isinstance(progress, bool):
        return nullcontext(progress)
    from .progress_bar import shown  # whoever wants no bar need not load it

    return shown(progress, node)


def _move(
    what: Target,
    node: int,
    planning: Planning,
    run: KernelRun,
    pages: Survey,
    *,
    statuses: bool,
) -> MoveResult:
    """Survey, plan and run window after window; verify; report."""
    before = procfs.migration_counters() if what.bytes >= _COUNTERS_BYTES else None
    begun, cpu_begun = time.perf_counter(), time.process_time()
    verified: Counter[int] = Counter()
    seen = False
    interrupted = timed_out = False
    ended_with = 0
    windows = pages.windows()
    try:
        for extents in windows:
            seen = True
            if planning.follow(extents):
                run.follow(planning.plan, judge=planning.judged)
            run.look()
            code = run.run(extents, statuses=statuses)
            if code in (0, errno.ENOMEM) and run.bytes_moved:
                verified.update(_verify(extents, what.pid))
            if code:
                break
        timed_out = run.timed_out
        if timed_out and not run.counts()["bytes_skipped"]:
            timed_out = next(windows, None) is not None  # or it ended just in time
    except KeyboardInterrupt:
        interrupted = True
    except PageferryError as error:
        if not run.touched:
            raise
        ended_with = error.errno or errno.EIO
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
    seconds -= run.seconds_paused
    ended_with = run.error or ended_with
    if not seen:
        explain_nothing(what)
    elif ended_with and not run.touched:
        raise refusal(ended_with, what, node)
    counts = run.counts()
    ended = interrupted or ended_with or run.cancelled or timed_out
    result = MoveResult(
        node=node,
        pid=what.pid or None,
        plan=planning.whole(),
        seconds=seconds,
        seconds_paused=run.seconds_paused,
        cpu_seconds=cpu_seconds,
        bytes_not_present=0 if ended else pages.bytes_absent,
        bytes_swapped=pages.bytes_swapped,
        bytes_zero=pages.bytes_zero,
        bytes_cut=pages.bytes_cut,
        bytes_other_size=pages.bytes_other_size,
        bytes_other_activity=chosen.bytes_left if (chosen := pages.selection) else 0,
        stopped=ended_with,
        cancelled=interrupted or run.cancelled,
        timed_out=timed_out,
        whole_process=what.whole_process,
        survey=pages.method,
        verified=dict(verified),
        warnings=(
            *planning.warnings,
            *(chosen.notes if chosen else ()),
            *_warnings(verified, node, counts),
            *run.warnings,
        ),
        counters=_change(before),
        statuses=_joined(run) if statuses else None,
        **counts,
    )
    metrics.count(result)
    if _logger.isEnabledFor(logging.WARNING):
        _log(result)
    if interrupted or isinstance(run.exception, KeyboardInterrupt):
        raise MoveInterrupted(result) from None
    if run.exception is not None:
        raise run.exception
    return result


def _log(result: MoveResult) -> None:
    """Log what a move did: what did not move, and warnings, as warnings."""
    level = logging.INFO if result.complete and not result.warnings else logging.WARNING
    if not _logger.isEnabledFor(level):
        return
    text = f"{result.bytes_moved} bytes moved to node {result.node} at {result.gbps:.2f} GB/s"
    if result.pid is not None:
        text += f" of process {result.pid}"
    if result.failed:
        pages = (f"{count} {errno_name(number)}" for number, count in result.failed.items())
        text += f"; pages not moved: {', '.join(pages)}"
    if not result.complete and (result.bytes_skipped or result.stopped):
        text += f"; {result.bytes_skipped} bytes not tried"
    fields = result.as_dict()
    detail = ("plan", "failures", "calls", "verified", "parts")
    if not _logger.isEnabledFor(logging.DEBUG):
        fields = {name: value for name, value in fields.items() if name not in detail}
    logs.event(_logger, level, "; ".join([text, *result.warnings]), **fields)


def _verify(extents: npt.NDArray[np.void], pid: int) -> Counter[int]:
    """Ask again where a sample of the pages is; nothing is learned of a process that ended."""
    stride = max(extents_pages(extents) // _VERIFY_PAGES, 1)
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

# SPDX-License-Identifier: Apache-2.0
"""Run: one move by the kernel engine of the C core, window after window."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ._native import ffi, lib
from .control import MoveControl
from .engine_trial import RATES
from .flags import MigrateMode
from .limits import Limits
from .pages import KINDS
from .plan import Plan
from .polling import handle_of, polled
from .process import HeldProcess
from .report import STATUS, Failure
from .syscalls import kernel_has_mt
from .user_engine import UserRun

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt

_T = TypeVar("_T")

_POLL_US = 100_000
# A careful guess for the first batch under a limit; the core adapts it.
_FIRST_BYTES_PER_MS = 500_000
_NODE_LIMIT: int = lib.PF_MAX_NODES


@dataclass(frozen=True)
class Progress:
    """A glance at a running move. Sizes are bytes; ``bytes_total`` is an upper estimate.

    ``seconds`` are those so far, without pauses. ``pages_already`` were on the target before.
    """

    bytes_done: int
    bytes_moved: int
    bytes_failed: int
    bytes_total: int
    seconds: float
    pages_moved: int = 0
    pages_already: int = 0
    pages_failed: int = 0

    @property
    def gbps(self) -> float:
        """Throughput so far, in GB/s."""
        return self.bytes_moved / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def seconds_left(self) -> float:
        """Seconds that the rest takes at the rate so far; infinity before the first page."""
        if not self.bytes_done:
            return float("inf")
        return self.seconds * max(self.bytes_total - self.bytes_done, 0) / self.bytes_done


class KernelRun:
    """``pf_move`` of the C core: threads that call ``move_pages(2)`` side by side.

    Give it a plan with ``follow``, then windows of extents with ``run``; counts add up. An
    exception out of ``progress``, a signal handler's (Ctrl-C) and a set ``cancel`` event end it
    between two batches; the exception is kept in ``exception``. The end of ``process`` ends it
    with ESRCH, that of the time in ``limits`` as a cancel does. ``total`` bytes are what progress
    is measured against.
    """

    def __init__(
        self,
        pid: int,
        node: int,
        *,
        total: int,
        process: HeldProcess,
        sources: Iterable[int] | None = None,
        shared: bool = False,
        exact: bool = False,
        progress: Callable[[Progress], object] | None = None,
        cancel: threading.Event | None = None,
        limits: Limits | None = None,
        user: UserRun | None = None,
        control: MoveControl | None = None,
    ) -> None:
        self.exception: BaseException | None = None
        self.total = total
        self._process = process
        self._ended = False
        self.timed_out = False
        self._windows = 0
        self._progress = progress
        self._cancel = cancel
        self._limits = limits or Limits()
        self._user = user
        self._control = control
        self._paused_before = control.seconds_paused if control is not None else 0.0
        self._begun = self._asked = time.perf_counter()
        self._c: Any = ffi.new("struct pf_move *")
        self._handle = handle_of(self)
        self._cpus: Any = ffi.NULL
        self._sources = ffi.NULL if sources is None else _node_mask(sources)
        self.statuses: list[npt.NDArray[np.void]] = []
        c = self._c
        c.pid, c.target = pid, node
        c.flags = (lib.PF_MOVE_SHARED if shared else 0) | (lib.PF_MOVE_EXACT if exact else 0)
        c.sources = self._sources
        c.pace.max_rate = self._limits.max_rate
        poll_us = _POLL_US
        if self._limits.timeout is not None:  # a short time is kept to as well
            poll_us = min(poll_us, max(int(self._limits.timeout * 1e6 / 8), 1000))
        c.poll, c.poll_arg, c.poll_us = lib.pf_python_poll, self._handle, poll_us
        if user is not None:
            user.poll_by(lib.pf_python_poll, self._handle, poll_us)
        if control is not None:
            control.attach(self)

    def steer(self, paused: bool, max_rate: int) -> None:
        """Pause or go on, at most at ``max_rate`` bytes per second (0: no limit). Any thread."""
        c = self._c
        if c.pace.max_rate != max_rate:
            c.pace.max_rate, c.pace.due_us = max_rate, 0  # what was taken before is not charged
        c.pause = int(paused)
        if self._user is not None:
            self._user.steer(paused, max_rate)

    def close(self) -> None:
        """Leave the control, if there is one."""
        if self._control is not None:
            self._control.detach(self)

    @property
    def seconds_paused(self) -> float:
        """Seconds for which the move was paused."""
        if self._control is None:
            return 0.0
        return self._control.seconds_paused - self._paused_before

    def follow(self, plan: Plan, *, judge: bool = False) -> None:
        """Do what is run from now on as ``plan`` says.

        With ``judge``, the helpers are sent away when all threads together turn out to be slower
        than the caller alone.
        """
        c = self._c
        c.pace.judge = judge
        if self._user is not None:
            self._user.follow(plan, judge=judge)
        self._cpus = ffi.new("int32_t[]", list(plan.cpus)) if plan.cpus else ffi.NULL
        c.threads, c.cpus, c.blocking = plan.threads, self._cpus, int(plan.mode.blocking)
        if kernel_has_mt() and MigrateMode.ST not in plan.mode:
            c.flags |= lib.PF_MOVE_KERNEL_MT
        else:
            c.flags &= ~lib.PF_MOVE_KERNEL_MT
        c.batch_bytes, c.batch_us = plan.batch_bytes, plan.call_ms * 1000
        c.smallest_bytes = plan.smallest_bytes
        stall_ms = self._limits.stall_ms
        if stall_ms is not None and (stall_ms < plan.call_ms or not plan.call_ms):
            c.batch_us = max(int(stall_ms * 1000), 1)
            c.batch_bytes = min(plan.batch_bytes, max(int(stall_ms * _FIRST_BYTES_PER_MS), 1))

    def run(self, extents: npt.NDArray[np.void], *, statuses: bool = False) -> int:
        """Move the pages of ``extents`` (dtype ``pages.EXTENT``); return 0 or an errno.

        ECANCELED stands for a cancel. With ``statuses``, a table of dtype ``report.STATUS``
        is added to ``self.statuses``.
        """
        if self._user is not None:
            return self._run_both(self._user, extents)
        c = self._c
        c.extents = ffi.from_buffer("struct pf_extent[]", extents)
        c.n_extents = len(extents)
        if not statuses:
            return self._call(lambda: -int(lib.pf_move_run(c)))
        table = status_table(extents)
        column = np.empty(len(table), np.int32)
        c.statuses = ffi.from_buffer("int32_t[]", column)
        code = self._call(lambda: -int(lib.pf_move_run(c)))
        c.statuses = ffi.NULL
        table["status"] = column
        self.statuses.append(table)
        return code

    def _run_both(self, user: UserRun, extents: npt.NDArray[np.void]) -> int:
        """What fits to the user engine, what it leaves and the rest to the kernel's."""
        here, rest = user.sort(extents)
        for engine, part in user.choose(here) if len(here) else ():
            if self.error:  # the core counts what it does not try any more
                rest = np.concatenate([rest, part])
                continue
            if not len(part):
                continue
            name = user.faster(part) if engine == "faster" else engine
            if name in ("kernel", "trial kernel"):
                code = self._run_kernel(part, user if name == "trial kernel" else None)
            else:
                attempt = user.tried if name == "trial user" else user.run
                code, left = self._call(lambda part=part, attempt=attempt: attempt(part))  # type: ignore[misc]
                rest = np.concatenate([rest, left])
                if user.cancelled:
                    self.end()
            if code not in (0, errno.ECANCELED):
                self._c.error = self._c.error or code
        code = self._run_kernel(np.sort(rest, order="start"), None)
        return self.error or code

    def _run_kernel(self, extents: npt.NDArray[np.void], trial: UserRun | None) -> int:
        """Move by the kernel engine, with the rate noted for a trial."""
        if not len(extents):
            return errno.ECANCELED if self._c.cancel else 0
        c = self._c
        c.extents, c.n_extents = ffi.from_buffer("struct pf_extent[]", extents), len(extents)
        before, begun = int(c.progress.bytes_moved), time.perf_counter()
        code = self._call(lambda: -int(lib.pf_move_run(c)))
        if trial is not None:
            moved = int(c.progress.bytes_moved) - before
            seconds = time.perf_counter() - begun
            RATES.note(int(extents["shift"][0]), trial.way, "kernel", moved, seconds)
        return code

    def _call(self, function: Callable[[], _T]) -> _T:
        with polled(self):
            return function()

    def glance(self) -> Progress:
        """Return how far the move is. Takes no lock; any thread may call it."""
        p = self._c.progress
        settled = p.bytes_already + p.bytes_elsewhere + p.bytes_gone + p.bytes_failed
        seconds = time.perf_counter() - self._begun - self.seconds_paused
        done = int(p.bytes_moved + settled)
        pages = [sum(p.pages_moved), sum(p.pages_already), int(p.failures_seen)]
        if self._user is not None:
            done += self._user.bytes_done
            pages = [a + b for a, b in zip(pages, (*self._user.pages_done, 0), strict=True)]
        failed = int(p.bytes_failed)
        return Progress(done, self.bytes_moved, failed, self.total, seconds, *pages)

    def poll(self) -> bool:
        """Report progress and look for a reason to end; True ends the move."""
        self._asked = time.perf_counter()
        if self._process.gone:
            self._ended = True
            self._c.error = errno.ESRCH
            return True
        if self._progress is not None:
            self._progress(self.glance())
        return self._asked_to_end()

    def _asked_to_end(self) -> bool:
        """Say whether the event is set, or the time is over."""
        if self._cancel is not None and self._cancel.is_set():
            return True
        limit = self._limits.timeout
        self.timed_out = limit is not None and time.perf_counter() - self._begun >= limit
        return self.timed_out

    def look(self) -> None:
        """Poll if it is due, and end the move if there is a reason. For use between windows."""
        if self._asked_to_end():
            self.end()
        elif self._windows and time.perf_counter() - self._asked >= _POLL_US / 1e6:
            try:
                if self.poll():
                    self.end()
            except BaseException as exception:
                self.exception = exception
                self.end()
        self._windows += 1

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user engine could not set back as it was."""
        return () if self._user is None else self._user.warnings

    def end(self) -> None:
        """End the move between two batches. Any thread may call it."""
        self._c.cancel = 1
        if self._user is not None:
            self._user.end()

    @property
    def error(self) -> int:
        """The errno that the kernel ended the move with, or 0."""
        return int(self._c.error)

    @property
    def cancelled(self) -> bool:
        """True after a cancel; the end of the process or of the time is none."""
        return bool(self._c.cancel) and not self._ended and not self.timed_out

    @property
    def bytes_moved(self) -> int:
        """Bytes that moved so far."""
        user = 0 if self._user is None else self._user.bytes_moved
        return int(self._c.progress.bytes_moved) + user

    @property
    def touched(self) -> bool:
        """True when the kernel has attended to at least one page."""
        p = self._c.progress
        if self._user is not None and self._user.bytes_done:
            return True
        return bool(p.bytes_moved or p.bytes_already or p.bytes_failed or p.bytes_elsewhere)

    def counts(self) -> dict[str, Any]:
        """Return the fields of ``MoveResult`` that the core counts."""
        p, pace = self._c.progress, self._c.pace
        seen = min(int(p.failures_seen), lib.PF_MAX_FAILURES)
        counts: dict[str, Any] = {
            "bytes_moved": int(p.bytes_moved),
            "bytes_already": int(p.bytes_already),
            "bytes_elsewhere": int(p.bytes_elsewhere),
            "bytes_gone": int(p.bytes_gone),
            "bytes_failed": int(p.bytes_failed),
            "bytes_skipped": int(p.bytes_skipped),
            "pages_moved": {kind: int(p.pages_moved[i]) for i, kind in enumerate(KINDS)},
            "pages_already": {kind: int(p.pages_already[i]) for i, kind in enumerate(KINDS)},
            "failed": {i: int(p.failed[i]) for i in range(lib.PF_MAX_ERRNO) if p.failed[i]}
            if seen
            else {},
            "failures": tuple(
                Failure(int(f.address), 1 << f.shift, int(f.error)) for f in p.failures[0:seen]
            ),
            "exact": not p.pages_unsampled,
            "workers": int(self._c.workers),
            "helpers_left": int(pace.helpers_left),
            "kernel_mt": bool(self._c.flags & lib.PF_MOVE_KERNEL_MT),
            "alone_gbps": pace.alone_rate / 1e9,
            "together_gbps": pace.together_rate / 1e9,
            "fell_back": _why_alone(int(self._c.threads), pace),
            "calls": int(p.calls),
            "retried": int(p.retried),
            "longest_call_ms": p.longest_call_us / 1000,
        }
        if self._user is not None:
            self._user.add_to(counts)
        return counts


def _why_alone(threads: int, pace: Any) -> str | None:
    if not pace.fell_back:
        return None
    return (
        f"{threads} threads together moved {pace.together_rate / 1e9:.3g} GB/s, one alone "
        f"{pace.alone_rate / 1e9:.3g} GB/s: "
        + ("one thread went on" if pace.fell_back == 1 else f"so {pace.fell_back} times")
    )


def locate_extents(
    extents: npt.NDArray[np.void],
    pid: int,
    *,
    threads: int = 1,
    stride: int = 1,
    statuses: bool = False,
) -> tuple[int, npt.NDArray[np.uint64], int, int, npt.NDArray[np.void] | None]:
    """Ask the kernel for the node of every page (or every ``stride``-th one).

    Returns an errno or 0, the pages by node and kind (shape ``(PF_MAX_NODES, 3)``), the pages
    gone, the pages with another error, and the table of statuses if wanted.
    """
    c: Any = ffi.new("struct pf_locate *")
    c.pid, c.threads, c.stride = pid, threads, stride
    c.extents, c.n_extents = ffi.from_buffer("struct pf_extent[]", extents), len(extents)
    table = None
    if statuses:
        table = status_table(extents)
        column = np.empty(len(table), np.int32)
        c.statuses = ffi.from_buffer("int32_t[]", column)
    error = -int(lib.pf_locate_run(c))
    if table is not None:
        table["status"] = column
    pages = np.frombuffer(ffi.buffer(c.pages), np.uint64).reshape(_NODE_LIMIT, len(KINDS)).copy()
    return error, pages, int(c.pages_gone), int(c.pages_failed), table


def status_table(extents: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Return a table of dtype ``report.STATUS`` with one row for each page of ``extents``."""
    pages = extents["pages"].astype(np.int64)
    table = np.zeros(int(pages.sum()), STATUS)
    size = np.repeat(np.uint64(1) << extents["shift"].astype(np.uint64), pages)
    first = np.repeat(np.cumsum(pages) - pages, pages)
    within = (np.arange(len(table)) - first).astype(np.uint64)
    table["address"] = np.repeat(extents["start"], pages) + within * size
    table["size"] = size
    return table


def _node_mask(nodes: Iterable[int]) -> Any:
    words = [0] * lib.PF_NODE_WORDS
    for node in nodes:
        if not 0 <= node < _NODE_LIMIT:
            raise ValueError(f"node {node} is beyond {_NODE_LIMIT - 1}")
        words[node // 64] |= 1 << node % 64
    return ffi.new("uint64_t[]", words)

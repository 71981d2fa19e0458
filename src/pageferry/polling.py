# SPDX-License-Identifier: Apache-2.0
"""Polling: what the core asks Python while it works, on the thread that called it."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from ._native import ffi

if TYPE_CHECKING:
    from typing import Any


class Polled(Protocol):
    """What the core asks, now and then on the thread that called it, whether it shall end."""

    exception: BaseException | None

    def poll(self) -> bool:
        """Look for a reason to end; True ends it."""
        ...

    def end(self) -> None:
        """End it soon. Any thread may call it."""
        ...


class _Polling(threading.local):
    """The run whose ``poll`` the core calls on this thread."""

    run: Polled | None = None


_polling = _Polling()

# Runs under way. A daemon thread must not poll when the interpreter is on its way out: taking the
# GIL then ends the thread, and with it the stack that helpers still use.
_active: set[Polled] = set()


@contextmanager
def polled(run: Polled) -> Iterator[None]:
    """Have ``pf_python_poll``, with a handle of ``run``, ask it while the core is called."""
    outer, _polling.run = _polling.run, run
    _active.add(run)
    try:
        yield
    finally:
        _active.discard(run)
        _polling.run = outer


def handle_of(run: Polled) -> Any:
    """Return what ``pf_python_poll`` finds ``run`` by, for ``run`` to keep.

    A weak reference: a run that could only be freed by the collector of cycles would hold its
    arrays, 1.5 MiB of the user engine's, until that comes round.
    """
    return ffi.new_handle(weakref.ref(run))


@atexit.register
def _end_all() -> None:
    for run in list(_active):
        run.end()


def _before_poll(exception: type[BaseException], value: BaseException, traceback: object) -> int:
    # A signal that came while the core ran is handled before the callback's first statement.
    if _polling.run is not None:
        _polling.run.exception = value
    return 1


@ffi.def_extern(onerror=_before_poll)  # type: ignore[untyped-decorator]
def pf_python_poll(argument: Any) -> int:
    """Call ``Polled.poll`` from the core, on the thread that called ``run``."""
    run: Polled = ffi.from_handle(argument)()
    try:
        return int(run.poll())
    except BaseException as exception:
        run.exception = exception
        return 1

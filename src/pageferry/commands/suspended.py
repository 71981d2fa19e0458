# SPDX-License-Identifier: Apache-2.0
"""Ctrl-Z during a move: stop between two batches, with a clean terminal; go on when continued."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..control import MoveControl
from ..progress_bar import MoveBar


class Suspension:
    """Whether SIGTSTP has come; ``obey`` stops the process if it has."""

    def __init__(self, control: MoveControl) -> None:
        self._control = control
        self._wanted = False

    def want(self, number: int, frame: FrameType | None) -> None:
        """Note the signal: the bar may be drawing itself at this moment."""
        self._wanted = True
        self._control.pause()

    def obey(self, bar: MoveBar) -> None:
        """Stop here if the signal has come, until SIGCONT."""
        if self._wanted:
            bar.hide()
            self.stop()

    def stop(self) -> None:
        """The same without a bar."""
        if self._wanted:
            self._wanted = False
            os.kill(os.getpid(), signal.SIGSTOP)  # SIGTSTP would only come to us again
            self._control.resume()


@contextmanager
def suspension(control: MoveControl) -> Iterator[Suspension]:
    """Have SIGTSTP wait for the end of a batch; not where it is ignored."""
    suspended = Suspension(control)
    before = signal.getsignal(signal.SIGTSTP)
    if before == signal.SIG_DFL:
        signal.signal(signal.SIGTSTP, suspended.want)
    try:
        yield suspended
    finally:
        if before == signal.SIG_DFL:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        suspended.stop()  # it came after the last batch

# SPDX-License-Identifier: Apache-2.0
"""Keys one by one from a terminal, and the terminal given back as it was."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import termios
import tty
from types import TracebackType
from typing import Any

from .guard import Guard

_NAMES = {
    "\x1b[A": "up", "\x1bOA": "up", "\x1b[B": "down", "\x1bOB": "down",
    "\x1b[5~": "page up", "\x1b[6~": "page down",
    "\x1b": "escape", "\r": "enter", "\n": "enter", "\x7f": "backspace", "\b": "backspace",
}  # fmt: skip
_KEY = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Za-z])|.", re.DOTALL)


def names(typed: str) -> list[str]:
    """Return the keys in what a terminal sent: names for arrows and the like, else characters."""
    keys = [_NAMES.get(key, key) for key in _KEY.findall(typed)]
    return [key for key in keys if not key.startswith("\x1b")]


class Terminal:
    """Standard input without echo and line editing, while the context is open.

    Signals wake ``wait``: whatever a handler noted is seen at once, also a change of size.
    """

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._before: list[Any] = []
        self._wake = -1, -1
        self._fd_before = -1
        self._guard: Guard | None = None

    def __enter__(self) -> Terminal:
        self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._fd_before = signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        # A signal without a Python handler does not come through the wakeup file.
        self._resized = signal.signal(signal.SIGWINCH, lambda number, frame: None)
        self._guard = Guard(self._fd)
        self.take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.give_back()
        if self._guard is not None:
            self._guard.close()
        signal.signal(signal.SIGWINCH, self._resized)
        signal.set_wakeup_fd(self._fd_before)
        for end in self._wake:
            os.close(end)

    def take(self) -> None:
        """Have keys come one by one."""
        self._before = termios.tcgetattr(self._fd)
        if self._guard is not None:
            self._guard.say(on=True)
        tty.setcbreak(self._fd)

    def give_back(self) -> None:
        """Make the terminal what it was, and drop what was typed ahead."""
        termios.tcsetattr(self._fd, termios.TCSAFLUSH, self._before)
        if self._guard is not None:
            self._guard.say(on=False)

    def wait(self, seconds: float) -> list[str]:
        """Return the keys pressed; [] after so many seconds, or a signal. EOFError: hung up."""
        ready, _, _ = select.select([self._fd, self._wake[0]], [], [], max(seconds, 0))
        if self._wake[0] in ready:
            os.read(self._wake[0], 1024)
        if self._fd not in ready:
            return []
        typed = os.read(self._fd, 1024)
        if not typed:
            raise EOFError
        return names(typed.decode(errors="replace"))

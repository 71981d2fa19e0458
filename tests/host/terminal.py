# SPDX-License-Identifier: Apache-2.0
"""A command in a real pseudo-terminal, and what a person would see on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import pyte

PATIENCE = 300.0


class Terminal:
    """Run ``command`` on a terminal of that size; ``screen`` is what is shown.

    The alternate screen is not pyte's: what was shown before it is not kept. That it was left is
    told by ``alternate``.
    """

    def __init__(
        self, command: Sequence[str], *, columns: int = 110, lines: int = 30, **environment: str
    ) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self.status: int | None = None
        settings = os.environ | {"TERM": "xterm-256color"} | environment
        for name in ("COLUMNS", "LINES"):
            settings.pop(name, None)
        self.pid, self.fd = pty.fork()
        if not self.pid:
            # Not with the process's own environment: the readline library puts LINES into it.
            os.execvpe(command[0], list(command), settings)
        self.resize(columns, lines)
        self.modes = termios.tcgetattr(self.fd)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._screen.resize(lines, columns)

    @property
    def screen(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display)

    @property
    def alternate(self) -> bool:
        """Whether the alternate screen is shown."""
        return self.raw.rfind(b"\x1b[?1049h") > self.raw.rfind(b"\x1b[?1049l")

    @property
    def cursor_hidden(self) -> bool:
        return self.raw.rfind(b"\x1b[?25l") > self.raw.rfind(b"\x1b[?25h")

    def send(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    def until(self, condition: Callable[[], Any], what: str = "") -> None:
        """Read what it shows until ``condition`` holds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if self.status is not None or time.monotonic() > end:
                raise AssertionError(f"{what or 'it'} never came; the screen is:\n{self.screen}")
            self._read(0.2)

    def shows(self, text: str) -> None:
        self.until(lambda: text in self.screen, repr(text))

    def ended(self) -> int:
        """Wait for the end; return the exit code, or minus the signal that ended it."""
        end = time.monotonic() + PATIENCE
        while self.status is None:
            if time.monotonic() > end:
                raise AssertionError(f"it did not end; the screen is:\n{self.screen}")
            self._read(0.1)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        while self._read(0.0):
            pass
        return self.status

    def _read(self, seconds: float) -> bool:
        if not select.select([self.fd], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.fd, 1 << 16)
        except OSError:  # EIO: nobody has the other end any more
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)

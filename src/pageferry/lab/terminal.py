# SPDX-License-Identifier: Apache-2.0
"""The host's terminal while it belongs to a shell in the guest."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Callable

from .conversation import Sink

_DETACH = b"\x1d"  # Ctrl-], as in telnet: no shell needs it
_END_OF_INPUT = b"\x04"  # Ctrl-D


class RawTerminal:
    """Puts the terminal into raw mode while entered, and leaves it as it was.

    Works without a terminal as well: then it only passes bytes.
    """

    def __init__(self) -> None:
        self.stdin = sys.stdin.fileno()
        self._saved: list[int | list[bytes | int]] | None = None
        self._old_handler: object = None

    def __enter__(self) -> RawTerminal:
        """Switch to raw mode."""
        if os.isatty(self.stdin):
            self._saved = termios.tcgetattr(self.stdin)
            tty.setraw(self.stdin, termios.TCSADRAIN)
        return self

    def __exit__(self, *exception: object) -> None:
        """Restore the terminal, whatever the guest did to it."""
        if callable(self._old_handler) or isinstance(self._old_handler, int):
            signal.signal(signal.SIGWINCH, self._old_handler)
        if self._saved is not None:
            # Attributes off, cursor on: a guest that dies in an editor leaves both changed.
            if os.isatty(1):
                self.write(b"\x1b[0m\x1b[?25h\x1b[?1049l\r\n")
            termios.tcsetattr(self.stdin, termios.TCSADRAIN, self._saved)

    def size(self) -> os.terminal_size:
        """Return the terminal's size, 24 lines of 80 columns without one."""
        return shutil.get_terminal_size()

    def write(self, data: bytes) -> None:
        """Show bytes from the guest."""
        while data:
            data = data[os.write(1, data) :]

    def on_resize(self, tell: Callable[[bytes], None]) -> None:
        """Call ``tell`` with the line for the guest whenever the terminal changes its size."""

        def changed(number: int, frame: object) -> None:
            size = os.get_terminal_size(self.stdin)
            tell(b"size %d %d\n" % (size.lines, size.columns))

        if self._saved is not None:
            self._old_handler = signal.signal(signal.SIGWINCH, changed)


def detach_on(stop: Callable[[], None], send: Sink) -> Sink:
    """Return a consumer of key presses: Ctrl-] calls ``stop``, all else is sent."""

    def keys(data: bytes) -> None:
        if _DETACH in data:
            stop()
        else:
            send(data or _END_OF_INPUT)

    return keys

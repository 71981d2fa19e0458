# SPDX-License-Identifier: Apache-2.0
"""A shell beside the live view that gives the terminal back when the view is killed (SIGKILL)."""

from __future__ import annotations

import subprocess
from contextlib import suppress

# It reads "on" and "off"; at the end of its input, in the state "on", nobody else can clean up. In
# a session of its own it gets none of the terminal's signals and may change the terminal.
_SCRIPT = """
while read -r line; do state=$line; done
[ "$state" = on ] || exit 0
stty "$1" <&1
printf '\\033[?1049l\\033[?25h\\033[0m'
"""


class Guard:
    """Watches over the terminal of a file descriptor; without a shell, over nothing."""

    def __init__(self, terminal: int) -> None:
        self._shell: subprocess.Popen[bytes] | None = None
        with suppress(OSError, subprocess.SubprocessError):
            modes = subprocess.run(
                ["stty", "-g"], stdin=terminal, capture_output=True, check=True, text=True
            ).stdout.strip()
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT, "sh", modes],
                stdin=subprocess.PIPE,
                stdout=terminal,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def say(self, *, on: bool) -> None:
        """Tell it whether the terminal is to be given back by it."""
        if self._shell is not None and self._shell.stdin is not None:
            with suppress(OSError):
                self._shell.stdin.write(b"on\n" if on else b"off\n")
                self._shell.stdin.flush()

    def close(self) -> None:
        """End it. The terminal has been given back."""
        self.say(on=False)
        if self._shell is not None and self._shell.stdin is not None:
            self._shell.stdin.close()
            self._shell.wait()

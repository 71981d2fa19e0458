# SPDX-License-Identifier: Apache-2.0
"""Another process, held by a pidfd, so that a reused process id is never taken for it."""

from __future__ import annotations

import os
import select
from types import TracebackType


class HeldProcess:
    """Process ``pid`` for as long as this is open; ``gone`` says whether it has ended.

    Rests on pidfd_open(2), Linux 5.3. Without it, or for a thread id, ``gone`` is always False.
    ``pid`` None stands for the calling process.
    """

    def __init__(self, pid: int | None) -> None:
        self._fd = -1
        if pid is not None:
            try:
                self._fd = os.pidfd_open(pid)
            except (OSError, OverflowError):
                return
            self._poll = select.poll()
            self._poll.register(self._fd, select.POLLIN)

    @property
    def gone(self) -> bool:
        """True once the process has ended."""
        return self._fd >= 0 and bool(self._poll.poll(0))

    def __enter__(self) -> HeldProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._fd >= 0:
            os.close(self._fd)

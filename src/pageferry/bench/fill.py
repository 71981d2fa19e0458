# SPDX-License-Identifier: Apache-2.0
"""UFFDIO_COPY by itself, from several threads: what the kernel fills missing pages with."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct
import threading
from types import TracebackType

from ..errors import PageferryError

_NUMBERS = {"x86_64": 323, "aarch64": 282}  # POWER encodes ioctls differently
_API, _API_ARGS = 0xC018AA3F, "QQQ"
_REGISTER, _REGISTER_ARGS = 0xC020AA00, "QQQQ"
_COPY, _COPY_ARGS = 0xC028AA03, "QQQQq"
_UFFD_API, _MISSING = 0xAA, 1
_PIECE = 8 << 20


class Filler:
    """A userfaultfd that ``fill`` copies with. Raises ``PageferryError`` where there is none.

    Rests on userfaultfd(2) and ioctl_userfaultfd(2), called from Python threads: an ioctl lets
    the other threads run.
    """

    def __init__(self) -> None:
        number = _NUMBERS.get(platform.machine())
        if number is None:
            raise PageferryError(95, "UFFDIO_COPY is timed on x86-64 and aarch64 only")
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(libc.syscall(number, os.O_CLOEXEC))
        if self._fd < 0:
            raise PageferryError(ctypes.get_errno(), "no userfaultfd")
        fcntl.ioctl(self._fd, _API, struct.pack(_API_ARGS, _UFFD_API, 0, 0))

    def watch(self, start: int, size: int) -> None:
        """Register missing pages of a range, which is not to be touched until filled."""
        fcntl.ioctl(self._fd, _REGISTER, struct.pack(_REGISTER_ARGS, start, size, _MISSING, 0))

    def fill(self, to: int, source: int, size: int, threads: int) -> None:
        """Copy all of it, ``threads`` at a time."""
        lock = threading.Lock()
        offsets = iter(range(0, size, _PIECE))

        def work() -> None:
            while True:
                with lock:
                    offset = next(offsets, None)
                if offset is None:
                    return
                length = min(_PIECE, size - offset)
                done = 0
                while done < length:
                    at = offset + done
                    args = struct.pack(_COPY_ARGS, to + at, source + at, length - done, 0, 0)
                    answer = struct.unpack(_COPY_ARGS, fcntl.ioctl(self._fd, _COPY, args))
                    done += answer[-1]

        helpers = [threading.Thread(target=work) for _ in range(threads - 1)]
        for helper in helpers:
            helper.start()
        work()
        for helper in helpers:
            helper.join()

    def __enter__(self) -> Filler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._fd)

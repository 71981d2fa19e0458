# SPDX-License-Identifier: Apache-2.0
"""Errors a person can act on: what failed, the errno by name, what to try."""

from __future__ import annotations

import errno as _errno
import os


def errno_name(number: int) -> str:
    """Return the symbolic name of an errno, such as ``EPERM`` for 1."""
    return _errno.errorcode.get(number, f"errno {number}")


class PageferryError(OSError):
    """A request that the kernel, or a check before it, refused.

    ``errno`` is the kernel's number (or the one it would have given), ``hint`` says what to
    try. ``str()`` shows message, errno name and hint on one line.
    """

    def __init__(self, number: int, message: str, hint: str = "") -> None:
        super().__init__(number, message)
        self.hint = hint

    @property
    def name(self) -> str:
        """The errno by name, such as ``ENODEV``."""
        return errno_name(self.errno or 0)

    def __str__(self) -> str:
        text = f"{self.strerror} [{self.name}: {os.strerror(self.errno or 0)}]"
        return f"{text}; {self.hint}" if self.hint else text


class NodeError(PageferryError, ValueError):
    """A node that does not exist, has no memory, or is not allowed for this process."""


class RangeError(PageferryError, ValueError):
    """An address range that is reversed, overflows, or is not mapped."""


class ProcessGoneError(PageferryError, ProcessLookupError):
    """The process does not exist, or ended before anything could be done."""


class NotPermittedError(PageferryError, PermissionError):
    """The kernel refuses the caller: another user's process, seccomp, or a cpuset."""


class DescriptionError(PageferryError, ValueError):
    """A saved plan or the description of a machine that makes no sense."""


class TargetError(PageferryError, ValueError):
    """A request that names no target, or one that cannot be: a cgroup, a unit, a pattern."""


class UnsupportedError(PageferryError):
    """The running kernel lacks what the request needs."""


class NodeFullError(PageferryError, MemoryError):
    """A node has no room for memory of that size, or not in pages of that size."""

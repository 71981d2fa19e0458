# SPDX-License-Identifier: Apache-2.0
"""The error for a request that was refused as a whole: what failed, and what to try."""

from __future__ import annotations

import errno

from . import procfs
from .errors import (
    NodeError,
    NotPermittedError,
    PageferryError,
    ProcessGoneError,
    RangeError,
    UnsupportedError,
)
from .target import Target


def explain_nothing(what: Target) -> None:
    """Raise when nothing was found because the addresses are not mapped at all."""
    if what.whole_process or what.owner is not None or not what.ranges:
        return
    wanted = what.ranges[0]
    try:
        maps = procfs.mappings(what.pid or None)
    except (UnsupportedError, NotPermittedError):
        return
    if any(m.start < wanted.stop and wanted.start < m.end for m in maps):
        return
    raise RangeError(
        errno.EFAULT,
        f"nothing is mapped at {wanted.start:#x}-{wanted.stop:#x}",
        f"/proc/{what.pid or 'self'}/maps lists what is",
    )


def refusal(number: int, what: Target, node: int) -> PageferryError:
    """Return the error for a call that the kernel refused as a whole."""
    who = f"process {what.pid}" if what.pid else "this process"
    if number == errno.ESRCH:
        return ProcessGoneError(number, f"{who} does not exist or has ended", "check the id")
    if number == errno.EPERM:
        return NotPermittedError(
            number,
            f"the kernel refuses to {'say where' if node < 0 else 'move'} pages of {who}"
            + (" are" if node < 0 else ""),
            "another user's process or shared pages need CAP_SYS_NICE; in a container, the "
            "seccomp profile must allow move_pages (see pageferry doctor)",
        )
    if number == errno.EACCES:
        return NodeError(
            number, f"{who} may not use node {node}", "its cpuset.mems does not have that node"
        )
    if number == errno.ENODEV:
        return NodeError(number, f"node {node} has no memory", "see pageferry topology")
    if number == errno.ENOSYS:
        return UnsupportedError(
            number, "this kernel cannot move pages", "it needs CONFIG_NUMA and CONFIG_MIGRATION"
        )
    if number == errno.ENOMEM:
        return PageferryError(
            number, f"node {node} is full: nothing was moved", "free memory there, or take another"
        )
    if number == errno.ENOBUFS:
        return PageferryError(number, "no memory for the lists of pages", "free some memory")
    return PageferryError(number, f"move_pages failed for {who}", "see pageferry doctor")

# SPDX-License-Identifier: Apache-2.0
"""The CPU time that the cgroup of this process may use, as containers are limited."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path, PurePosixPath

from . import sysfs

_CGROUPS = "sys/fs/cgroup"


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return how many CPUs' worth of time this process may use; None without a limit.

    The tightest ``cpu.max`` of the process's cgroup (version 2) and those above it counts. Threads
    beyond it gain nothing: when the time of a period is used up, all of them stand still, the
    caller too.
    """
    match = re.search(r"^0::(/.*)$", sysfs.text(root / "proc/self/cgroup") or "", re.M)
    if match is None or ".." in match[1]:  # a cgroup outside of our namespace
        return None
    found: list[float] = []
    here = PurePosixPath(match[1].lstrip("/"))
    for group in (here, *here.parents):
        limit = re.fullmatch(r"(\d{1,18}) (\d{1,18})", _read(root, group))
        if limit is not None and int(limit[2]):
            found.append(int(limit[1]) / int(limit[2]))
    return min(found, default=None)


def _read(root: Path, group: PurePosixPath) -> str:
    return sysfs.text(root / _CGROUPS / group / "cpu.max") or ""


@lru_cache(maxsize=1)
def threads_within_quota() -> int | None:
    """Return the most threads that the quota keeps busy, at least 1; read once in a process."""
    quota = cpu_quota()
    return None if quota is None else max(int(quota + 0.5), 1)

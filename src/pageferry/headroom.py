# SPDX-License-Identifier: Apache-2.0
"""Memory that this process may still take before the OOM killer is asked.

The user engine copies into new pages while the old ones are still there. The kernel charges them to
the process's memory cgroup, and where that is at its limit and nothing can be reclaimed, it does
not refuse the page: it kills a process of the cgroup. So the room is looked at first.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from . import sysfs

#: What one thread of the user engine takes at most, for as long as a piece is under way.
PER_THREAD = 16 << 20
#: Charges come in batches for each CPU, and others in the cgroup take memory, too.
_SLACK = 8 << 20
_NO_LIMIT = 1 << 60  # what version 1 says is a little less than 2^63
_V1 = {"memory.max": "memory.limit_in_bytes", "memory.current": "memory.usage_in_bytes"}


def cgroup_room(root: Path = Path("/")) -> int | None:
    """Return about how many bytes the memory cgroup allows in addition; None without a limit.

    The tightest of the process's cgroup and those above it, version 2 or 1, with half of the page
    cache in it, which the kernel drops first.
    """
    text = sysfs.text(root / "proc/self/cgroup") or ""
    rooms: list[int] = []
    for pattern, base, old in (
        (r"^0::(/.*)$", root / "sys/fs/cgroup", False),
        (r"^\d+:(?:[^:]*,)?memory(?:,[^:]*)?:(/.*)$", root / "sys/fs/cgroup/memory", True),
    ):
        match = re.search(pattern, text, re.M)
        if match is None or ".." in match[1]:  # a cgroup outside of our namespace
            continue
        here = PurePosixPath(match[1].lstrip("/"))
        for group in (here, *here.parents):
            room = _room_in(base / group, old)
            if room is not None:
                rooms.append(room)
    return min(rooms, default=None)


def _room_in(group: Path, old: bool) -> int | None:
    limit, used = (
        sysfs.number(group / (_V1[name] if old else name))
        for name in ("memory.max", "memory.current")
    )
    if limit is None or used is None or limit >= _NO_LIMIT:
        return None
    prefix = "total_" if old else ""
    stat = sysfs.text(group / "memory.stat") or ""
    cache = re.findall(rf"^{prefix}(?:in)?active_file (\d{{1,18}})$", stat, re.M)
    return max(limit - used + sum(map(int, cache)) // 2, 0)


def machine_room(root: Path = Path("/")) -> int | None:
    """Return what the kernel estimates that can be had (``MemAvailable``); None: it does not."""
    return sysfs.meminfo(root / "proc/meminfo").get("MemAvailable")


def threads_with_room(threads: int, size: int, root: Path = Path("/")) -> tuple[int, str]:
    """Return how many of the user engine's threads have room to move ``size`` bytes, and why fewer.

    0 where not even one has.
    """
    for room, where in (
        (cgroup_room(root), "the memory cgroup is almost at its limit (memory.max)"),
        (machine_room(root), "the machine is almost out of memory"),
    ):
        if room is None or room - _SLACK >= min(threads * PER_THREAD, size):
            continue
        # With less than it takes, fewer threads take less; the last one needs all of its room.
        threads = max(room - _SLACK, 0) // PER_THREAD
        if not threads:
            return 0, f"{where}, and copies need {min(size, PER_THREAD) >> 20 or 1} MiB of room"
    return threads, ""

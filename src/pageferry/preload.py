# SPDX-License-Identifier: Apache-2.0
"""The preload library: where it is, and the plan that is handed to it in the environment."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from .errors import UnsupportedError
from .flags import format_nodes
from .nodes import machine

LIBRARY = "libpageferry_preload.so"
MAX_THREADS = 1024


def library() -> Path:
    """Return the path of the library. Raises ``UnsupportedError`` where it was not built."""
    path = Path(__file__).with_name(LIBRARY)
    if not path.exists():
        raise UnsupportedError(errno.ENOENT, f"{path} is not installed", "install pageferry again")
    return path


def environment(
    mode: str = "flag",
    *,
    threads: int | None = None,
    log: str | None = None,
    stats: Path | None = None,
    base: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the variables that put the library before a program, and plan for this machine.

    ``mode`` is ``flag``, ``always`` or ``never``; ``threads`` counts the caller in (default: one
    for each core that this process may use), each on a CPU of its own as ``Topology.spread`` has
    them; ``log`` is a file to append to, or ``stderr``; ``stats`` a file that ``Counters`` made.
    ``base`` is the environment that it is for: a library that stands in LD_PRELOAD there stays.
    """
    here = machine()
    allowed = os.sched_getaffinity(0)
    order = here.spread(allowed)
    count = min(threads or sum(1 for core in here.cores() if core & allowed) or 1, MAX_THREADS)
    cpus = [order[i % len(order)] for i in range(count)] if order else []
    others = (base or {}).get("LD_PRELOAD", "").replace(":", " ").split()
    path = os.fspath(library())
    values = {
        "LD_PRELOAD": ":".join([path, *(other for other in others if other != path)]),
        "PAGEFERRY_MT": mode,
        "PAGEFERRY_THREADS": str(count),
        "PAGEFERRY_CPUS": ",".join(map(str, cpus)),
        "PAGEFERRY_NODES": format_nodes(here.memory_nodes),
    }
    if log:
        values["PAGEFERRY_LOG"] = log
    if stats:
        values["PAGEFERRY_STATS"] = os.fspath(stats)
    return values


@dataclass(frozen=True)
class Counts:
    """What the library did, in all processes that the counters were handed to."""

    calls: int
    """Calls done by several threads."""
    passed: int
    """Calls that qualified for that, and were handed to the kernel as they were."""
    pages: int
    bytes: int
    busy_us: int
    """Microseconds in ``calls``, added up."""
    repeated: int
    """Of ``calls``, those undone and left to the kernel after a page would not move."""
    workers: int
    """Most threads that took part in one call."""

    @property
    def gbps(self) -> float:
        """Moved bytes by the time in the calls, in 10^9 bytes a second."""
        return self.bytes / self.busy_us / 1e3 if self.busy_us else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the counts for JSON."""
        return asdict(self) | {"gbps": round(self.gbps, 3)}


class Counters:
    """A file in which the library adds up what it does; a context manager, gone at its end.

    Counts survive processes that are killed. They add up over everything a program starts.
    """

    _FORMAT = "7Q"

    def __init__(self) -> None:
        descriptor, name = tempfile.mkstemp(prefix="pageferry-")
        self.path = Path(name)
        os.truncate(descriptor, mmap.PAGESIZE)
        os.close(descriptor)

    def read(self) -> Counts:
        """Return the counts as they are now."""
        size = struct.calcsize(self._FORMAT)
        with self.path.open("rb") as file:
            return Counts(*struct.unpack(self._FORMAT, file.read(size)))

    def __enter__(self) -> Counters:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.path.unlink(missing_ok=True)

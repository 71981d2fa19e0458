# SPDX-License-Identifier: Apache-2.0
"""How busy the machine is: pressure stall information (PSI, Linux 4.20), and who runs now."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

#: Share of the last ten seconds in which some task waited for a CPU, in percent: from here on half
#: the threads, and from there on one.
CPU_HALF = 50.0
CPU_ONE = 80.0
#: Share in which every task waited for memory, in percent, that is worth a warning.
MEMORY_SHORT = 5.0
_FRESH_SECONDS = 1.0
_LONGEST = 4096
_LOOKS = 3
_LOOK_SECONDS = 0.0005
_LOADAVG = Path("/proc/loadavg")
_ROOT = Path("/proc/pressure")


@dataclass(frozen=True)
class Pressure:
    """Percentages of the last ten seconds; None where the kernel does not say.

    ``cpu_some``: some task waited for a CPU; ``memory_full``: all tasks waited for memory.
    ``others`` are the tasks that have or want one of the ``cpus`` of the machine now.
    """

    cpu_some: float | None = None
    memory_full: float | None = None
    others: int = 0
    cpus: int = 0

    def threads(self, count: int) -> tuple[int, str]:
        """Return how many of ``count`` threads to use, and why fewer, or an empty text."""
        idle = max(self.cpus - self.others, 1)
        if self.others and count > idle:
            return idle, f"not {count}: {self.others} other tasks run on {self.cpus} CPUs"
        if count < 2 or self.cpu_some is None or self.cpu_some < CPU_HALF:
            return count, ""
        fewer = 1 if self.cpu_some >= CPU_ONE else count // 2
        return fewer, (
            f"not {count}: in {self.cpu_some:.0f} % of the last 10 seconds tasks waited "
            "for a CPU (/proc/pressure/cpu)"
        )

    @property
    def warning(self) -> str:
        """What to say when memory is short, or an empty text."""
        if self.memory_full is None or self.memory_full < MEMORY_SHORT:
            return ""
        return (
            f"memory is short: in {self.memory_full:.0f} % of the last 10 seconds every task "
            "waited for it (/proc/pressure/memory); a move needs free memory on its target"
        )


def read(root: Path = _ROOT) -> Pressure:
    """Read it now. Where a file is missing, unreadable or damaged, that part is None."""
    return Pressure(_avg10(root / "cpu", "some"), _avg10(root / "memory", "full"))


_last: tuple[float, Pressure] = (-_FRESH_SECONDS, Pressure())


def others_running(looks: int = _LOOKS) -> int:
    """Return how many tasks of the machine, this one left out, have or want a CPU now.

    The least of some looks, half a millisecond apart, since some are over at once; nobody is
    nobody at the first. 0 where the kernel does not say.
    """
    least = 1 << 30
    for look in range(looks):
        if look:
            time.sleep(_LOOK_SECONDS)
        try:
            running = int(_text(_LOADAVG).split()[3].partition("/")[0]) - 1
        except (OSError, ValueError, IndexError):
            return 0
        least = min(least, max(running, 0))
        if not least:
            break
    return least


def now(looks: int = _LOOKS) -> Pressure:
    """Return ``recent`` and who runs now; of more than one look each takes half a millisecond."""
    cpus = os.cpu_count() or 1
    return replace(recent(), others=others_running(looks), cpus=cpus)


def recent() -> Pressure:
    """Return a reading that is at most a second old: the kernel renews it every two."""
    global _last
    now = time.monotonic()
    at, found = _last
    if now - at >= _FRESH_SECONDS:
        found = read()
        _last = (now, found)
    return found


def _text(path: Path) -> str:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, _LONGEST).decode("ascii")
    finally:
        os.close(file)


def _avg10(path: Path, which: str) -> float | None:
    try:
        for line in _text(path).splitlines():
            word, *fields = line.split()
            if word == which:
                value = float(dict(field.split("=", 1) for field in fields)["avg10"])
                return value if 0 <= value <= 100 else None
    except (OSError, ValueError, KeyError):
        pass
    return None

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Keep each virtual CPU of a lab guest on a host CPU of its own.

Usage: pin_guest.py COMMAND ...   runs the command, and pins what guest it starts.

A host that is not idle wakes a virtual CPU where another of the guest runs, and both share that
CPU for milliseconds: what a guest copies by two threads takes longer then than by one. Needs no
more virtual CPUs than host CPUs. The threads of the virtual CPUs are those that have run longest.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Return all processes below this one."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *descendants(child)]
    return found


def pin(pid: int) -> None:
    """Give the busiest threads of a guest one host CPU each, in the order of their start."""
    cpus = sorted(os.sched_getaffinity(0))
    ticks = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        ticks[int(task.name)] = int(fields[11]) + int(fields[12])
    busiest = sorted(sorted(ticks, key=ticks.__getitem__)[-len(cpus) :])
    for thread, cpu in zip(busiest, cpus, strict=False):
        os.sched_setaffinity(thread, {cpu})


def main() -> int:
    """Return what the command ends with."""
    with subprocess.Popen(sys.argv[1:]) as command:
        while command.poll() is None:
            with contextlib.suppress(OSError):  # it has just ended
                for pid in descendants(os.getpid()):
                    if b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        pin(pid)
            time.sleep(0.5)
    return command.returncode


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Facts about the machine that a figure belongs to."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

from .. import procfs, sysfs
from ..topology import topology
from ..version import __version__


def machine_facts() -> dict[str, Any]:
    """Return what a reader needs to judge a figure: kernel, CPU, nodes, emulation."""
    machine = topology()
    accel = os.environ.get("PAGEFERRY_LAB_ACCEL")
    return {
        "pageferry": __version__,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": sysfs.cpu_model(),
        "cpus": len(machine.allowed_cpus),
        "memory_nodes": list(machine.memory_nodes),
        "guest": accel is not None,
        "emulated": accel == "tcg",
        "numa_balancing": procfs.numa_balancing_on(),
    }


class OtherLoad:
    """How many CPUs other processes kept busy since this was made; children are ours.

    A guest does not see it, but on a busy host two virtual CPUs are not two CPUs.
    """

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._busy = _busy_seconds()
        self._own = self._own_seconds()

    @staticmethod
    def _own_seconds() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    def cpus(self) -> float:
        """Return the mean so far, in CPUs. Children count once they have been waited for."""
        elapsed = time.perf_counter() - self._begun
        others = _busy_seconds() - self._busy - (self._own_seconds() - self._own)
        return max(others / elapsed, 0.0) if elapsed else 0.0


def _busy_seconds() -> float:
    """Seconds that all CPUs together were not idle, from the first line of /proc/stat."""
    try:
        with open("/proc/stat") as file:
            fields = [int(field) for field in file.readline().split()[1:]]
    except (OSError, ValueError):
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = (fields + [0] * 8)[:8]
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def describe(facts: dict[str, Any]) -> str:
    """Return the facts in one line."""
    where = ""
    if facts["guest"]:
        where = "lab guest, emulated (TCG), " if facts["emulated"] else "lab guest (KVM), "
    return (
        f"{where}Linux {facts['kernel']}, {facts['cpus']} CPUs ({facts['cpu']}), "
        f"{len(facts['memory_nodes'])} nodes, pageferry {facts['pageferry']}"
    )

# SPDX-License-Identifier: Apache-2.0
"""Facts about the machine that a figure belongs to."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from .. import procfs
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
        "cpu": _cpu_model(),
        "cpus": len(machine.allowed_cpus),
        "memory_nodes": list(machine.memory_nodes),
        "guest": accel is not None,
        "emulated": accel == "tcg",
        "numa_balancing": procfs.numa_balancing_on(),
    }


def describe(facts: dict[str, Any]) -> str:
    """Return the facts in one line."""
    where = ""
    if facts["guest"]:
        where = "lab guest, emulated (TCG), " if facts["emulated"] else "lab guest (KVM), "
    return (
        f"{where}Linux {facts['kernel']}, {facts['cpus']} CPUs ({facts['cpu']}), "
        f"{len(facts['memory_nodes'])} nodes, pageferry {facts['pageferry']}"
    )


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "cpu", "CPU part"):
                return value.strip()
    except OSError:
        pass
    return "unknown"

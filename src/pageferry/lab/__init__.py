# SPDX-License-Identifier: Apache-2.0
"""Two-node machines on any host: run a command in a QEMU guest that sees the host's files."""

from . import split
from .errors import LabError
from .guest import Options, run, shell
from .kernel import STOCK_PACKAGES, Kernel, fetch, find_kernel
from .kernel_build import RECIPES, build
from .kvm import KvmVerdict, kvm_boots
from .result import LAB_FAILED, GuestResult, Verdict
from .topology import TOPOLOGIES, Node, Topology, parse_size, plain

__all__ = [
    "LAB_FAILED",
    "RECIPES",
    "STOCK_PACKAGES",
    "TOPOLOGIES",
    "GuestResult",
    "Kernel",
    "KvmVerdict",
    "LabError",
    "Node",
    "Options",
    "Topology",
    "Verdict",
    "build",
    "fetch",
    "find_kernel",
    "kvm_boots",
    "parse_size",
    "plain",
    "run",
    "shell",
    "split",
]

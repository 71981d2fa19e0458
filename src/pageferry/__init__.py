# SPDX-License-Identifier: Apache-2.0
"""pageferry moves memory pages between NUMA nodes with many threads.

``move`` brings an array, a buffer, an address range or a process to a node; ``locate`` says
where pages are; ``topology`` describes the machine.
"""

from .engine import Progress
from .errors import (
    NodeError,
    NotPermittedError,
    PageferryError,
    ProcessGoneError,
    RangeError,
    UnsupportedError,
)
from .flags import MigrateMode
from .locate import locate
from .migrate import MoveInterrupted, move
from .plan import Plan
from .planning import plan_move
from .report import Failure, MoveResult, Placement
from .topology import Topology, topology
from .version import __version__

__all__ = [
    "Failure",
    "MigrateMode",
    "MoveInterrupted",
    "MoveResult",
    "NodeError",
    "NotPermittedError",
    "PageferryError",
    "Placement",
    "Plan",
    "ProcessGoneError",
    "Progress",
    "RangeError",
    "Topology",
    "UnsupportedError",
    "__version__",
    "locate",
    "move",
    "plan_move",
    "topology",
]

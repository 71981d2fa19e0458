# SPDX-License-Identifier: Apache-2.0
"""pageferry moves memory pages between NUMA nodes with many threads.

``move`` brings an array, a buffer, an address range or a process to a node; ``locate`` says
where pages are; ``topology`` describes the machine. ``empty``, ``zeros`` and ``full`` make arrays
on a node, ``reserve`` keeps memory ready there.
"""

from .aio import move_async
from .arrays import empty, full, zeros
from .calibration import CalibrationWarning
from .control import MoveControl
from .copying import CopyResult, copy
from .engine import Progress
from .errors import (
    NodeError,
    NodeFullError,
    NotPermittedError,
    PageferryError,
    ProcessGoneError,
    RangeError,
    TargetError,
    UnsupportedError,
)
from .exchange import ExchangeInterrupted, ExchangeResult, exchange
from .flags import MigrateMode
from .local import local_node, on_local_node
from .locate import locate
from .migrate import MoveInterrupted, move
from .plan import Plan
from .planning import plan_move
from .policy import Bound, Migrated, bind, interleave, migrate_pages
from .pool import Reservation, reserve
from .processes import Process, find_processes
from .report import Failure, MoveResult, Placement
from .several import MovesInterrupted, ProcessesMoved, ProcessMoved, move_processes
from .topology import Topology, topology
from .version import __version__

__all__ = [
    "Bound",
    "CalibrationWarning",
    "CopyResult",
    "ExchangeInterrupted",
    "ExchangeResult",
    "Failure",
    "MigrateMode",
    "Migrated",
    "MoveControl",
    "MoveInterrupted",
    "MoveResult",
    "MovesInterrupted",
    "NodeError",
    "NodeFullError",
    "NotPermittedError",
    "PageferryError",
    "Placement",
    "Plan",
    "Process",
    "ProcessGoneError",
    "ProcessMoved",
    "ProcessesMoved",
    "Progress",
    "RangeError",
    "Reservation",
    "TargetError",
    "Topology",
    "UnsupportedError",
    "__version__",
    "bind",
    "copy",
    "empty",
    "exchange",
    "find_processes",
    "full",
    "interleave",
    "local_node",
    "locate",
    "migrate_pages",
    "move",
    "move_async",
    "move_processes",
    "on_local_node",
    "plan_move",
    "reserve",
    "topology",
    "zeros",
]

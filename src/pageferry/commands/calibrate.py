# SPDX-License-Identifier: Apache-2.0
"""``pageferry calibrate``: measure what moving costs on this machine, and keep it."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

from rich.table import Table

from .. import calibration, console
from ..bench.costs import measure
from ..bench.machine import OtherLoad
from ..calibration import Calibration
from ..errors import PageferryError
from ..topology import topology
from . import arguments
from .bench.experiment import count, say

#: With more CPUs than this busy with other work, plans say so as long as they rest on it.
_BUSY = 0.3
_MEANINGS = {
    "call_us": "µs, one move_pages(2), whatever it moves",
    "serial": "of the bookkeeping is done by one thread at a time",
    "crosstalk": "of the bookkeeping is added by each pair of threads",
    "smt_gain": "of a core is what its second thread adds",
    "thread_gbps": "GB/s copied by one thread",
    "cache_gbps": "GB/s copied by all threads behind one last-level cache",
    "link_gbps": "GB/s between two nodes",
    "sharpness": "sharpness with which the link becomes full",
    "handover_us": "µs to give work to other threads and wait for them",
    "handover_thread_us": "µs more for each of them",
}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb's parser."""
    parser = subparsers.add_parser(
        "calibrate",
        help="measure what moving costs on this machine, for better plans",
        description="Measure what moving costs on this machine, in under a minute, and keep it in "
        "the user's cache directory for the plans of this machine and kernel. With one memory "
        "node it measures calls and copying, and says what is assumed.",
        epilog="The machine should be idle. Needs 192 MiB on each of two nodes.",
    )
    parser.add_argument(
        "--repeats", type=count, default=5, help="of each measurement (default: %(default)s)"
    )
    parser.add_argument("--no-save", action="store_true", help="only show what was measured")
    arguments.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, keep, and show."""
    others, begun = OtherLoad(), time.monotonic()
    found = measure(repeats=args.repeats, say=say)
    seconds, busy = time.monotonic() - begun, others.cpus()
    if busy > _BUSY:
        found = replace(
            found,
            note=f"calibrated while other work used {busy:.1f} CPUs: costs may be too high; "
            "repeat pageferry calibrate on an idle machine",
        )
    kept = None
    if not args.no_save:
        try:
            kept = calibration.save(found)
        except (OSError, RuntimeError) as error:
            number = error.errno if isinstance(error, OSError) else None
            raise PageferryError(
                number or 5,
                f"cannot keep the calibration: {error}",
                "set XDG_CACHE_HOME to a directory you can write, or give --no-save",
            ) from None
    if args.json:
        console.print_json(
            {
                **found.as_dict(),
                "machine": calibration.identity(),
                "assumed": assumed(found),
                "kept": str(kept) if kept else None,
                "seconds": seconds,
                "other_load": busy,
            }
        )
        return 0
    show(found)
    print(f"Kept in {kept}" if kept else "Not kept")
    return 0


def assumed(found: Calibration) -> list[str]:
    """Return the names of the costs that were not measured."""
    return [name for name in found.costs.as_dict() if name not in found.measured]


def show(found: Calibration) -> None:
    """Print a calibration as a table, what was measured apart from what is assumed."""
    out = console.console()
    table = Table(box=None, show_header=False)
    table.add_column(justify="right")
    for _ in range(2):
        table.add_column()
    for size, us in found.costs.page_us:
        how = "measured" if "page_us" in found.measured else "assumed"
        meaning = f"µs of bookkeeping for a page of {console.size(size)}"
        table.add_row(f"{us:.3g}", meaning, how)
    for name, meaning in _MEANINGS.items():
        how = "measured" if name in found.measured else "assumed"
        table.add_row(f"{getattr(found.costs, name):.3g}", meaning, how)
    out.print(table)
    if found.note:
        out.print(found.note[0].upper() + found.note[1:])
    for source, target, gbps in found.links:
        out.print(f"Node {source} to node {target}: {gbps:.3g} GB/s")
    if len(topology().target_nodes) > 1:
        out.print(f"Threads go to CPUs of the {found.cpus_near} node first.")
    else:
        out.print("One memory node: what moving a page costs could not be measured.")

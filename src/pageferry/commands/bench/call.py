# SPDX-License-Identifier: Apache-2.0
"""``pageferry bench call``: what moving one page costs above the system call."""

from __future__ import annotations

import argparse
from typing import Any

from ... import console
from ...bench.call import run_call
from ...bench.machine import describe
from .. import arguments
from .experiment import count


def add_parser(experiments: argparse._SubParsersAction[Any]) -> None:
    """Add the experiment's parser."""
    call = experiments.add_parser(
        "call",
        help="what moving a single page costs above the bare system call",
        description="Time move() of one page against the bare system call, on this machine.",
    )
    call.add_argument("--repeats", type=count, default=1000, help="default: %(default)s")
    arguments.add_json(call)
    call.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    figures = run_call(repeats=args.repeats)
    if args.json:
        console.print_json(figures)
        return 0
    out = console.console()
    out.print(describe(figures["machine"]))
    out.print(
        f"One page: bare {'call' if figures['moves'] else 'question (one node: nothing moves)'} "
        f"{figures['raw_us']:.1f} µs, move() {figures['move_us']:.1f} µs, "
        f"{figures['above_us']:.1f} µs above (median of {figures['repeats']}, alternated)"
    )
    out.print(
        f"Planning, of that: {figures['plan_page_us']:.1f} µs; for a window of a gigabyte in many "
        f"pieces {figures['plan_gigabyte_us']:.1f} µs"
    )
    return 0

# SPDX-License-Identifier: Apache-2.0
"""``pageferry top``: nodes, and the processes with most remote memory, as they change."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import time
from typing import Any

from .. import console
from ..errors import PageferryError
from ..top.view import plain
from ..top.watch import SORTS, Sample, Watch
from . import arguments

_ONCE_BUDGET = 5.0


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb's parser."""
    parser = subparsers.add_parser(
        "top",
        help="watch nodes, and the processes with most remote memory",
        description="Watch the nodes (used, free, pressure), migrations per second, and the "
        "processes with most memory on nodes where none of their threads run. Keys: arrows choose "
        "a process, m moves it after a confirmation, c ends that move, s sorts, q quits.",
        epilog="Where a process's memory is comes from numa_maps. Reading that holds the process's "
        "mmap lock, so it takes a tenth of the time at most, and a fiftieth for any one process. "
        "Other users' processes need CAP_SYS_PTRACE.",
    )
    parser.add_argument(
        "--interval",
        type=arguments.seconds,
        default=2.0,
        metavar="SECONDS",
        help="between two looks (default: %(default)s)",
    )
    parser.add_argument("--sort", choices=SORTS, default="remote", help="default: %(default)s")
    parser.add_argument(
        "--once", action="store_true", help="print one look, after an interval for the rates"
    )
    parser.add_argument(
        "--limit", type=arguments.count, default=20, metavar="N",
        help="processes that --once prints (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="as --once, all processes, in JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Watch until ended, or print one look."""
    watch = Watch(args.sort)
    if args.once or args.json:
        sample = _one_look(watch, args.interval)
        if args.json:
            console.print_json(sample.as_dict())
        else:
            out = console.console()
            out.print(plain(sample, sort=args.sort, width=out.width, limit=args.limit))
        return 0
    out = console.console()
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or out.is_dumb_terminal:
        raise PageferryError(
            errno.ENOTTY,
            "a live view needs a terminal (and TERM to name it)",
            "give --once or --json without one",
        )
    from ..top.loop import Top

    ended = Top(watch, out, args.interval).run()
    if ended == signal.SIGINT:
        return 130
    if ended:
        # The terminal is clean; whoever waits for us learns how we ended.
        signal.signal(ended, signal.SIG_DFL)
        os.kill(os.getpid(), ended)
    return 0


def _one_look(watch: Watch, interval: float) -> Sample:
    begun = time.monotonic()
    watch.look(_ONCE_BUDGET)  # returns when all are read, or the budget is spent
    time.sleep(max(begun + interval - time.monotonic(), 0))
    return watch.look(_ONCE_BUDGET)

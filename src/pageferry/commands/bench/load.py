# SPDX-License-Identifier: Apache-2.0
"""``pageferry bench load``: moves on a busy machine, for the caller and for the others."""

from __future__ import annotations

import argparse
from typing import Any

from ... import console
from ...bench.load import ENGINES, LOADS, REPEATS, SAMPLE_SECONDS, SIZES, quick, run_load
from ...bench.load_report import plot, print_table
from ...bench.memory import HUGE
from ...pages import PAGE_SIZE
from .. import arguments
from .experiment import (
    add_lab,
    add_output,
    check_output,
    count,
    earlier,
    in_guest,
    say,
    show,
    wants_guest,
)

_PAGES = {"4K": PAGE_SIZE, "2M": HUGE}


def add_parser(experiments: argparse._SubParsersAction[Any]) -> None:
    """Add the experiment's parser."""
    parser = experiments.add_parser(
        "load",
        help="moves on a busy machine: what they take, and what they cost other work",
        description="Move memory of several sizes between two nodes by one thread, by more, and "
        "by as many as the planner chooses, beside processes that keep the CPUs busy; show how "
        "long the caller waits and how much slower the others get.",
        epilog="With fewer than two memory nodes here it runs in the lab guest; the user engine "
        "runs here, where it gives pages new places on the node that they are on.",
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="kernel",
        help="which engine is to move (default: %(default)s)",
    )
    parser.add_argument("--repeats", type=count, help=f"default: {REPEATS}")
    parser.add_argument(
        "--sizes",
        type=_sizes,
        metavar="SIZE,SIZE,…",
        help="of a move (default: " + ",".join(_text(size) for size in SIZES) + ")",
    )
    parser.add_argument(
        "--loads",
        type=_loads,
        metavar="LOAD,LOAD,…",
        help=f"which of {', '.join(LOADS)} (default: all of them)",
    )
    parser.add_argument(
        "--page-size", choices=tuple(_PAGES), default="4K", help="default: %(default)s"
    )
    parser.add_argument(
        "--seconds",
        type=arguments.seconds,
        help=f"the least length of a sample by one thread (default: {SAMPLE_SECONDS})",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one size, two loads, two repeats: a few seconds"
    )
    add_lab(parser)
    add_output(parser)
    parser.set_defaults(run=_run)


def _text(size: int) -> str:
    return f"{size >> 30}G" if size >= 1 << 30 else _below(size)


def _below(size: int) -> str:
    return f"{size >> 20}M" if size >= 1 << 20 else f"{size >> 10}K"


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(sorted({arguments.byte_count(part) for part in text.split(",")}))


def _loads(text: str) -> tuple[str, ...]:
    wanted = text.split(",")
    if not set(wanted) <= set(LOADS):
        raise argparse.ArgumentTypeError(f"{text!r} is not made of {', '.join(LOADS)}")
    return tuple(load for load in LOADS if load in wanted)


def _run(args: argparse.Namespace) -> int:
    check_output(args)
    if args.from_json:
        figures = earlier(args.from_json, "load")
    elif args.lab == "always" or (args.engine == "kernel" and wants_guest(args)):
        options = ["--page-size", args.page_size, "--engine", args.engine]
        options += ["--seconds", str(args.seconds)] if args.seconds else []
        options += ["--quick"] if args.quick else []
        options += ["--repeats", str(args.repeats)] if args.repeats else []
        options += ["--sizes", ",".join(map(str, args.sizes))] if args.sizes else []
        options += ["--loads", ",".join(args.loads)] if args.loads else []
        figures = in_guest(args, options)
    else:
        how = quick() if args.quick else {}
        how |= {
            name: value
            for name in ("sizes", "loads", "repeats", "seconds")
            if (value := getattr(args, name)) is not None
        }
        try:
            figures = run_load(page_size=_PAGES[args.page_size], engine=args.engine, say=say, **how)
        except MemoryError as error:
            console.complain(str(error))
            return 1
    return show(args, figures, print_table, plot)

# SPDX-License-Identifier: Apache-2.0
"""``pageferry bench``: the experiments, run on this machine or in the lab guest."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from .. import console
from ..bench.call import run_call
from ..bench.machine import OtherLoad, describe
from ..bench.series import CASES, run_series
from ..bench.series_report import plot, print_table
from ..errors import PageferryError
from ..topology import topology
from . import arguments

#: What the guest of the series needs: two arrays on one node, and Python beside them.
GUEST_MEMORY = "1536M"


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb's parser."""
    parser = subparsers.add_parser(
        "bench", help="run an experiment", description="Run an experiment and show its figures."
    )
    experiments = parser.add_subparsers(dest="experiment", metavar="EXPERIMENT", required=True)
    _add_series(experiments)
    call = experiments.add_parser(
        "call",
        help="what moving a single page costs above the bare system call",
        description="Time move() of one page against the bare system call, on this machine.",
    )
    call.add_argument("--repeats", type=_count, default=1000, help="default: %(default)s")
    arguments.add_json(call)
    call.set_defaults(run=_run_call)


def _add_series(experiments: argparse._SubParsersAction[Any]) -> None:
    parser = experiments.add_parser(
        "series",
        help="the 2017 series: 100000 x 4 KiB and 195 x 2 MiB, one thread against many",
        description="Move 100000 pages of 4 KiB and 195 of 2 MiB between two nodes: one plain "
        "move_pages call, pageferry with one and more threads, and migratepages, in turn.",
        epilog="With fewer than two memory nodes here it runs in the lab guest.",
    )
    parser.add_argument("--repeats", type=_count, default=7, help="default: %(default)s")
    parser.add_argument(
        "--threads",
        type=_counts,
        default=(),
        metavar="N,N,…",
        help="numbers of threads to compare (default: powers of two up to the CPUs)",
    )
    parser.add_argument(
        "--pages",
        type=_count,
        nargs=2,
        metavar=("NORMAL", "HUGE"),
        default=(CASES[0][1], CASES[1][1]),
        help="pages of 4 KiB and of 2 MiB (default: %(default)s)",
    )
    parser.add_argument(
        "--lab",
        choices=("auto", "always", "never"),
        default="auto",
        help="where to run: in the lab guest, here, or (auto) here if there are two nodes",
    )
    parser.add_argument("--cpus", type=_count, default=2, help="of the guest (default: 2)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them into a PNG")
    parser.add_argument(
        "--from-json", type=Path, metavar="FILE", help="show earlier figures, run nothing"
    )
    arguments.add_json(parser)
    parser.set_defaults(run=_run_series)


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 up")
    return number


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({_count(part) for part in text.split(",")}))


def _run_series(args: argparse.Namespace) -> int:
    if args.from_json:
        figures = _earlier(args.from_json)
    elif args.lab == "always" or (args.lab == "auto" and len(topology().target_nodes) < 2):
        figures = _in_guest(args)
    else:
        cases = tuple(
            (size, pages, word) for (size, _, word), pages in zip(CASES, args.pages, strict=True)
        )
        try:
            figures = run_series(repeats=args.repeats, threads=args.threads, cases=cases, say=_say)
        except MemoryError as error:
            console.complain(str(error))
            return 1
    if args.output:
        args.output.write_text(json.dumps(figures, indent=1) + "\n")
    if args.json:
        console.print_json(figures)
    else:
        print_table(figures, console.console())
    if args.plot:
        plot(figures, args.plot)
    if not args.json:
        written = [str(path) for path in (args.output, args.plot) if path]
        if written:
            print(f"\nWritten: {', '.join(written)}")
    return 0


def _earlier(path: Path) -> dict[str, Any]:
    try:
        figures: dict[str, Any] = json.loads(path.read_text())
        if figures["experiment"] != "series":
            raise ValueError("another experiment's figures")
    except OSError as error:
        raise PageferryError(error.errno or 0, f"cannot read {path}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise PageferryError(22, f"{path} has no figures of the series: {error}") from None
    return figures


def _in_guest(args: argparse.Namespace) -> dict[str, Any]:
    """Run the same verb in a guest with two nodes, and take its JSON."""
    from .. import lab

    command = [
        sys.executable,
        "-m",
        "pageferry",
        "bench",
        "series",
        "--lab",
        "never",
        "--json",
        "--repeats",
        str(args.repeats),
        "--pages",
        *map(str, args.pages),
    ]
    if args.threads:
        command += ["--threads", ",".join(map(str, args.threads))]
    _say("fewer than two memory nodes here: starting the lab guest")
    others = OtherLoad()
    result = lab.run(
        command,
        memory=GUEST_MEMORY,
        cpus=args.cpus,
        append="numa_balancing=disable",
        notify=_say,
        timeout=3600,
        stderr=sys.stderr.buffer,
    )
    if not result.ok:
        raise PageferryError(
            5, f"the experiment in the guest ended with {result.returncode}", result.explain()
        )
    figures: dict[str, Any] = json.loads(result.stdout)
    figures["machine"]["host_cpus"] = os.cpu_count()
    figures["machine"]["host_other_load"] = round(others.cpus(), 2)
    return figures


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def _run_call(args: argparse.Namespace) -> int:
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
    return 0

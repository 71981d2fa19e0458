# SPDX-License-Identifier: Apache-2.0
"""``pageferry bench series``: the experiment of the 2017 series, here or in the lab guest."""

from __future__ import annotations

import argparse
from typing import Any

from ... import console
from ...bench.series import CASES, KINDS, MTHP, Case, Ways, merge, run_series
from ...bench.series_report import plot, print_table
from .experiment import (
    add_lab,
    add_output,
    check_output,
    count,
    counts,
    earlier,
    in_guest,
    say,
    show,
    wants_guest,
)


def add_parser(experiments: argparse._SubParsersAction[Any]) -> None:
    """Add the experiment's parser."""
    parser = experiments.add_parser(
        "series",
        help="the 2017 series: 100000 x 4 KiB and 195 x 2 MiB, one thread against many",
        description="Move 100000 pages of 4 KiB and 195 of 2 MiB between two nodes: one plain "
        "move_pages call, pageferry with one and more threads, and migratepages, in turn.",
        epilog="With fewer than two memory nodes here it runs in the lab guest.",
    )
    parser.add_argument("--repeats", type=count, default=7, help="default: %(default)s")
    parser.add_argument(
        "--threads",
        type=counts,
        default=(),
        metavar="N,N,…",
        help="numbers of threads to compare (default: powers of two up to the CPUs)",
    )
    parser.add_argument(
        "--pages",
        type=count,
        nargs=2,
        metavar=("NORMAL", "HUGE"),
        default=(CASES[0][1], CASES[1][1]),
        help="pages of 4 KiB and of 2 MiB (default: %(default)s)",
    )
    parser.add_argument(
        "--kinds",
        type=_kinds,
        metavar="KIND,KIND,…",
        help=f"of {', '.join(case.word for case in KINDS)}; 64K are folios of base pages, which "
        "only the series for 6.12 keeps whole; they and hugetlb take root (default: normal,huge; "
        "with --kernel all, all four, 64K on patched only)",
    )
    parser.add_argument(
        "--mib", type=count, help="so much of each kind instead of --pages (with --kernel all: 64)"
    )
    parser.add_argument("--user-engine", action="store_true", help="move by the user engine, too")
    parser.add_argument(
        "--no-migratepages", action="store_true", help="leave out numactl's tool and its process"
    )
    parser.add_argument(
        "--calls-only", action="store_true", help="leave out pageferry: plain calls only"
    )
    parser.add_argument(
        "--kernel",
        type=_kernels,
        default=("stock",),
        metavar="NAME,NAME,…",
        help="kernels of the guest, one after the other: stock, stock-6.1, stock+module (with the "
        "live module), patched (with the series for 6.12; both are built when they are not there) "
        "or a path; pageferry is measured on the first. all: stock,stock+module,patched, all kinds "
        "of pages, the user engine, and no migratepages",
    )
    add_lab(parser)
    add_output(parser)
    parser.set_defaults(run=_run)


_ALL = ("stock", "stock+module", "patched")


def _kernels(text: str) -> tuple[str, ...]:
    return _ALL if text == "all" else tuple(dict.fromkeys(text.split(",")))


def _kinds(text: str) -> tuple[str, ...]:
    known = [case.word for case in KINDS]
    asked = set(text.split(","))
    if not asked or not asked <= set(known):
        raise argparse.ArgumentTypeError(f"{text!r}: kinds are {', '.join(known)}")
    return tuple(word for word in known if word in asked)


def _run(args: argparse.Namespace) -> int:
    check_output(args)
    if args.kernel != ("stock",):
        args.lab = "always"
    if args.kernel == _ALL:
        args.kinds = args.kinds or tuple(case.word for case in KINDS)
        args.mib = args.mib or 64
        args.user_engine = args.no_migratepages = True
    if args.from_json:
        figures = earlier(args.from_json, "series")
    elif wants_guest(args):
        figures = merge(
            {
                kernel: in_guest(args, _options(args, kernel), kernel=kernel)
                for kernel in args.kernel
            }
        )
    else:
        try:
            figures = run_series(
                repeats=args.repeats,
                threads=args.threads,
                cases=_cases(args),
                others=Ways(not args.calls_only, args.user_engine, not args.no_migratepages),
                say=say,
            )
        except MemoryError as error:
            console.complain(str(error))
            return 1
    return show(args, figures, print_table, plot)


def _options(args: argparse.Namespace, kernel: str) -> list[str]:
    """Return what the same command in a guest of this kernel is to be told."""
    first = kernel == args.kernel[0]
    options = ["--repeats", str(args.repeats), "--pages", *map(str, args.pages)]
    if args.threads:
        options += ["--threads", ",".join(map(str, args.threads))]
    if args.kinds:
        # Of all kernels, the patched one alone keeps folios whole.
        kinds = [k for k in args.kinds if (k, args.kernel) != (MTHP, _ALL) or kernel == "patched"]
        options += ["--kinds", ",".join(kinds)]
    if args.mib:
        options += ["--mib", str(args.mib)]
    options += ["--user-engine"] if args.user_engine and first else []
    options += ["--no-migratepages"] if args.no_migratepages or not first else []
    return options + (["--calls-only"] if args.calls_only or not first else [])


def _cases(args: argparse.Namespace) -> tuple[Case, ...]:
    """Return the cases that are asked for, with the pages that are."""
    kinds = args.kinds or tuple(case.word for case in CASES)
    pages = {case.word: count for case, count in zip(CASES, args.pages, strict=True)}
    given = {case.word: case.page_size * pages[case.word] for case in CASES}
    most = max(given.values())
    return tuple(
        case._replace(
            pages=max(
                1, (args.mib << 20 if args.mib else given.get(case.word, most)) // case.page_size
            )
        )
        for case in KINDS
        if case.word in kinds
    )

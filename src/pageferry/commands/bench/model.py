# SPDX-License-Identifier: Apache-2.0
"""``pageferry bench model``: the cost model against published and own measurements."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ...bench.model_check import check_published, check_runs
from ...bench.model_report import plot, print_table
from .experiment import add_output, earlier, show


def add_parser(experiments: argparse._SubParsersAction[Any]) -> None:
    """Add the experiment's parser."""
    parser = experiments.add_parser(
        "model",
        help="the cost model against every published figure",
        description="Fit the cost model to a stated few rows of each source of published "
        "throughput, predict all other rows, and show both side by side. Runs nothing.",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="FILE",
        help="figures of bench series too: fitted to its rows by one thread",
    )
    add_output(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.from_json:
        figures = earlier(args.from_json, "model")
    else:
        figures = check_published()
        if args.runs:
            figures["runs"] = check_runs(earlier(args.runs, "series"))
    return show(args, figures, print_table, plot)

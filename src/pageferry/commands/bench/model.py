# SPDX-License-Identifier: Apache-2.0
"""``pageferry bench model``: the cost model against published and own measurements."""

from __future__ import annotations

import argparse
import errno
import json
from pathlib import Path
from typing import Any

from ...bench.model_check import check_published, check_runs
from ...bench.model_report import plot, print_table
from ...bench.own_check import REPEATS, check_here
from ...errors import DescriptionError, PageferryError
from ...model import Costs
from ...strict import Fields
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


def add_parser(experiments: argparse._SubParsersAction[Any]) -> None:
    """Add the experiment's parser."""
    parser = experiments.add_parser(
        "model",
        help="the cost model against every published figure",
        description="Fit the cost model to a stated few rows of each source of published "
        "throughput, predict all other rows, and show both side by side. Runs nothing, but with "
        "--own: that calibrates this machine, or the lab guest, and compares moves of other sizes "
        "with what plans then expect.",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="FILE",
        help="figures of bench series too: fitted to its rows by one thread",
    )
    parser.add_argument(
        "--costs",
        type=Path,
        metavar="FILE",
        help="with --runs: what pageferry calibrate --json printed there, instead of fitting",
    )
    parser.add_argument(
        "--own", action="store_true", help="calibrate, move, and compare with what plans expect"
    )
    parser.add_argument(
        "--repeats", type=count, default=REPEATS, help="with --own (default: %(default)s)"
    )
    add_lab(parser)
    add_output(parser)
    parser.set_defaults(run=_run)


def _costs(path: Path) -> Costs:
    """Read the costs of a calibration. Raises ``DescriptionError`` for anything else."""
    try:
        return Costs.from_fields(Fields(json.loads(path.read_text())["costs"], "costs"))
    except OSError as error:
        raise PageferryError(error.errno or errno.EIO, f"cannot read {path}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DescriptionError(
            errno.EINVAL, f"{path} has no costs: {error}", "pageferry calibrate --json prints them"
        ) from None


def _run(args: argparse.Namespace) -> int:
    check_output(args)
    if args.from_json:
        figures = earlier(args.from_json, "model")
    else:
        figures = check_published()
        if args.own and wants_guest(args):
            there = in_guest(args, ["--own", "--repeats", str(args.repeats)])
            figures["own"] = {**there["own"], "machine": there["machine"]}
        elif args.own:
            figures["own"] = check_here(repeats=args.repeats, say=say)
            figures["machine"] = figures["own"]["machine"]
        if args.runs:
            costs = _costs(args.costs) if args.costs else None
            figures["runs"] = check_runs(earlier(args.runs, "series"), costs)
    return show(args, figures, print_table, plot)

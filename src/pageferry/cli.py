# SPDX-License-Identifier: Apache-2.0
"""The ``pageferry`` command: the parser, and the exit codes.

Exit codes: 0 all moved (or the check passed), 1 something not moved or refused, 2 usage
(a node, range or option that makes no sense), 130 ended by Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from . import console, logs
from .errors import DescriptionError, NodeError, PageferryError, RangeError, TargetError
from .version import __version__

_logger = logging.getLogger(__name__)

COMMANDS = (
    "topology",
    "locate",
    "plan",
    "move",
    "steer",
    "run",
    "predict",
    "calibrate",
    "bench",
    "doctor",
    "lab",
    "completion",
    "top",
    "export",
    "report",
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command, one sub-command per module in ``commands``."""
    parser = argparse.ArgumentParser(
        prog="pageferry",
        description="Move memory pages between NUMA nodes with many threads.",
        epilog="Exit codes: 0 all moved, 1 something not moved or refused, 2 usage, "
        "130 ended by Ctrl-C.",
        allow_abbrev=False,  # it looks at the verbs' options too, such as run's --log
    )
    parser.add_argument("--version", action="version", version=f"pageferry {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f".commands.{name}", __package__).add_parser(subparsers)
    logs.add_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = build_parser().parse_args(argv)
    args.words = list(sys.argv[1:] if argv is None else argv)
    handler = logs.begin(args)
    try:
        code = _ended(args)
        logs.event(_logger, logging.INFO, f"{args.command} ended", exit_code=code)
        return code
    finally:
        logs.end(handler)


def _ended(args: argparse.Namespace) -> int:
    """Run the verb; return the exit code, also for its errors."""
    logs.event(_logger, logging.DEBUG, f"{args.command} begins", arguments=args.words)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _run(args)
    except (NodeError, RangeError, DescriptionError, TargetError) as error:
        console.complain(str(error))
        return 2
    except PageferryError as error:
        console.complain(str(error))
        return 1
    except KeyboardInterrupt:
        console.complain("ended by Ctrl-C")
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error of ours, and Python
        # must not complain about it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(args: argparse.Namespace) -> int:
    code: int = args.run(args)
    sys.stdout.flush()
    return code


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    console.complain(str(message), logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())

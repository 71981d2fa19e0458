# SPDX-License-Identifier: Apache-2.0
"""``pageferry report``: one HTML file of the figures of experiments."""

from __future__ import annotations

import argparse
import errno
import os
import tempfile
from pathlib import Path
from typing import Any

from .. import extras
from ..errors import PageferryError
from ..html_report import page, read_figures


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb's parser."""
    parser = subparsers.add_parser(
        "report",
        help="one HTML file of experiments' figures",
        description="Put figures that pageferry bench … --output wrote into one HTML file: facts "
        "of the machine, tables, plots, and the commands to repeat them. It needs nothing beside "
        "it, and has no scripts: mail it, or attach it to a ticket.",
        epilog="Plots need pip install 'pageferry[plot]'.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="JSON", help="figures")
    parser.add_argument(
        "--output", type=Path, metavar="HTML", default=Path("pageferry-report.html"),
        help="the file to write (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--title", default="pageferry: measurements", help="default: %(default)s")
    parser.add_argument("--no-plots", action="store_true", help="tables only")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the report."""
    if not args.no_plots:
        extras.require("matplotlib.figure", "plot", "a report with plots")
    figures = [(path.name, read_figures(path)) for path in args.files]
    content = page(figures, title=args.title, plots=not args.no_plots)
    _write(args.output, content)
    print(f"Written: {args.output}")
    return 0


def _write(path: Path, content: str) -> None:
    """Write the file whole or not at all."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            try:
                file.write(content)
                file.flush()
                umask = os.umask(0)
                os.umask(umask)
                os.fchmod(file.fileno(), 0o666 & ~umask)
                Path(file.name).rename(path)
            except BaseException:
                Path(file.name).unlink()
                raise
    except OSError as error:
        raise PageferryError(error.errno or errno.EIO, f"cannot write {path}") from None

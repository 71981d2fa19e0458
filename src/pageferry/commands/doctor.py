# SPDX-License-Identifier: Apache-2.0
"""``pageferry doctor``: what on this machine helps or stops a move, and what to do about it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from .. import console
from ..diagnose import Check, diagnose

_STYLES = {"ok": "green", "info": "cyan", "warn": "yellow", "fail": "bold red"}


def add_parser(subparsers: Any) -> None:
    """Add the ``doctor`` command."""
    parser = subparsers.add_parser(
        "doctor",
        help="check this machine and name the cures",
        description="Check what on this machine helps or stops a move, by trying it.",
        epilog="Exit code: 0, or 1 when something stops pageferry from moving memory here.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--fast", action="store_true", help="do not boot a guest to try KVM")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the checks; 1 if one of them failed."""
    checks = diagnose(fast=args.fast)
    failed = any(check.verdict == "fail" for check in checks)
    if args.json:
        console.print_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        screen = console.console()
        screen.print(table(checks), width=min(screen.width, 100), soft_wrap=False)
        screen.print(_summary(checks))
    return 1 if failed else 0


def table(checks: list[Check]) -> Table:
    """Return the checks as a table, each cure on a line below its finding."""
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for check in checks:
        grid.add_row(
            Text(check.verdict, _STYLES[check.verdict]), Text(check.name), Text(check.finding)
        )
        if check.cure:
            grid.add_row("", "", Text(f"→ {check.cure}", "dim"))
    return grid


def _summary(checks: list[Check]) -> Text:
    failed = [check.name for check in checks if check.verdict == "fail"]
    if failed:
        return Text(f"Memory cannot be moved here: {', '.join(failed)}.", _STYLES["fail"])
    warned = [check.name for check in checks if check.verdict == "warn"]
    if warned:
        return Text(f"Nothing forbids a move; look at: {', '.join(warned)}.", _STYLES["warn"])
    return Text("All is well.", _STYLES["ok"])

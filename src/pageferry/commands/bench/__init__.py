# SPDX-License-Identifier: Apache-2.0
"""``pageferry bench``: the experiments, one module for each."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

EXPERIMENTS = ("series", "call", "model", "matrix", "load", "stall", "preload", "copy", "engines")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb's parser."""
    parser = subparsers.add_parser(
        "bench", help="run an experiment", description="Run an experiment and show its figures."
    )
    experiments = parser.add_subparsers(dest="experiment", metavar="EXPERIMENT", required=True)
    for name in EXPERIMENTS:
        importlib.import_module(f".{name}", __package__).add_parser(experiments)

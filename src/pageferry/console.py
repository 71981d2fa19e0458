# SPDX-License-Identifier: Apache-2.0
"""What every command shares when it prints: rich on a terminal, plain text otherwise, JSON."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, TextIO

from rich.console import Console as RichConsole

from . import logs

_logger = logging.getLogger(__name__)


class Console(RichConsole):
    """A rich console that leaves a reader gone away (`| head`) to the command line's main."""

    def on_broken_pipe(self) -> None:
        """Raise again what rich would turn into exit code 1."""
        raise BrokenPipeError


def console(stream: TextIO | None = None) -> Console:
    """Return a console on ``stream`` (stdout): colours on a terminal, plain and unwrapped else."""
    stream = stream or sys.stdout
    if stream.isatty():
        return Console(file=stream, highlight=False)
    return Console(file=stream, highlight=False, no_color=True, width=200, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print ``value`` as indented JSON on stdout."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def complain(message: str, level: int = logging.ERROR) -> None:
    """Print ``pageferry: message`` on stderr; with ``--log-json`` it is logged there."""
    if logs.json_on_stderr():
        logs.event(_logger, level, message)
    else:
        print(f"pageferry: {message}", file=sys.stderr)


def notify(message: str) -> None:
    """Say on stderr what is being done, or log it there."""
    complain(message, logging.INFO)


def size(count: float) -> str:
    """Return a number of bytes for people, in binary units: ``390.6 MiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def count(number: int, noun: str) -> str:
    """Return a number of things: ``1 core``, ``2 cores``, ``3 processes``."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{'' if number == 1 else plural}"

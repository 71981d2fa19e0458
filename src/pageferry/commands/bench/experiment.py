# SPDX-License-Identifier: Apache-2.0
"""What all experiments share: their arguments, the lab guest, and where figures go."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ... import console, logs
from ...bench.machine import OtherLoad
from ...errors import PageferryError
from ...pictures import canvas
from ...topology import topology
from .. import arguments

_logger = logging.getLogger(__name__)

#: What the guest of an experiment needs: two arrays on one node, and Python beside them.
GUEST_MEMORY = "1536M"


count = arguments.count


def counts(text: str) -> tuple[int, ...]:
    """Read numbers from 1 up with commas between them; returns them in order, each once."""
    return tuple(sorted({count(part) for part in text.split(",")}))


def add_lab(parser: argparse.ArgumentParser) -> None:
    """Add ``--lab`` and ``--cpus``."""
    parser.add_argument(
        "--lab",
        choices=("auto", "always", "never"),
        default="auto",
        help="where to run: in the lab guest, here, or (auto) here if there are two nodes",
    )
    parser.add_argument("--cpus", type=count, default=2, help="of the guest (default: 2)")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--output``, ``--plot``, ``--from-json`` and ``--json``."""
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them (.png, .svg, .pdf)")
    parser.add_argument(
        "--from-json", type=Path, metavar="FILE", help="show earlier figures, run nothing"
    )
    arguments.add_json(parser)


def check_output(args: argparse.Namespace) -> None:
    """Fail before the experiment if its picture could not be drawn after it."""
    if args.plot:
        canvas.check(args.plot)


def wants_guest(args: argparse.Namespace) -> bool:
    """Say whether ``--lab``, or the lack of a second node, sends the experiment to the guest."""
    return args.lab == "always" or (args.lab == "auto" and len(topology().target_nodes) < 2)


def in_guest(
    args: argparse.Namespace,
    options: Sequence[str],
    *,
    memory: str = GUEST_MEMORY,
    timeout: float = 3600,
    kernel: str = "stock",
) -> dict[str, Any]:
    """Run ``bench EXPERIMENT`` with ``options`` in a guest with two nodes; return its figures.

    ``options`` need not have ``--lab`` and ``--json``. Raises ``PageferryError`` when the guest
    or the experiment in it fails.
    """
    from ... import lab

    command = [sys.executable, "-m", "pageferry", "bench", args.experiment]
    command += ["--lab", "never", "--json", *options]
    say(
        "starting the lab guest"
        if args.lab == "always"
        else "fewer than two memory nodes here: starting the lab guest"
    )
    others = OtherLoad()
    result = lab.run(
        command,
        memory=memory,
        kernel=kernel,
        cpus=args.cpus,
        append="numa_balancing=disable",
        notify=say,
        timeout=timeout,
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


def earlier(path: Path, experiment: str) -> dict[str, Any]:
    """Read figures that ``--output`` wrote. Raises ``PageferryError`` for anything else."""
    try:
        figures: dict[str, Any] = json.loads(path.read_text())
        if figures["experiment"] != experiment:
            raise ValueError("another experiment's figures")
    except OSError as error:
        raise PageferryError(error.errno or 0, f"cannot read {path}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise PageferryError(22, f"{path} has no figures of bench {experiment}: {error}") from None
    return figures


def show(
    args: argparse.Namespace,
    figures: dict[str, Any],
    print_table: Callable[[dict[str, Any], Console], None],
    plot: Callable[[dict[str, Any], Path], None],
) -> int:
    """Print the figures, and write what ``add_output`` lets be asked for; return the exit code."""
    if not args.from_json:
        figures["command"] = shlex.join(["pageferry", *args.words])
    if args.output:
        write(args.output, lambda path: path.write_text(json.dumps(figures, indent=1) + "\n"))
    if args.json:
        console.print_json(figures)
    else:
        print_table(figures, console.console())
    if args.plot:
        plot(figures, args.plot)
    arguments.say_written(args, args.output, args.plot)
    return 0


def write(path: Path, writer: Callable[[Path], object]) -> None:
    """Have ``writer`` write a file. Raises ``PageferryError`` when it cannot be written."""
    try:
        writer(path)
    except OSError as error:
        raise PageferryError(error.errno or 0, f"cannot write {path}") from None


def say(text: str) -> None:
    """Tell, on standard error, how far the experiment is."""
    if logs.json_on_stderr():
        logs.event(_logger, logging.INFO, text)
    else:
        print(f"  {text}", file=sys.stderr, flush=True)

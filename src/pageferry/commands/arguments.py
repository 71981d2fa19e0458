# SPDX-License-Identifier: Apache-2.0
"""Arguments that several verbs share, and how their values are read."""

from __future__ import annotations

import argparse
import errno
import sys
from pathlib import Path

from .. import console
from ..errors import NodeError, RangeError
from ..flags import parse_nodes, parse_range, parse_size
from ..page_size import parse_page_size
from ..pictures import canvas
from ..topology import Topology, topology


def threads(text: str) -> int | str:
    """Read ``--threads``: ``auto``, or a number from 1 up."""
    if text == "auto":
        return text
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'auto' nor a number from 1 up")
    return count


def above_zero(text: str) -> float:
    """Read a number above zero, for a limit."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1e6:  # not a number either
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0, up to 1000000")
    return number


def process(text: str) -> int:
    """Read a process id."""
    try:
        pid = int(text)
    except ValueError:
        pid = 0
    if pid < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no process id")
    return pid


def one_node(text: str, machine: Topology | None = None) -> int:
    """Read the number of one node of this machine. Raises ``NodeError``."""
    machine = machine or topology()
    if text.isdecimal() and len(text) < 7:
        return machine.node(int(text)).id
    nodes = parse_nodes(text, machine.node_ids, machine.allowed_nodes)
    if len(nodes) != 1:
        raise NodeError(errno.EINVAL, f"{text!r} names {len(nodes)} nodes", "give one node")
    return next(iter(nodes))


def addresses(text: str) -> range:
    """Read ``--range``."""
    try:
        return parse_range(text)
    except RangeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """Read a number from 1 up."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 up")
    return number


def seconds(text: str) -> float:
    """Read a number of seconds above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value


def byte_count(text: str) -> int:
    """Read a size such as ``256M``: at least one byte."""
    try:
        size = parse_size(text)
    except RangeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not size:
        raise argparse.ArgumentTypeError("a size of 0 bytes is none")
    return size


def page_size(text: str) -> str:
    """Read ``--page-size``: a size that this machine has pages of."""
    try:
        parse_page_size(text, allocate=False)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


#: What ``--plot`` takes for "as text".
TERMINAL = Path("-")


def add_plot(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--plot``, which draws ``what``."""
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help=f"draw {what}: into a .png, .svg or .pdf, or (-) as text in place of the table",
    )


def picture(args: argparse.Namespace) -> Path | None:
    """Return the file that ``--plot`` names, None for text; fail now if it cannot be drawn.

    Raises as ``pictures.canvas.check``.
    """
    if args.plot is None or args.plot == TERMINAL:
        return None
    path: Path = args.plot
    canvas.check(path)
    return path


def say_written(args: argparse.Namespace, *paths: Path | None) -> None:
    """Name the files that were written, unless JSON is what was asked for."""
    written = [str(path) for path in paths if path]
    if written and not args.json:
        print(f"\nWritten: {', '.join(written)}")


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add ``--max-gbps``, ``--stall-ms`` and ``--timeout``."""
    parser.add_argument(
        "--max-gbps",
        type=above_zero,
        metavar="RATE",
        help="move no more than so many GB/s (10**9 bytes), to spare other work",
    )
    parser.add_argument(
        "--stall-ms",
        type=above_zero,
        metavar="MS",
        help="how long one system call should take at most (default: 200)",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="end the move between two batches after so long, with what has moved by then",
    )


def add_activity(parser: argparse.ArgumentParser) -> None:
    """Add ``--hot`` and ``--idle``."""
    either = parser.add_mutually_exclusive_group()
    told = "(told of each page where the kernel has idle page tracking, else of whole mappings)"
    either.add_argument(
        "--hot",
        type=seconds,
        metavar="SECONDS",
        help=f"watch for so long, then take only pages that were touched meanwhile {told}",
    )
    either.add_argument(
        "--idle",
        type=seconds,
        metavar="SECONDS",
        help="the same, only pages that nobody touched",
    )


def say_watching(args: argparse.Namespace) -> None:
    """Tell somebody at a terminal why nothing moves yet."""
    asked = args.hot or args.idle
    if asked and sys.stderr.isatty():
        console.notify(f"watching for {asked:g} s which pages are touched")


class _OwnMemoryOnly(argparse.Action):
    """An option of ``move()`` that a command, which moves other processes, cannot have."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option: str | None = None,
    ) -> None:
        parser.error(
            f"{option} is about the user engine, which moves a program's own memory only; from "
            "inside the program: pageferry.move(array, node, engine='user'). The memory of other "
            "processes is moved by the kernel engine: leave it out"
        )


def refuse_user_engine(parser: argparse.ArgumentParser) -> None:
    """Say why there is no ``--engine`` and ``--way``."""
    for option in ("--engine", "--way"):
        parser.add_argument(option, action=_OwnMemoryOnly, help=argparse.SUPPRESS)


def add_range(parser: argparse.ArgumentParser) -> None:
    """Add ``--range`` and ``--partial``."""
    parser.add_argument(
        "--range",
        dest="addresses",
        type=addresses,
        metavar="START-END|START+SIZE",
        help="only these addresses: hexadecimal with 0x, sizes with K, M, G or T",
    )
    parser.add_argument(
        "--partial",
        choices=("touched", "inside"),
        default="touched",
        help="pages that the range covers in part: take them whole, or leave them out "
        "(default: %(default)s)",
    )

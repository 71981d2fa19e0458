# SPDX-License-Identifier: Apache-2.0
"""``pageferry export``: metrics for Prometheus, served or written into a file."""

from __future__ import annotations

import argparse
import errno
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from .. import console, extras
from ..errors import PageferryError
from . import arguments

DEFAULT_LISTEN = "127.0.0.1:9099"


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb's parser."""
    parser = subparsers.add_parser(
        "export",
        help="metrics for Prometheus",
        description="Show the memory of each node, the kernel's migration counters, and the "
        "placement of processes to Prometheus: serve them until ended (SIGTERM, Ctrl-C), or write "
        "them once into a file for node_exporter's textfile collector.",
        epilog="Whoever reaches the address can read the metrics: keep it to the loopback "
        "interface, or put something that asks for a password before it. The placement of other "
        "users' processes needs CAP_SYS_PTRACE. Needs pip install 'pageferry[export]'.",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--listen",
        type=_address,
        default=_address(DEFAULT_LISTEN),
        metavar="HOST:PORT",
        help=f"serve here (default: {DEFAULT_LISTEN}; port 0: any that is free)",
    )
    where.add_argument(
        "--textfile",
        metavar="FILE",
        help="write the metrics once and end; the file appears whole or not at all; - for stdout",
    )
    parser.add_argument(
        "--process",
        action="append",
        default=[],
        metavar="PATTERN",
        help="show the placement of processes with names (as ps -o comm= has them, at most 15 "
        "characters) like this shell pattern; can be repeated",
    )
    parser.add_argument(
        "--budget",
        type=arguments.seconds,
        default=1.0,
        metavar="SECONDS",
        help="time to spend on reading processes in one scrape (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the metrics once, or serve them until a signal ends it."""
    client = extras.require("prometheus_client", "export", "showing metrics to Prometheus")
    from ..exporter import MachineCollector

    registry = client.CollectorRegistry()
    registry.register(MachineCollector(args.process, budget=args.budget))
    if args.textfile == "-":
        sys.stdout.write(client.generate_latest(registry).decode())
        return 0
    if args.textfile:
        return _write(client, registry, Path(args.textfile))
    return _serve(client, registry, *args.listen)


def _write(client: Any, registry: Any, path: Path) -> int:
    try:
        # Written beside it and renamed: a reader never sees half a file.
        client.write_to_textfile(str(path), registry)
    except OSError as error:
        raise PageferryError(error.errno or errno.EIO, f"cannot write {path}") from None
    return 0


def _serve(client: Any, registry: Any, host: str, port: int) -> int:
    ended = threading.Event()
    interrupted = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = number == signal.SIGINT
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        try:
            server, thread = client.start_wsgi_server(port, addr=host, registry=registry)
        except OSError as error:
            raise PageferryError(
                # What looking up a host's name fails with is no errno, and negative.
                max(error.errno or 0, 0) or errno.EADDRNOTAVAIL,
                f"cannot listen on {_shown(host, port)}",
                "choose another --listen HOST:PORT",
            ) from None
        console.notify(f"serving http://{_shown(host, server.server_port)}/metrics")
        ended.wait()
        server.shutdown()
        server.server_close()
        thread.join()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupted:
        raise KeyboardInterrupt
    return 0


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, such as {DEFAULT_LISTEN}")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

# SPDX-License-Identifier: Apache-2.0
"""``pageferry lab``: run a command, or a shell, in a guest with several NUMA nodes."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import console

if TYPE_CHECKING:
    from ..lab import Options

_DESCRIPTION = """\
Boot a QEMU guest with several NUMA nodes and the host's files, read-only under a layer that
vanishes with the guest, and run a command in it as root, in the same directory.

Exit code: the command's own (128+n when signal n ended it), 125 when the lab failed: the
guest's kernel panicked, the guest hung or ended early, or could not be started.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``lab run``, ``lab shell``, ``lab fetch`` and ``lab build-kernel``."""
    from ..lab import RECIPES, STOCK_PACKAGES

    parser = subparsers.add_parser(
        "lab",
        help="run a command in a guest with several NUMA nodes",
        description="Guests with several NUMA nodes, for machines that have one.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    _add_run(_verb(verbs, "run", "run a command in a guest", _run))
    count_parser = _verb(
        verbs, "count", "run a command in a guest whose clock counts instructions", _run
    )
    _add_run(count_parser)
    count_parser.add_argument(
        "--split",
        dest="accel",
        action="store_const",
        const="split",
        help="instead, how long it is in instructions, all CPUs working side by side, from a mark "
        "that the command makes to the next (pageferry.lab.marks)",
    )
    count_parser.set_defaults(accel="count")

    shell_parser = _verb(
        verbs, "shell", "open a shell in a guest; Ctrl-] ends it, as does leaving the shell", _shell
    )
    _add_machine(shell_parser)
    shell_parser.add_argument("guest_command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")

    fetch_parser = _verb(verbs, "fetch", "fetch a stock kernel, so that it is there", _fetch)
    fetch_parser.add_argument(
        "--kernel", choices=[*STOCK_PACKAGES, "all"], default="stock", help="which one (stock)"
    )
    fetch_parser.add_argument(
        "--update", action="store_true", help="ask apt for a newer one than the one that is there"
    )
    fetch_parser.add_argument("--json", action="store_true", help="print what is there as JSON")

    build_parser = _verb(
        verbs,
        "build-kernel",
        "build a kernel with pageferry's patches; does nothing when it is there",
        _build_kernel,
    )
    recipes = "; ".join(f"{name}: {recipe.summary}" for name, recipe in RECIPES.items())
    build_parser.add_argument("--config", choices=RECIPES, default="patched", help=recipes)
    build_parser.add_argument("--jobs", type=int, metavar="N", help="make's -j (one for each CPU)")
    build_parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="where the patches are ($PAGEFERRY_KERNEL_DIR, or kernel of the source tree here)",
    )
    build_parser.add_argument("--json", action="store_true", help="print what was built as JSON")


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=summary,
        description=_DESCRIPTION if name in ("run", "count", "shell") else summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_reporting(run))
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``lab run`` and ``lab count``."""
    _add_machine(parser)
    parser.add_argument(
        "--timeout",
        type=float,
        default=600,
        metavar="SECONDS",
        help="end the guest after this time, boot included (600; 0: never)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the result, output included, as JSON at the end"
    )
    parser.add_argument("guest_command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe the guest."""
    from ..lab import TOPOLOGIES

    shapes = "; ".join(f"{shape.name}: {shape.summary}" for shape in TOPOLOGIES.values())
    group = parser.add_argument_group("the machine")
    shape = group.add_mutually_exclusive_group()
    shape.add_argument("--nodes", type=int, metavar="N", help="nodes with memory and CPUs (2)")
    shape.add_argument("--topology", choices=TOPOLOGIES, default="two-node", help=shapes)
    group.add_argument("--memory", default="2G", metavar="SIZE", help="of each node (2G)")
    group.add_argument("--cpus", type=int, metavar="N", help="in all (one per node, at least 2)")
    group.add_argument(
        "--kernel",
        default="stock",
        metavar="NAME|PATH",
        help="a distribution's kernel (stock, stock-6.1), the former with the live module "
        "(stock+module), one built by the lab (patched, vanilla, patched-debug, "
        "partly-patched, idle), or a "
        "bzImage or vmlinux with 9p, virtio and overlayfs built in (stock)",
    )
    group.add_argument(
        "--modules", type=Path, metavar="DIR", help="where a kernel at PATH has its .ko files"
    )
    group.add_argument(
        "--accel",
        choices=("auto", "kvm", "tcg", "count", "split"),
        default="auto",
        help="auto: KVM where a guest really boots under it, else emulation (tcg); count: emulated "
        "so that a nanosecond of the guest's clocks is an instruction, of whichever CPU; split: "
        "emulated with the CPUs kept at one pace, and instructions counted between marks",
    )
    group.add_argument(
        "--append",
        action="append",
        default=[],
        metavar="ARGUMENTS",
        help="add to the kernel's command line (repeatable)",
    )
    group = parser.add_argument_group("the command")
    group.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="set a variable, or carry it over (repeatable); PATH, HOME, VIRTUAL_ENV, LANG, "
        "PYTHON* and PAGEFERRY_* always are",
    )
    group.add_argument(
        "--writable",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="a host directory in which what the command writes stays (repeatable)",
    )
    group.add_argument(
        "--console", type=Path, metavar="FILE", help="write the guest's console to this file"
    )


def _reporting(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Make a failure of the lab exit code 125, apart from codes of the command."""

    def reporting(args: argparse.Namespace) -> int:
        from ..lab import LAB_FAILED, LabError

        try:
            return run(args)
        except LabError as error:
            console.complain(str(error))
            return LAB_FAILED

    return reporting


def _options(args: argparse.Namespace) -> Options:
    from .. import lab

    environment: dict[str, str] = {}
    for item in args.env:
        name, given, value = item.partition("=")
        if given:
            environment[name] = value
        elif name in os.environ:
            environment[name] = os.environ[name]
    return lab.Options(
        topology=lab.plain(args.nodes) if args.nodes is not None else lab.TOPOLOGIES[args.topology],
        memory=args.memory,
        cpus=args.cpus,
        kernel=lab.find_kernel(args.kernel, modules=args.modules, notify=console.notify),
        accel=args.accel,
        append=args.append,
        env=environment,
        writable=args.writable,
        console=args.console,
        notify=console.notify,
    )


def _command(args: argparse.Namespace) -> list[str]:
    command: list[str] = args.guest_command
    return command[1:] if command[:1] == ["--"] else command


def _run(args: argparse.Namespace) -> int:
    from .. import lab

    command = _command(args)
    if not command:
        console.complain("lab run needs a command: pageferry lab run -- COMMAND ...")
        return 2
    captured = args.json
    result = lab.run(
        command,
        timeout=args.timeout or None,
        stdout=None if captured else sys.stdout.buffer,
        stderr=None if captured else sys.stderr.buffer,
        **_options(args),
    )
    if captured:
        console.print_json(_as_json(command, result))
    elif result.verdict is not lab.Verdict.FINISHED:
        console.complain(result.explain())
    elif args.accel == "split":
        print(lab.split.describe(result.spans) or "the command made no marks")
    return result.returncode


def _shell(args: argparse.Namespace) -> int:
    from .. import lab

    options = _options(args)
    console.notify("booting a guest; Ctrl-] ends it")
    result = lab.shell(_command(args), **options)
    if result.verdict not in (lab.Verdict.FINISHED, lab.Verdict.DETACHED):
        console.complain(result.explain())
    return result.returncode


def _fetch(args: argparse.Namespace) -> int:
    from .. import lab

    names = list(lab.STOCK_PACKAGES) if args.kernel == "all" else [args.kernel]
    kernels = {name: lab.fetch(name, update=args.update, notify=console.notify) for name in names}
    if args.json:
        console.print_json(
            {
                name: {"release": kernel.release, "source": kernel.source, "image": kernel.image}
                for name, kernel in kernels.items()
            }
        )
    else:
        for name, kernel in kernels.items():
            print(f"{name}: {kernel.source}")
    return 0


def _build_kernel(args: argparse.Namespace) -> int:
    from .. import lab

    kernel = lab.build(args.config, directory=args.directory, jobs=args.jobs, notify=console.notify)
    if args.json:
        facts = {"release": kernel.release, "source": kernel.source, "image": kernel.image}
        console.print_json({args.config: facts})
    else:
        print(f"{args.config}: Linux {kernel.release} in {kernel.image}")
    return 0


def _as_json(command: list[str], result: Any) -> dict[str, Any]:
    return {
        "command": command,
        "verdict": result.verdict.value,
        "returncode": result.returncode,
        "stdout": result.stdout.decode(errors="replace"),
        "stderr": result.stderr.decode(errors="replace"),
        "seconds": round(result.seconds, 3),
        "boot_seconds": result.boot_seconds and round(result.boot_seconds, 3),
        "accel": result.accel,
        "kernel": result.kernel,
        "topology": result.topology,
        "explanation": result.explain(),
        "spans": [dataclasses.asdict(span) for span in result.spans],
        "console": result.console,
        "console_path": result.console_path,
    }

# SPDX-License-Identifier: Apache-2.0
"""``pageferry run``: start a program whose page migrations are done by several threads."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from typing import Any

from .. import console
from ..elf import why_not_preloadable
from ..errors import PageferryError
from ..preload import Counters, Counts, environment
from ..switch import MODES, read_switch
from . import arguments

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126
_STDERR = "stderr"
_FEWER = {
    "flag": "without --mt always, only calls with MPOL_MF_MOVE_MT are",
    "never": "with --mt never, none is",
}
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_DESCRIPTION = """\
Start a program so that what it moves with move_pages, mbind and migrate_pages is moved by
several threads. The program need not be built for that: libpageferry_preload.so is put before
it, and before all that it starts.

Exit code: the program's own (128+n when signal n ended it), 126 when it cannot be started, 127
when it is not found.
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb's parser."""
    parser = subparsers.add_parser(
        "run",
        help="start a program whose page migrations use several threads",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--mt",
        choices=MODES,
        help="flag: calls with MPOL_MF_MOVE_MT; always: every call; never: none "
        "(default: what /etc/pageferry.toml says, else flag)",
    )
    parser.add_argument(
        "--threads",
        type=_threads,
        metavar="N",
        help="for each call, the program's own thread counted in (default: one for each core)",
    )
    parser.add_argument(
        "--stats", action="store_true", help="say at the end, on standard error, what was moved"
    )
    parser.add_argument(
        "--log", metavar="FILE", help="append a line for each call to FILE, or to stderr"
    )
    parser.add_argument(
        "--environment",
        action="store_true",
        help="start nothing: print the variables, for a service unit's EnvironmentFile",
    )
    arguments.add_json(parser)
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    parser.set_defaults(run=run)


def _threads(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 up")
    return number


def run(args: argparse.Namespace) -> int:
    """Start the program; with ``--stats`` wait for it."""
    words: list[str] = args.program[1:] if args.program[:1] == ["--"] else args.program
    switch = read_switch()
    mode = args.mt or switch.mode
    threads = args.threads or switch.threads
    # The program may change its directory, and what it starts.
    log = os.path.abspath(args.log) if args.log and args.log != _STDERR else args.log  # noqa: PTH100
    if args.environment:
        return _print_environment(environment(mode, threads=threads, log=log), args.json)
    if not words:
        console.complain("run needs a command: pageferry run -- COMMAND ...")
        return 2
    path = shutil.which(words[0])
    if path is None:
        return _no_program(words[0])
    if log and log != _STDERR:
        _check_log(log)
    why = why_not_preloadable(path)
    if why and mode != "never":
        console.complain(f"note: {why}; its own calls stay as they are")
    if args.stats:
        with Counters() as counters:
            added = environment(
                mode, threads=threads, log=log, stats=counters.path, base=os.environ
            )
            code = _wait(words, {**os.environ, **added})
            _say(counters.read(), mode, args.json)
        return code
    added = environment(mode, threads=threads, log=log, base=os.environ)
    sys.stdout.flush()
    try:
        os.execvpe(words[0], words, {**os.environ, **added})
    except OSError as error:
        return _cannot_start(words[0], error)


def _no_program(name: str) -> int:
    if os.sep in name and os.path.lexists(name):
        console.complain(f"{name}: not executable")
        return _NOT_EXECUTABLE
    console.complain(f"{name}: not found")
    return _NOT_FOUND


def _check_log(path: str) -> None:
    """Open the log as the library will. It says nothing, whatever happens."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        os.close(os.open(path, flags, 0o600))
    except OSError as error:
        raise PageferryError(
            error.errno or errno.EIO,
            f"cannot write the log {path}",
            "name a file that can be written (no symbolic link), or stderr",
        ) from None


def _wait(words: list[str], variables: dict[str, str]) -> int:
    """Run the program to its end. Signals for this process are meant for it."""
    try:
        process = subprocess.Popen(words, env=variables)
    except OSError as error:
        return _cannot_start(words[0], error)
    # The terminal sends Ctrl-C to both: it is the program that decides what that means.
    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    for number in _FORWARDED:
        before[number] = signal.signal(number, lambda got, _: process.send_signal(got))
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code


def _cannot_start(name: str, error: OSError) -> int:
    console.complain(f"{name}: {os.strerror(error.errno or 0)}")
    return _NOT_EXECUTABLE


def _say(counts: Counts, mode: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(counts.as_dict()), file=sys.stderr)
        return
    if not counts.calls:
        why = f"; {_FEWER[mode]}" if mode in _FEWER else ""
        console.complain(f"no call was done by several threads ({counts.passed} passed on){why}")
        return
    text = (
        f"moved {console.size(counts.bytes)} ({counts.pages} pages) in {counts.calls} "
        f"call{'s' if counts.calls != 1 else ''}, {counts.busy_us / 1e3:.1f} ms, "
        f"{counts.gbps:.2f} GB/s, with {counts.workers} threads"
    )
    if counts.passed:
        text += f"; {counts.passed} passed on"
    if counts.repeated:
        text += f"; {counts.repeated} done again by the kernel, as pages would not move"
    console.complain(text)


def _print_environment(variables: dict[str, str], as_json: bool) -> int:
    if as_json:
        console.print_json(variables)
        return 0
    for name, value in variables.items():
        print(f"{name}={shlex.quote(value)}")
    return 0

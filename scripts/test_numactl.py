#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run numactl's own test programs in a two-node guest, without pageferry and under it.

They are built from the source package that goes with this Debian's numactl, which is fetched to the
cache. Each is run without the preload library, with --mt flag, and with --mt always; it must end
with the same exit code each time, and the programs that move pages must say the same of each page
in the end. Exits with 1 where one does not, or where the library took no call with --mt always.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path
from typing import TypedDict

import guest

BUILD = guest.ROOT / "build-tests-numactl"
WAYS = ("none", "flag", "always")
SECONDS = 60.0  # for each program

# With their arguments. Left out: randmap, which ends by a signal and checks nothing; realloc_test,
# which compares variables that it never sets, and aborts; numademo, which measures; and what asks
# about CPUs, names and page sizes.
PROGRAMS = (
    ("distance",), ("nodemap",), ("tbitmap",), ("prefered",), ("tshared",),
    ("mbind_mig_pages",), ("mbind_mig_pages", "2000"),
    ("migrate_pages",), ("migrate_pages", "2000"),
    ("move_pages",), ("move_pages", "2000"),
)  # fmt: skip
MOVERS = ("mbind_mig_pages", "migrate_pages", "move_pages")


class Outcome(TypedDict):
    """What came of one program."""

    program: str
    code: int
    taken: int  # calls by the library
    output: str


def build(source: Path) -> None:
    """Build them against the libnuma that is installed."""
    BUILD.mkdir(exist_ok=True)
    for name in sorted({program[0] for program in PROGRAMS}):
        files = (str(source / f"test/{name}.c"), str(source / "util.c"))
        subprocess.run(
            ["gcc", "-O1", "-w", "-I", str(source), "-o", str(BUILD / name), *files, "-lnuma"],
            check=True,
        )


def log_path(way: str) -> Path:
    """Return where the library notes its calls, a line for each."""
    return BUILD / f"{way}.log"


def run_programs(way: str) -> None:
    """Run all of them in this very environment, and leave what came out in a file."""
    log = log_path(way)
    log.touch()
    found: list[Outcome] = []
    for name, *arguments in PROGRAMS:
        before = len(log.read_text().splitlines())
        try:
            done = subprocess.run(
                [BUILD / name, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=SECONDS,
            )
            code, output = done.returncode, done.stdout.decode(errors="replace")
        except subprocess.TimeoutExpired:
            code, output = 124, ""
        taken = len(log.read_text().splitlines()) - before
        program = " ".join([name, *arguments])
        found.append(Outcome(program=program, code=code, taken=taken, output=output))
    (BUILD / f"{way}.json").write_text(json.dumps(found))


def all_ways() -> None:
    """Run them without the library and with it, each time by the command that users have."""
    again = [sys.executable, __file__, "--way"]
    subprocess.run([*again, "none"], check=True)
    for way in WAYS[1:]:
        subprocess.run(
            [*guest.PAGEFERRY, "run", "--mt", way, "--log", log_path(way), "--", *again, way],
            check=True,
        )


def state(output: str) -> list[str]:
    """Return what a program says of the pages in the end, with each address as X.

    Where they were before is where the program happened to run.
    """
    return re.sub(r"\b(0x)?[0-9a-f]{8,}\b", "X", output.rpartition("...\n")[2]).splitlines()


def difference(plain: Outcome, other: Outcome) -> str:
    """Say how they differ; nothing where they do not."""
    if other["code"] != plain["code"]:
        return f"another exit code: {' '.join(other['output'].splitlines()[-3:])}"
    if plain["program"].startswith(MOVERS):
        for one, two in zip_longest(state(plain["output"]), state(other["output"])):
            if one != two:
                return f"another output: {two}, not {one}"
    return ""


def compare() -> list[str]:
    """Print the table. Returns what differs."""
    ways: list[list[Outcome]] = [json.loads((BUILD / f"{way}.json").read_text()) for way in WAYS]
    wrong = []
    print(f"{'program':22}{'without':>9}{'--mt flag':>11}{'--mt always':>13}   calls taken by it")
    for plain, flag, always in zip(*ways, strict=True):
        print(
            f"{plain['program']:22}{plain['code']:>9}{flag['code']:>11}{always['code']:>13}"
            f"{always['taken']:>5}"
        )
        if plain["code"]:
            wrong.append(f"{plain['program']}, without pageferry: {plain['output'][-200:]}")
        for way, other in ("flag", flag), ("always", always):
            if said := difference(plain, other):
                wrong.append(f"{plain['program']}, --mt {way}: {said}")
        if plain["program"].startswith(MOVERS) and not always["taken"]:
            wrong.append(f"{plain['program']}, --mt always: the library took no call of it")
    return wrong


def main() -> int:
    """Fetch, build, run in a guest, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--here", action="store_true", help="run what is built, on this machine")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        run_programs(args.way)
        return 0
    if args.here:
        all_ways()
        return 0
    import debian_archive  # not in the guest, which has no network

    source = debian_archive.source("numactl")
    print(source.name, flush=True)
    build(source)
    for file in [*BUILD.glob("*.json"), *BUILD.glob("*.log")]:
        file.unlink()
    arguments = [
        "--topology",
        "two-node",
        "--memory",
        "512M",
        "--cpus",
        "2",
        "--timeout",
        "900",
        "--writable",
    ]
    code = guest.run([*arguments, str(BUILD)], [sys.executable, __file__, "--here"])
    if code:
        print(f"test_numactl: the guest ended with {code}", file=sys.stderr)
        return 1
    wrong = compare()
    print("\n".join(wrong or ["no difference"]))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure which lines of the C core the C tests and the fault matrix reach; print what they don't.

Builds in build-coverage with gcc's counters, runs every program of tests/c, and the fault matrix in
brief, and adds up what gcov says. With --lines, each line that is not reached.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build-coverage"
MINUTES = 10
#: Shorter than they would be: counters make the programs slow.
ARGUMENTS = {"test-user_interference": ["2"], "test-user_stress": ["1000000"]}


def run(*command: object, may_fail: bool = False) -> str:
    """Run a command in the build folder and return its output."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=FOLDER if FOLDER.exists() else ROOT,
        env=os.environ | {"PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}", "CC": "gcc"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if command[0] == "gcov" else subprocess.STDOUT,
        text=True,
        timeout=MINUTES * 60,
    )
    if done.returncode and not may_fail:
        sys.exit(f"coverage: {command}\n{done.stdout[-4000:]}")
    return done.stdout


def measure(faults: list[str]) -> dict[str, dict[int, int]]:
    """Run the tests; return for each file of native/ how often each line ran."""
    if not (FOLDER / "build.ninja").exists():
        options = ("-Dbuild_tests=true", "-Db_coverage=true", "-Dbuildtype=debugoptimized")
        # For the children of the fault matrix, which end by _exit(2): see there.
        link = "-Dc_link_args=-Wl,-u,__gcov_dump"
        run("meson", "setup", FOLDER, ROOT, *options, link)
    run("ninja")
    for counters in FOLDER.rglob("*.gcda"):
        counters.unlink()
    names = sorted(path.name for path in (FOLDER / "tests/c").glob("test-*") if path.is_file())
    for name in names:
        print(name, flush=True)
        run(FOLDER / "tests/c" / name, *ARGUMENTS.get(name, []))
    for name in faults:
        print(f"faults: {name}", flush=True)
        run(FOLDER / "tests/faults/faults", "--brief", name)
    lines: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for counters in FOLDER.rglob("*.gcda"):
        for text in run("gcov", "--json-format", "--stdout", counters, may_fail=True).splitlines():
            for file in json.loads(text)["files"]:
                path = (FOLDER / file["file"]).resolve()
                if path.parent != ROOT / "native":
                    continue
                for line in file["lines"]:
                    lines[path.name][line["line_number"]] += line["count"]
    return lines


def runs(numbers: list[int]) -> str:
    """Return line numbers as ranges."""
    text = ""
    for number in numbers:
        follows = re.search(r"(\d+)$", text)
        if follows and int(follows[1]) == number - 1:
            text = re.sub(r"(-\d+)?$", f"-{number}", text, count=1)
        else:
            text += f"{', ' if text else ''}{number}"
    return text


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", action="store_true", help="the lines that are not reached")
    parser.add_argument(
        "--faults", nargs="*", default=[""], help="scenarios of the fault matrix (default: all)"
    )
    given = parser.parse_args()
    found = measure(given.faults)
    all_lines = reached = 0
    for name in sorted(found):
        count = len(found[name])
        missed = sorted(number for number, times in found[name].items() if not times)
        all_lines, reached = all_lines + count, reached + count - len(missed)
        print(f"{name:24} {count:5} lines {100 * (count - len(missed)) / count:6.1f} %")
        if given.lines and missed:
            print(f"    {runs(missed)}")
    print(f"{'all':24} {all_lines:5} lines {100 * reached / all_lines:6.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())

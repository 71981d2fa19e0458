#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Print the fault matrix: call site, errno, and what came of it, for every call that can fail.

Builds tests/faults, a C program that lets each call of the core and of the preload library fail
with each errno that it can return: the first time, once in the middle, and 200 times from the
first on. It is a mock, for faults that cannot be made on demand. Ends with 1 if any left memory,
threads, descriptors, mappings, protections or policies other than they were, or said nothing.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build-tests-gcc"
PROGRAM = FOLDER / "tests/faults/faults"
NOT_MOVED = 1000
# Functions that only hand a call on: a site is named by whoever calls them.
THIN = {
    *("raw_move_pages", "sys_move_pages", "query_nodes", "map_memory", "unmap_memory"),
    *("user_copy", "user_read", "user_write", "open_file", "pf_unmap", "thread_create"),
    *("userfault_move", "userfault_copy", "userfault_register", "userfault_unregister"),
    *("userfault_protect", "userfault_wake", "userfault_next", "userfault_move_some", "move"),
    *("userfault_open", "userfault_probe", "open_for_all_faults", "shake_hands"),
}
WHEN = ("first", "middle", "all")
EMPTY = "address space is left, empty"


def accepted(case: dict[str, Any]) -> str:
    """Return why a violation is not one, "" where it is, or where there is none."""
    if case["violation"] == EMPTY and "mremap" in {case["call"], case["after"]}:
        return "what mremap may have emptied is not unmapped: it may be somebody else's by now"
    return ""


def build() -> None:
    """Build the program, in the folder of the other C tests."""
    env = os.environ | {"PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"}
    commands = [["ninja", "-C", str(FOLDER), "tests/faults/faults"]]
    if not (FOLDER / "build.ninja").exists():
        options = ["-Dbuild_tests=true", "-Dstrict=true"]
        commands.insert(0, ["meson", "setup", str(FOLDER), *options])
    for command in commands:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=env | {"CC": "gcc"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            sys.exit(done.stdout)


def name_of(error: int) -> str:
    """Return the name of an errno."""
    return {0: "", -1: "?", NOT_MOVED: "not moved"}.get(error) or errno.errorcode.get(
        error, str(error)
    )


def result_of(said: list[int], failed: int) -> str:
    """Return in a few words what a call said: result, errno named, bytes or pages by fate."""
    result, error, done, told, gone = said
    if not failed:
        return "not reached"
    words = []
    if result < 0:
        words.append(name_of(-result))
    elif told or error or gone:
        words.append("in part" if done else "refused")
    else:
        return "done"
    if error and result != -error:
        words.append(name_of(error))
    if told and done:
        words.append(f"{100 * told // (done + told + gone)} % left")
    return " ".join(words)


def run(brief: bool, only: list[str]) -> list[dict[str, Any]]:
    """Run the scenarios, as many at a time as there are CPUs. Returns a dict for each case."""
    listed = subprocess.run([PROGRAM, "--list"], stdout=subprocess.PIPE, text=True, check=True)
    names = [
        name
        for name in listed.stdout.splitlines()
        if not only or any(word in name for word in only)
    ]

    def output(name: str) -> str:
        command = [str(PROGRAM), *(["--brief"] if brief else []), name]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        lines = [line for text in pool.map(output, names) for line in text.splitlines()]
    cases = []
    for line in lines:
        scenario, call, chain, error, when, failed, violation, *said = line.split("\t")
        number, _, after = error.partition("+")
        cases.append(
            {
                "scenario": scenario,
                "call": call,
                "chain": chain.split(",") if chain else [],
                "errno": name_of(int(number)),
                "after": after,
                "when": when,
                "failed": int(failed),
                "violation": violation,
                "result": result_of([int(number) for number in said], int(failed)),
            }
        )
    name_chains(cases)
    for case in cases:
        case["accepted"] = accepted(case)
    return cases


def name_chains(cases: list[dict[str, Any]]) -> None:
    """Put functions and lines in the place of addresses, and a short name of the site."""
    addresses = sorted({address for case in cases for address in case["chain"]})
    done = subprocess.run(
        ["addr2line", "-f", "-e", str(PROGRAM), *addresses],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    known = {
        address: (function, f"{Path(where.split(' ')[0]).name}")
        for address, function, where in zip(addresses, lines[::2], lines[1::2], strict=True)
    }
    for case in cases:
        named = [known[address] for address in case["chain"]]
        case["chain"] = [f"{function} {where}" for function, where in named]
        site = [entry for entry in named if entry[0] not in THIN] or named[-1:]
        case["site"] = " < ".join(
            f"{function} ({where})" if i == 0 else function
            for i, (function, where) in enumerate(site[:2])
        )


def table(cases: list[dict[str, Any]]) -> str:
    """Return a line for each site and errno, with the result at each time that it failed."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for case in cases:
        error = case["errno"] + (f" after {case['after']}" if case["after"] else "")
        key = (case["scenario"], case["call"], case["site"], error)
        result = case["result"]
        if case["violation"]:
            result = f"{'' if case['accepted'] else 'WRONG: '}{case['violation']}"
        rows.setdefault(key, {})[case["when"]] = result
    lines: list[tuple[str, ...]] = [
        ("scenario", "call", "site", "errno", "first time", "in the middle", "200 times")
    ]
    lines += [(*key, *(rows[key].get(when, "") for when in WHEN)) for key in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def main() -> int:
    """Build, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="words of the scenarios' names (default: all)")
    parser.add_argument("--brief", action="store_true", help="one errno for each site")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every case there")
    given = parser.parse_args()
    build()
    cases = run(given.brief, given.only)
    if given.json:
        given.json.write_text(json.dumps(cases, indent=1) + "\n")
    print(table(cases))
    skipped = [case for case in cases if case["violation"].startswith("skip: ")]
    wrong = [
        case for case in cases if case["violation"] and not case["accepted"] and case not in skipped
    ]
    reached = [case for case in cases if case["failed"]]
    sites = {(case["scenario"], case["call"], *case["chain"]) for case in reached}
    print(
        f"\n{len(reached)} faults at {len(sites)} call sites, {len(cases) - len(reached)} not"
        f" reached, {len(skipped)} scenarios that this kernel cannot do, {len(wrong)} wrong"
    )
    for case in wrong:
        where = f"{case['scenario']}: {case['call']} in {case['site']}"
        print(f"{where}: {case['errno']} {case['when']}: {case['violation']}")
    return 1 if wrong or not reached else 0


if __name__ == "__main__":
    sys.exit(main())

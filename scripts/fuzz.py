#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fuzz every parser and the C header's entry points, for so many seconds altogether.

Python: tests/fuzz/parsers.py, by hypothesis. C: tests/fuzz/*.c, by libFuzzer and the sanitizers for
addresses and undefined behaviour. Both begin with tests/fuzz/corpus. A finding is printed with the
input that led to it; put that into the corpus, where the tests try it from then on.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings

ROOT = Path(__file__).resolve().parents[1]
FUZZ = ROOT / "tests/fuzz"
FOLDER = ROOT / "build-fuzz"
sys.path.insert(0, str(FUZZ))
import parsers  # noqa: E402

C_TARGETS = sorted(path.stem for path in FUZZ.glob("*.c") if path.stem != "replay")
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def python(name: str, seconds: float, examples: int = 200, seed: bool = False) -> int:
    """Fuzz one parser. Returns how many inputs it was given."""
    tried = 0

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=seed,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(parsers.mutated(name))
    def run(data: bytes) -> None:
        nonlocal tried
        tried += 1
        parsers.try_one(name, data)

    for data in parsers.seeds(name):
        parsers.try_one(name, data)
    end = time.monotonic() + seconds
    while True:
        run()
        if time.monotonic() >= end:
            return tried


def build() -> None:
    """Build the C targets with libFuzzer, in build-fuzz; objects that are new enough stay."""
    FOLDER.mkdir(exist_ok=True)
    flags = ["-g", "-O1", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", *SANITIZERS]
    include = [f"-I{ROOT / 'native'}", f"-I{ROOT / 'native/include'}"]
    headers = max(path.stat().st_mtime for path in (ROOT / "native").rglob("*.h"))
    sources = [*(ROOT / "native").glob("*.c"), *(FUZZ / f"{name}.c" for name in C_TARGETS)]
    jobs = []
    for source in sources:
        made = FOLDER / f"{source.parent.name}-{source.stem}.o"
        if made.exists() and made.stat().st_mtime > max(headers, source.stat().st_mtime):
            continue
        command = ["clang", *flags, "-fsanitize=fuzzer-no-link", *include]
        jobs.append([*command, "-c", str(source), "-o", str(made)])
    running: list[subprocess.Popen[bytes]] = []
    for job in jobs:
        if len(running) >= len(os.sched_getaffinity(0)) and running.pop(0).wait():
            sys.exit(f"cannot compile {job}")
        running.append(subprocess.Popen(job))
    if any(process.wait() for process in running):
        sys.exit("cannot compile")
    core = [str(path) for path in FOLDER.glob("native-*.o")]
    # preload.c has a syscall() of its own, which is not for this program.
    core = [path for path in core if not path.endswith(("-preload.o", "-preload_report.o"))]
    for name in C_TARGETS:
        command = ["clang", *SANITIZERS, "-fsanitize=fuzzer", "-pthread"]
        target = [str(FOLDER / f"fuzz-{name}.o"), *core, "-o", str(FOLDER / name)]
        subprocess.run([*command, *target], check=True)


def native(name: str, seconds: float) -> None:
    """Fuzz one C target; new inputs go to build-fuzz, the corpus stays as it is."""
    found = FOLDER / f"found-{name}"
    found.mkdir(exist_ok=True)
    options = [
        *(f"-max_total_time={max(int(seconds), 1)}", "-timeout=30", "-rss_limit_mb=1024"),
        *(
            f"-max_len={512 if name == 'calls' else 4096}",
            f"-artifact_prefix={FOLDER}/crash-{name}-",
            "-print_final_stats=1",
        ),
    ]
    done = subprocess.run(
        [FOLDER / name, *options, found, FUZZ / "corpus" / name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds + 120,
    )
    stats = dict(
        line.removeprefix("stat::").split(":")
        for line in done.stdout.splitlines()
        if line.startswith("stat::")
    )
    if done.returncode:
        sys.exit(f"{done.stdout[-6000:]}\n{name}: a finding; its input is in {FOLDER}")
    print(f"C, {name}: {stats['number_of_executed_units'].strip()} inputs, nothing found")


def main() -> int:
    """Share the time between all targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=60.0)
    parser.add_argument("--only", metavar="NAME", help="one target")
    given_ = parser.parse_args()
    names = [name for name in parsers.TARGETS if given_.only in (None, name)]
    c_names = [name for name in C_TARGETS if given_.only in (None, name)]
    if c_names:
        build()
    each = given_.seconds / max(len(names) + len(c_names), 1)
    for name in names:
        print(f"Python, {name}: {python(name, each)} inputs, nothing found", flush=True)
    for name in c_names:
        native(name, each)
    return 0


if __name__ == "__main__":
    sys.exit(main())

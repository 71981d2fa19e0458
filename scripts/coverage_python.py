#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure which lines of the Python modules the tests of tests/host reach; print what they don't.

Installs coverage.py into the virtual environment where it is missing. Processes that the tests
start and fork are measured too. With names of test files only these run, and --add adds them to
what was measured before; tests/guest, which needs two nodes, is not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build-coverage-python"
SETTINGS = f"""[run]
source = pageferry
parallel = true
patch = _exit, subprocess
data_file = {FOLDER}/data
[paths]
source =
    src/pageferry
    */site-packages/pageferry
    */src/pageferry
[report]
ignore_errors = true
[json]
output = {FOLDER}/coverage.json
"""


def coverage(*words: object, may_fail: bool = False) -> int:
    """Run coverage.py. Returns what it ended with."""
    command = [sys.executable, "-m", "coverage", *map(str, words)]
    env = os.environ | {"COVERAGE_RCFILE": str(FOLDER / "settings")}
    code = subprocess.run(command, cwd=ROOT, env=env).returncode
    if code and not may_fail:
        sys.exit(f"coverage_python: {' '.join(command)} ended with {code}")
    return code


def table(lines: bool) -> None:
    """Print a line for each module, and how much of all is reached."""
    found = json.loads((FOLDER / "coverage.json").read_text())
    for path, file in sorted(found["files"].items()):
        name, total = path.rpartition("pageferry/")[2], file["summary"]
        print(f"{name:34} {total['num_statements']:5} {total['percent_covered']:6.1f} %")
        if lines and file["missing_lines"]:
            print("    " + ", ".join(map(str, file["missing_lines"])))
    total = found["totals"]
    print(f"{'all':34} {total['num_statements']:5} {total['percent_covered']:6.1f} %")


def main() -> int:
    """Measure, add up, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tests", nargs="*", default=["tests/host"])
    parser.add_argument("--add", action="store_true", help="to what was measured before")
    parser.add_argument("--lines", action="store_true", help="the lines that are not reached")
    given = parser.parse_args()
    here = (sys.executable, "-m", "coverage", "--version")  # scripts/ has a coverage.py of its own
    if subprocess.run(here, cwd=ROOT, capture_output=True).returncode:
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        subprocess.run([*pip, "coverage>=7.10"], check=True)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "settings").write_text(SETTINGS)
    if not given.add:
        coverage("erase")
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    failed = coverage("run", *pytest, *given.tests, may_fail=True)
    coverage("combine", "--append", "--quiet")
    coverage("json", "--quiet")
    table(given.lines)
    return failed


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""A part of the fault matrix: make test-faults has all of it. It is a mock, and says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

if os.uname().machine not in ("x86_64", "aarch64"):
    pytest.skip("the interposer knows two machines", allow_module_level=True)


@pytest.mark.parametrize(
    "scenario", ["kernel engine, base", "user engine, checked", "exchange", "preload, move_pages"]
)
def test_a_fault_leaves_nothing_behind(tmp_path: Path, scenario: str) -> None:
    """One errno at each call site, another at each; see tests/faults/faults.c for what holds."""
    written = tmp_path / "faults.json"
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/test_faults.py", "--brief", "--json", written, scenario],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    cases = json.loads(written.read_text())
    if any(case["violation"].startswith("skip: ") for case in cases):
        pytest.skip("this kernel cannot do that")
    reached = [case for case in cases if case["failed"]]
    assert len(reached) > 10
    assert {"pthread_create", "sched_setscheduler"} <= {case["call"] for case in reached}
    assert all(case["result"] for case in reached)
    refused = [case for case in reached if case["result"] not in ("done", "not reached")]
    assert refused, "none of the faults was seen"

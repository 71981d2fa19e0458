# SPDX-License-Identifier: Apache-2.0
"""The kernel's own tests of migration: what passes without the series passes with it.

Run by: scripts/test_kernel patched vanilla
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from test_patched import SELFTEST

NAMES = ("private_anon", "shared_anon", "private_anon_thp", "shared_anon_thp", "private_anon_htlb")


@pytest.mark.parametrize("name", NAMES)
def test_migration(name: str, pools: tuple[Path, Path]) -> None:
    """Threads or processes read a page that is moved there and back all the time."""
    if not SELFTEST.exists():
        pytest.skip("scripts/test_kernel patched has not built it")
    for pool in pools:
        pool.write_text("2")
    done = subprocess.run(
        [SELFTEST, "-r", f"migration.{name}"], capture_output=True, text=True, timeout=300
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0 and f"ok 1 migration.{name}\n" in said, said

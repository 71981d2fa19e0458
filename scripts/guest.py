# SPDX-License-Identifier: Apache-2.0
"""A command in a lab guest, for the scripts that test there."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGEFERRY = (sys.executable, "-m", "pageferry")
FAILED = 125  # what "pageferry lab run" ends with if not the command failed, but the guest


def run(arguments: list[str], command: list[str]) -> int:
    """Run it there. Returns its exit code; a guest that itself fails gets a second try."""
    words = [*PAGEFERRY, "lab", "run", *arguments, "--", *command]
    code = subprocess.run(words, cwd=ROOT).returncode
    if code == FAILED:
        print("--- the guest itself failed, not the command in it: once more", flush=True)
        code = subprocess.run(words, cwd=ROOT).returncode
    return code

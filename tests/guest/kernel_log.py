# SPDX-License-Identifier: Apache-2.0
"""What the guest's kernel has to say about itself; its checks print to the log."""

from __future__ import annotations

import re
import subprocess

_COMPLAINT = re.compile(
    r"WARNING|BUG|INFO: |possible |Call Trace|hogged CPU|stuck|sleeping function|oom-kill"
)
_NOT_OURS = re.compile(r"topology_sane|report a bug|possible CPU|if possible")


def complaints() -> list[str]:
    """Return the lines of the log by which a kernel complains: KASAN, lockdep, warnings."""
    done = subprocess.run(["dmesg"], capture_output=True, text=True, check=True)
    return [
        line
        for line in done.stdout.splitlines()
        if _COMPLAINT.search(line) and not _NOT_OURS.search(line)
    ]


def log_after(line: str, count: int = 60) -> str:
    """Return that line of the log and what comes after it: the report that it begins."""
    lines = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    _, found, after = lines.partition(line)
    return found + "\n".join(after.splitlines()[:count])

# SPDX-License-Identifier: Apache-2.0
"""Packages of the distribution, asked for and fetched with apt."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

from . import programs
from .errors import LabError


def download(package: str, version: str, directory: Path) -> Path:
    """Fetch a package's archive into an empty directory and return its path."""
    apt("apt-get", "download", f"{package}={version}", cwd=directory)
    archives = list(directory.glob("*.deb"))
    if len(archives) != 1:
        raise LabError(errno.ENOENT, f"apt-get download {package} left no package")
    return archives[0]


def apt(program: str, *arguments: str, cwd: Path | None = None) -> str:
    """Run apt-get or apt-cache and return what it printed.

    Its warnings are shown only when it fails, which raises LabError.
    """
    done = subprocess.run(
        [programs.find(program), "--quiet=2", *arguments],
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        raise LabError(
            errno.EIO,
            f"{program} {' '.join(arguments)} failed: {' '.join(lines) or done.stderr.strip()}",
            "run 'apt-get update', and see that this machine reaches its package mirror",
        )
    return done.stdout

# SPDX-License-Identifier: Apache-2.0
"""The lab's files between runs: ``$XDG_CACHE_HOME/pageferry/lab``, safe for parallel use."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..cache import cache_home
from .errors import LabError


def cache_dir() -> Path:
    """Return the lab's cache directory, made if it is missing.

    Raises LabError when it cannot be made.
    """
    path = cache_home() / "lab"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(
            error.errno or errno.EIO,
            f"cannot make the cache directory {path}",
            "set XDG_CACHE_HOME to a directory you can write",
        ) from error
    return path


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock ``name`` of the cache, waiting for another process that holds it."""
    with open(cache_dir() / f"{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released with the file, also by kill -9
        yield


@contextlib.contextmanager
def scratch_dir() -> Iterator[Path]:
    """Yield an empty directory on the cache's file system, removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="tmp-", dir=cache_dir()))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)

# SPDX-License-Identifier: Apache-2.0
"""The user's cache directory, and files in it that are never seen half written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_home() -> Path:
    """Return ``$XDG_CACHE_HOME/pageferry``, or that below ``~/.cache``; it need not exist.

    Raises ``RuntimeError`` when the user has no home directory.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # as the XDG base directory specification says
        base = Path.home() / ".cache"
    return base / "pageferry"


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write ``data`` to ``path`` so that nobody ever sees a part of it.

    A directory that is made for it is the user's alone; a link in its place is replaced.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, mode)  # noqa: PTH101
        os.replace(name, path)  # noqa: PTH105
    except BaseException:
        os.unlink(name)  # noqa: PTH108
        raise

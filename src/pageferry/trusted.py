# SPDX-License-Identifier: Apache-2.0
"""Files whose content decides something: read whole, and only if nobody else can have written it.

Who may write such a file can make programs of its reader start threads, or a planner choose badly,
so it has to belong to the reader or to root, and be writable by its owner alone. The checks are
made on the file that is open, not on its name, which may mean another file a moment later.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from pathlib import Path

LONGEST = 64 << 10


def read_trusted(
    path: Path, *, owners: Collection[int], longest: int = LONGEST, links: bool = False
) -> bytes:
    """Return the content of a regular file of at most ``longest`` bytes.

    ``owners`` are the user ids it may belong to. ``links``: ``path`` itself may be a symbolic
    link, for directories that only the administrator can write; else it is refused. Raises
    ``ValueError`` that says why it is not to be trusted, ``OSError`` when it cannot be read.
    """
    # A FIFO must not block, and a link could lead anywhere.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        handle = os.open(path, flags if links else flags | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("it is a symbolic link that is not followed") from None
        raise
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("it is no regular file")
        if about.st_uid not in owners:
            raise ValueError(f"it belongs to another user (uid {about.st_uid})")
        if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ValueError("others can write it")
        data = b""
        while len(data) <= longest:
            more = os.read(handle, longest + 1 - len(data))
            if not more:
                return data
            data += more
    finally:
        os.close(handle)
    raise ValueError(f"it is longer than {longest >> 10} KiB")

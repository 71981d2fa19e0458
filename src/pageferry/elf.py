# SPDX-License-Identifier: Apache-2.0
"""What the loader does with a program: whether a library can be put before it."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import sys
from pathlib import Path

_PT_INTERP = 3
_SHEBANGS = 4  # a script's interpreter may be a script; the kernel follows that many


def why_not_preloadable(program: str | os.PathLike[str]) -> str | None:
    """Return why LD_PRELOAD has no effect on a program, in words, or None if it should have.

    A script is judged by its interpreter. Static programs have no loader; for set-uid, set-gid
    and privileged programs it ignores LD_PRELOAD (ld.so(8), "secure-execution mode"); a library
    cannot be loaded into a program of another word size or processor. Raises ``OSError``.
    """
    path = Path(program)
    for _ in range(_SHEBANGS):
        privileged = _gains_privileges(path)
        if privileged:
            return f"{path} {privileged}: the loader ignores LD_PRELOAD for such programs"
        if not os.access(path, os.R_OK):
            return None  # to be run only: nothing more can be said
        with path.open("rb") as file:
            head = file.read(256)
        if not head.startswith(b"#!"):
            return _why_not_elf(path, head)
        words = head[2:].split(b"\n")[0].split()
        interpreter = os.fsdecode(words[0]) if words else "/bin/sh"
        if os.path.basename(interpreter) == "env" and len(words) > 1:  # noqa: PTH119
            interpreter = shutil.which(os.fsdecode(words[-1])) or interpreter
        path = Path(interpreter)
    return None


def _gains_privileges(path: Path) -> str | None:
    status = path.stat()
    if status.st_mode & stat.S_ISUID and status.st_uid != os.geteuid():
        return "is set-uid"
    if status.st_mode & stat.S_ISGID and status.st_gid != os.getegid():
        return "is set-gid"
    try:
        os.getxattr(path, "security.capability")
    except OSError:
        return None
    return None if os.geteuid() == 0 else "has file capabilities"


def _why_not_elf(path: Path, head: bytes) -> str | None:
    if not head.startswith(b"\x7fELF"):
        return None  # a script without a first line, or what binfmt_misc knows
    with Path("/proc/self/exe").open("rb") as file:
        ours = file.read(20)
    if head[4:6] != ours[4:6] or head[18:20] != ours[18:20]:
        return f"{path} is for another word size or processor than {sys.executable}"
    wide = head[4] == 2
    order = "<" if head[5] == 1 else ">"
    offset = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)[0]
    size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
    with path.open("rb") as file:
        file.seek(offset)
        table = file.read(size * count)
    kinds = {struct.unpack_from(order + "I", table, at)[0] for at in range(0, len(table) - 3, size)}
    if _PT_INTERP in kinds:
        return None
    return f"{path} is statically linked: there is no loader that could put a library before it"

# SPDX-License-Identifier: Apache-2.0
"""The host programs that the lab runs, and which package has one that is missing."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from .errors import LabError

_PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "setpriv": "util-linux",
    "apt-get": "apt",
    "apt-cache": "apt",
    "dpkg-deb": "dpkg",
    "zstd": "zstd",
    "ld": "binutils",
    "tar": "tar",
    "cc": "gcc",
}
_SYSTEM_PATHS = "/usr/sbin:/sbin:/usr/bin:/bin"


def find(name: str) -> str:
    """Return the path of a program, looked for on PATH and in the system's directories.

    Raises LabError (ENOENT) that names the package to install.
    """
    path = shutil.which(name) or shutil.which(name, path=_SYSTEM_PATHS)
    if path is None:
        package = _PACKAGES.get(name, name)
        raise LabError(
            errno.ENOENT, f"the lab needs {name}, which is not installed", f"install {package}"
        )
    return path


def static_busybox() -> bytes:
    """Return a statically linked busybox, as it has to run where there are no libraries.

    Raises LabError (ENOENT) when there is none.
    """
    for directory in [*os.get_exec_path(), *_SYSTEM_PATHS.split(":")]:
        path = Path(directory) / "busybox"
        if path.is_file() and os.access(path, os.R_OK):
            content = path.read_bytes()
            if _is_static(content):
                return content
    raise LabError(
        errno.ENOENT,
        "the lab needs a statically linked busybox, and there is none",
        "install busybox-static",
    )


def _is_static(elf: bytes) -> bool:
    """Say whether a 64-bit ELF program asks for no dynamic linker (has no PT_INTERP)."""
    if elf[:5] != b"\x7fELF\x02":
        return False
    start = int.from_bytes(elf[0x20:0x28], "little")
    size = int.from_bytes(elf[0x36:0x38], "little")
    count = int.from_bytes(elf[0x38:0x3A], "little")
    headers = range(start, start + size * count, size)
    return 3 not in (int.from_bytes(elf[at : at + 4], "little") for at in headers)

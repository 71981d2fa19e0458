# SPDX-License-Identifier: Apache-2.0
"""The guest's initramfs: busybox, the modules and ``init.sh`` in a cpio archive."""

from __future__ import annotations

import hashlib
import stat
from importlib import resources
from pathlib import Path

from ..cache import write_atomically
from . import programs
from .cache import cache_dir
from .kernel import Kernel


def build_initramfs(kernel: Kernel) -> Path:
    """Return the path of the initramfs for ``kernel``, built unless the cache has it.

    Raises LabError when there is no static busybox.
    """
    init = resources.files(__package__).joinpath("init.sh").read_bytes()
    names = [f"{number:02}-{path.name}" for number, path in enumerate(kernel.modules)]
    entries: list[tuple[str, int, bytes]] = [
        ("bin", stat.S_IFDIR | 0o755, b""),
        ("bin/busybox", stat.S_IFREG | 0o755, programs.static_busybox()),
        ("init", stat.S_IFREG | 0o755, init),
        ("modules", stat.S_IFDIR | 0o755, b""),
        ("modules/order", stat.S_IFREG | 0o644, "".join(f"{name}\n" for name in names).encode()),
    ]
    entries += [
        (f"modules/{name}", stat.S_IFREG | 0o644, path.read_bytes())
        for name, path in zip(names, kernel.modules, strict=True)
    ]
    # Not compressed: it is a few MB, and an emulated CPU is slow to unpack it.
    archive = cpio(entries)
    path = cache_dir() / "initramfs" / f"{hashlib.sha256(archive).hexdigest()[:32]}.cpio"
    if not path.exists():
        write_atomically(path, archive)
    return path


def cpio(entries: list[tuple[str, int, bytes]]) -> bytes:
    """Return a cpio archive (newc) of entries (path, file mode, content), owned by root."""
    parts = []
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name.encode()) + 1, 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        parts += [_padded(header + name.encode() + b"\0"), _padded(content)]
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)

# SPDX-License-Identifier: Apache-2.0
"""Unpack a distribution's kernel package: the kernel, and the few modules a guest loads."""

from __future__ import annotations

import errno
import lzma
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict

from . import programs
from .errors import LabError

# Compressed kernels inside a bzImage, by their magic numbers.
_XZ_MAGIC = b"\xfd7zXZ\x00"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# What 9p and overlayfs have depended on in kernels from 6.1 to 6.12. Only a guess of what to
# take in the first pass over the package: what is missing then is fetched in a second one.
_LIKELY = ("9pnet", "netfs", "fscache", "virtio", "virtio_ring", "virtio_pci_modern_dev")


class Facts(TypedDict):
    """What ``unpack`` found; paths are relative to the directory."""

    image: str
    modules: list[str]
    release: str


def unpack(archive: Path, directory: Path, modules: Iterable[str]) -> Facts:
    """Unpack the kernel and the named modules of a ``.deb`` into ``directory``.

    Modules that are built into the kernel are left out, dependencies are added, and all are
    uncompressed, as busybox's insmod needs them. Raises LabError when the package has no
    kernel or lacks a module.
    """
    wanted = {*modules, *_LIKELY}
    _extract(archive, directory, wanted)
    images = list(directory.glob("vmlinuz-*"))
    if len(images) != 1:
        raise LabError(errno.ENOENT, f"{archive.name} has no kernel in it")
    release = images[0].name.removeprefix("vmlinuz-")
    builtin_list = directory / "modules.builtin"
    builtin = {
        _module_name(line) for line in builtin_list.read_text().split() if builtin_list.exists()
    }
    roots = [name for name in modules if name not in builtin]
    for _ in range(4):
        found = {_module_name(path.name): path for path in directory.glob("*.ko")}
        missing = _missing(roots, found)
        if not missing:
            break
        _extract(archive, directory, missing)
    order = closure_of_modules(roots, found, strict=True)
    for path in set(found.values()) - set(order):
        path.unlink()
    image = _uncompressed(images[0])
    return {"image": image.name, "modules": [path.name for path in order], "release": release}


def closure_of_modules(
    roots: Iterable[str], found: Mapping[str, Path], *, strict: bool = False
) -> tuple[Path, ...]:
    """Return the files of ``roots`` and all they depend on, in the order to load them.

    With ``strict`` a module that is not in ``found`` raises LabError (ENOENT), else it is
    taken to be built in.
    """
    order: list[Path] = []

    def add(name: str) -> None:
        path = found.get(name)
        if path is None:
            if strict:
                raise LabError(errno.ENOENT, f"the kernel package has no module {name}")
            return
        for dependency in _dependencies(path):
            add(dependency)
        if path not in order:
            order.append(path)

    for root in roots:
        add(root)
    return tuple(order)


def _missing(roots: Iterable[str], found: Mapping[str, Path]) -> set[str]:
    """Return the modules that ``roots`` need and that are not in ``found``."""
    needed = set(roots)
    for path in closure_of_modules(roots, found):
        needed.update(_dependencies(path))
    return needed - found.keys()


def _dependencies(module: Path) -> list[str]:
    """Return the names in a module's ``depends=``."""
    match = re.search(rb"\0depends=([^\0]*)\0", module.read_bytes())
    names = match[1].decode().split(",") if match else []
    return [name.replace("-", "_") for name in names if name]


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].split(".ko")[0].replace("-", "_")


def _extract(archive: Path, directory: Path, modules: Iterable[str]) -> None:
    """Copy kernel, configuration, list of built-in modules and ``modules`` out of a package."""
    wanted = set(modules)
    with subprocess.Popen(
        [programs.find("dpkg-deb"), "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE
    ) as unpacker:
        try:
            with tarfile.open(fileobj=unpacker.stdout, mode="r|") as tar:
                for member in tar:
                    name = member.name.rpartition("/")[2]
                    content = tar.extractfile(member) if member.isfile() else None
                    if content is None:
                        continue
                    if name == "modules.builtin" or name.startswith(("vmlinuz-", "config-")):
                        (directory / name).write_bytes(content.read())
                    elif ".ko" in name and _module_name(name) in wanted:
                        plain = _uncompress(content.read(), name)
                        (directory / f"{name.split('.ko')[0]}.ko").write_bytes(plain)
        except (tarfile.TarError, lzma.LZMAError, subprocess.CalledProcessError) as error:
            raise LabError(errno.EIO, f"cannot unpack {archive.name}: {error}") from error
        finally:
            unpacker.kill()  # does nothing when it has ended


def _uncompress(content: bytes, name: str) -> bytes:
    if name.endswith(".xz"):
        return lzma.decompress(content)
    if name.endswith(".zst"):
        zstd = [programs.find("zstd"), "-dcq"]
        return subprocess.run(zstd, input=content, stdout=subprocess.PIPE, check=True).stdout
    return content


def _uncompressed(image: Path) -> Path:
    """Return the kernel without its compression, or ``image`` when that cannot be undone.

    QEMU starts a plain vmlinux directly (PVH). Under emulation, this saves the second that
    the kernel otherwise takes to unpack itself.
    """
    content = image.read_bytes()
    plain = b""
    if (start := content.find(_ZSTD_MAGIC)) > 0 and shutil.which("zstd"):
        # zstd complains about what follows the compressed kernel, but has written all of it.
        done = subprocess.run(
            ["zstd", "-dcq"], input=content[start:], capture_output=True, check=False
        )
        plain = done.stdout
    elif (start := content.find(_XZ_MAGIC)) > 0:
        try:
            plain = lzma.LZMADecompressor().decompress(content[start:])
        except lzma.LZMAError:
            plain = b""
    # The note by which QEMU finds the entry point.
    if plain[:4] != b"\x7fELF" or b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0" not in plain:
        return image
    vmlinux = image.with_name(image.name.replace("vmlinuz", "vmlinux"))
    vmlinux.write_bytes(plain)
    return vmlinux

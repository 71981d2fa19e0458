# SPDX-License-Identifier: Apache-2.0
"""Kernels for guests: a distribution package fetched by apt, or an image somebody built."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import packages
from .cache import cache_dir, locked, scratch_dir
from .errors import LabError
from .kernel_package import closure_of_modules, unpack

Notify = Callable[[str], None]

# What the stock kernels are called in Debian: the general ones, not "cloud" (which has no
# 9p) and not "rt". 6.1 has no PAGEMAP_SCAN.
STOCK_PACKAGES = {
    "stock": re.compile(r"linux-image-6\.12\.[^-]+-amd64-unsigned"),
    "stock-6.1": re.compile(r"linux-image-6\.1\.[^-]+-[0-9]+-amd64-unsigned"),
}
#: The stock kernel with the live module of ``kernel/module``.
WITH_MODULE = "stock+module"
# Needed to see the host's files in the guest; what they depend on is added.
MODULES = ("9pnet_virtio", "9p", "overlay", "virtio_pci", "virtio_console")


@dataclass(frozen=True)
class Kernel:
    """A kernel that a guest can boot.

    ``image`` is a bzImage or an ELF vmlinux, ``modules`` are uncompressed modules in the
    order in which to load them, ``source`` is the package with its version, or the path.
    """

    image: Path
    modules: tuple[Path, ...]
    release: str
    source: str

    @property
    def key(self) -> str:
        """Changes when the kernel does."""
        stat = self.image.stat()
        text = f"{self.image.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_kernel(
    name: str = "stock", *, modules: Path | None = None, notify: Notify | None = None
) -> Kernel:
    """Return a kernel by name, fetched or built if need be, or one at a path.

    The names are ``stock`` and ``stock-6.1``, of the distribution; ``stock+module``, the former
    with the live module; and those of ``kernel_build.RECIPES``: ``patched``, ``vanilla``,
    ``patched-debug``, ``partly-patched`` and ``idle``.

    ``modules`` is a directory with the ``.ko`` files that a kernel at a path needs for 9p;
    without it the kernel must have 9p, virtio and overlayfs built in. ``notify`` is told,
    in a line, what takes long. Raises LabError when there is no such kernel.
    """
    from .kernel_build import RECIPES, build  # which needs this module, and so does the next
    from .kernel_module import with_module

    tell = notify or (lambda line: None)
    if name == WITH_MODULE:
        return with_module(find_kernel("stock", notify=notify), notify=tell)
    if name in STOCK_PACKAGES:
        return cached(name) or fetch(name, notify=notify)
    if name in RECIPES:
        return build(name, notify=tell)
    image = Path(name)
    try:
        with image.open("rb") as file:
            head = file.read(0x206)
    except OSError as error:
        raise LabError(
            error.errno or errno.EIO,
            f"cannot read the kernel {name}",
            "give the path of a bzImage, or one of "
            + ", ".join([*STOCK_PACKAGES, WITH_MODULE, *RECIPES]),
        ) from error
    if head[:4] != b"\x7fELF" and head[0x202:0x206] != b"HdrS":
        raise LabError(
            errno.ENOEXEC,
            f"{name} is not a Linux kernel for x86",
            "give arch/x86/boot/bzImage or vmlinux of a kernel build",
        )
    found = {path.name.split(".ko")[0].replace("-", "_"): path for path in _modules_in(modules)}
    return Kernel(image.resolve(), closure_of_modules(MODULES, found), "", str(image.resolve()))


def cached(name: str) -> Kernel | None:
    """Return a stock kernel if it has been fetched already."""
    try:
        directory = (cache_dir() / "kernels" / name).resolve(strict=True)
        facts = json.loads((directory / "kernel.json").read_text())
        kernel = Kernel(
            directory / facts["image"],
            tuple(directory / module for module in facts["modules"]),
            facts["release"],
            facts["source"],
        )
    except (OSError, ValueError, KeyError):
        return None
    whole = kernel.image.exists() and all(module.exists() for module in kernel.modules)
    return kernel if whole else None


def fetch(name: str = "stock", *, update: bool = False, notify: Notify | None = None) -> Kernel:
    """Fetch a stock kernel's package with apt, unpack it into the cache, and return it.

    Does nothing when it is there already, unless ``update`` asks apt for a newer one. Safe
    to call from several processes. Raises LabError when apt has no such package or cannot
    fetch it.
    """
    notify = notify or (lambda line: None)
    with locked("kernels"):
        present = cached(name)  # perhaps another process was faster
        if present is not None and not update:
            return present
        package, version = _newest(name)
        directory = cache_dir() / "kernels" / f"{package}_{version}"
        if present is None or not directory.exists():
            with scratch_dir() as scratch:
                notify(f"fetching {package} {version} (about 100 MB, once)")
                archive = packages.download(package, version, scratch)
                notify(f"unpacking {archive.name}")
                made = scratch / "kernel"
                made.mkdir()
                facts = unpack(archive, made, MODULES) | {"source": f"{package} {version}"}
                (made / "kernel.json").write_text(json.dumps(facts, indent=2) + "\n")
                directory.parent.mkdir(exist_ok=True)
                shutil.rmtree(directory, ignore_errors=True)
                made.rename(directory)
        link = directory.parent / f".{name}-{os.getpid()}"
        link.symlink_to(directory.name)
        link.rename(directory.parent / name)
    kernel = cached(name)
    if kernel is None:
        raise LabError(errno.EIO, f"the unpacked kernel in {directory} is damaged", "remove it")
    return kernel


def _modules_in(directory: Path | None) -> list[Path]:
    if directory is None:
        return []
    if not directory.is_dir():
        raise LabError(errno.ENOTDIR, f"{directory} is not a directory of modules")
    return sorted(directory.rglob("*.ko"))


def _newest(name: str) -> tuple[str, str]:
    """Return package and version of the newest kernel of that name which apt knows."""
    pattern = STOCK_PACKAGES[name]
    stem = "linux-image-6.12." if name == "stock" else "linux-image-6.1."
    known = packages.apt("apt-cache", "pkgnames", stem).split()
    matching = [package for package in known if pattern.fullmatch(package)]
    for package in sorted(matching, key=_numbers, reverse=True):
        shown = packages.apt("apt-cache", "show", "--no-all-versions", package)
        version = re.search(r"^Version: (\S+)$", shown, re.MULTILINE)
        if version:
            return package, version[1]
    raise LabError(
        errno.ENOENT,
        f"apt knows no package that matches {pattern.pattern}",
        "run 'apt-get update' first; on a system without such packages give the path of a "
        "kernel with 9p built in to --kernel",
    )


def _numbers(package: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", package))

# SPDX-License-Identifier: Apache-2.0
"""The live module of ``kernel/module``, built for a distribution's kernel and loaded at boot."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from . import programs
from .cache import cache_dir, locked, scratch_dir
from .errors import LabError
from .kernel import Kernel
from .kernel_build import kernel_directory

MODULE = "pageferry_mt.ko"
_SOURCES = ("Kbuild", "Makefile", "pageferry_mt.c")
_HEADERS = Path("/lib/modules")


def with_module(
    kernel: Kernel, *, directory: Path | None = None, notify: Callable[[str], None]
) -> Kernel:
    """Return ``kernel`` with the live module as the last that a guest loads.

    It is built, and built again when its source or the kernel changes, with the headers that are
    installed for that kernel. ``directory`` is pageferry's ``kernel/``, as for ``build``. Raises
    LabError when the headers or a compiler are missing, or the build fails.
    """
    module = build_module(kernel.release, directory=directory, notify=notify)
    return dataclasses.replace(
        kernel, modules=(*kernel.modules, module), source=f"{kernel.source} with {MODULE}"
    )


def build_module(
    release: str, *, directory: Path | None = None, notify: Callable[[str], None]
) -> Path:
    """Return the module for the kernel ``release``, in the cache; see ``with_module``."""
    headers = _HEADERS / release / "build"
    if not (headers / "Makefile").exists():
        raise LabError(
            errno.ENOENT,
            f"the headers of Linux {release} are not in {headers}",
            f"apt-get install linux-headers-{release}",
        )
    source = kernel_directory(directory) / "module"
    digest = hashlib.sha256(release.encode())
    for name in _SOURCES:
        digest.update(b"\0" + (source / name).read_bytes())
    with locked("kernel-module"):
        module = cache_dir() / "kernel-module" / digest.hexdigest()[:16] / MODULE
        if not module.exists():
            notify(f"building {MODULE} for Linux {release}")
            with scratch_dir() as scratch:
                for name in _SOURCES:
                    shutil.copy(source / name, scratch / name)
                _make(headers, scratch)
                module.parent.mkdir(parents=True, exist_ok=True)
                (scratch / MODULE).rename(module)
    return module


def _make(headers: Path, directory: Path) -> None:
    done = subprocess.run(
        [programs.find("make"), "-C", str(directory), f"KDIR={headers}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode or not (directory / MODULE).exists():
        raise LabError(
            errno.EIO,
            "the live module does not build:\n" + "\n".join(done.stdout.splitlines()[-20:]),
            "scripts/setup_kernel installs what a kernel build needs",
        )

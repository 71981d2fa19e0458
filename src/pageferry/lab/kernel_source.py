# SPDX-License-Identifier: Apache-2.0
"""Kernel sources for the lab: the distribution's package, and a tree with patches in it."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cache import write_atomically
from . import packages, programs
from .cache import cache_dir, locked, scratch_dir
from .errors import LabError

PACKAGE = "linux-source-6.12"
_TOUCHED = re.compile(rb"^(?:---|\+\+\+) (?:a|b)/([^\n\t]+)", re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """An unpacked, unchanged kernel source: its directory, and the package's version."""

    directory: Path
    version: str


def fetch_source(notify: Callable[[str], None]) -> Source:
    """Return the newest kernel source that apt knows, fetched and unpacked if need be.

    Needs 2 GB in the cache. Raises LabError when apt has no such package.
    """
    with locked("kernel-source"):
        present = sorted((cache_dir() / "kernel-source").glob("*/Makefile"))
        version = _newest_version()
        if version is None:
            if not present:
                raise LabError(
                    errno.ENOENT, f"apt knows no package {PACKAGE}", "run 'apt-get update' first"
                )
            version = present[-1].parent.name
        directory = cache_dir() / "kernel-source" / version
        if not (directory / "Makefile").exists():
            with scratch_dir() as scratch:
                notify(f"fetching {PACKAGE} {version} (150 MB, once)")
                archive = packages.download(PACKAGE, version, scratch)
                notify("unpacking the kernel's source")
                _unpack(archive, scratch)
                directory.parent.mkdir(exist_ok=True)
                shutil.rmtree(directory, ignore_errors=True)
                (scratch / "source").rename(directory)
    return Source(directory, version)


def patched_tree(source: Source, patches: Sequence[Path], tree: Path) -> bool:
    """Make ``tree`` the source with ``patches`` applied, and say whether that changed it.

    Only files whose content changes are written, so that make builds only what they reach.
    What the patches do not touch is a hard link to the source. Raises LabError when a patch
    does not apply; the tree is as before then.
    """
    marker = tree / ".pageferry-source"
    if not marker.exists() or marker.read_text() != source.version:
        shutil.rmtree(tree, ignore_errors=True)
        tree.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source.directory, tree, symlinks=True, copy_function=os.link)
        marker.write_text(source.version)
    record = tree / ".pageferry-patched"
    before = set(record.read_text().split("\n")) if record.exists() else set()
    touched = {
        os.fsdecode(name)
        for patch in patches
        for name in _TOUCHED.findall(patch.read_bytes())
        if name != b"/dev/null"
    }
    changed = False
    with scratch_dir() as scratch:
        for name in touched:
            if (source.directory / name).exists():
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source.directory / name, scratch / name)
        for patch in patches:
            _apply(patch, scratch)
        write_atomically(record, "\n".join(sorted(touched | before)).encode())
        for name in sorted((touched | before) - {""}):
            wanted = scratch / name if name in touched else source.directory / name
            changed |= _set(tree / name, wanted)
    write_atomically(record, "\n".join(sorted(touched)).encode())
    return changed


def _set(path: Path, wanted: Path) -> bool:
    """Give the file the content of ``wanted``, or remove it; say whether that was needed."""
    if not wanted.exists():
        there = path.exists()
        path.unlink(missing_ok=True)
        return there
    content = wanted.read_bytes()
    if path.exists() and path.read_bytes() == content:
        return False
    # A new file, as the old one may be a link to the source.
    write_atomically(path, content)
    path.chmod(wanted.stat().st_mode & 0o777)
    return True


def _apply(patch: Path, directory: Path) -> None:
    done = subprocess.run(
        [programs.find("git"), "apply", "--whitespace=nowarn", str(patch.absolute())],
        cwd=directory,
        # A repository around the cache would make git skip files outside of it.
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(directory.parent), "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise LabError(
            errno.EINVAL,
            f"{patch.name} does not apply: {done.stderr.strip()}",
            "kernel/README.md says for which version the patches were made",
        )


def _newest_version() -> str | None:
    """Return the version that apt would install, or None when it knows none."""
    shown = packages.apt("apt-cache", "policy", PACKAGE)
    found = re.search(r"^ *Candidate: (\S+)$", shown, re.MULTILINE)
    return found[1] if found and found[1] != "(none)" else None


def _unpack(archive: Path, directory: Path) -> None:
    """Unpack the source tar inside the package into ``directory``/source."""
    _run("dpkg-deb", "-x", str(archive), str(directory / "package"))
    tars = list((directory / "package").rglob(f"{PACKAGE}.tar.xz"))
    if len(tars) != 1:
        raise LabError(errno.ENOENT, f"{archive.name} has no {PACKAGE}.tar.xz in it")
    target = directory / "source"
    target.mkdir()
    _run("tar", "-xJf", str(tars[0]), "-C", str(target), "--strip-components=1")


def _run(program: str, *arguments: str) -> None:
    done = subprocess.run(
        [programs.find(program), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise LabError(errno.EIO, f"{program} failed: {done.stderr.strip()}")

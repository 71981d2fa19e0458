#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make a Debian package of a wheel, with dpkg-deb.

Usage: debian_package.py WHEEL FOLDER. The wheel's library is for every Python from 3.11 on
(abi3), so one package is for each Debian from 13 on and Ubuntu from 25.04 on, whose numpy and cffi
are new enough. Files have the time of SOURCE_DATE_EPOCH: the same wheel is the same package.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULES = "usr/lib/python3/dist-packages"
COMMAND = """#!/usr/bin/python3
from pageferry.cli import main

raise SystemExit(main())
"""
CONTROL = """Package: pageferry
Version: {version}
Architecture: {architecture}
Maintainer: the pageferry authors <pageferry@localhost>
Installed-Size: {size}
Depends: libc6 (>= {libc}), python3 (>= 3.11), python3-cffi-backend (>= 1.17),
 python3-numpy (>= 1:2.0), python3-rich (>= 13)
Suggests: python3-matplotlib, numactl
Section: admin
Priority: optional
Description: move memory pages between NUMA nodes with many threads
 Moves the pages of this or other processes between NUMA nodes by move_pages(2)
 from many threads, or by a copy of its own for a program's arrays, on the
 kernel that runs. A command, a Python module and a library to preload.
"""

# Or Python writes compiled files as root runs it, which no removal would take along. In another
# root (DPKG_ROOT) these programs would look at this machine's package.
SCRIPT = """#!/bin/sh
set -e
if [ -z "$DPKG_ROOT" ] && command -v {program} >/dev/null; then
	{program} -p pageferry
fi
"""
SCRIPTS = {"postinst": "py3compile", "prerm": "py3clean"}


def libc_of(wheel: Path) -> str:
    """Return the newest version of glibc that a library of the wheel asks for."""
    newest = (2, 17)
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not name.endswith(".so"):
                continue
            text = subprocess.run(
                ["objdump", "-T", archive.extract(name, folder)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for word in text.replace("(", " ").replace(")", " ").split():
                number = word.removeprefix("GLIBC_").split(".")
                if word.startswith("GLIBC_2.") and all(part.isdigit() for part in number):
                    newest = max(newest, (int(number[0]), int(number[1])))
    return ".".join(map(str, newest))


def place_of(name: str) -> str | None:
    """Return where a file of the wheel belongs below the root, None where nowhere."""
    folder, _, rest = name.partition("/")
    if folder.endswith(".data"):
        kind, _, below = rest.partition("/")
        return f"usr/{below}" if kind == "data" else None
    return f"{MODULES}/{name}"


def write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)


def fill(root: Path, wheel: Path) -> None:
    """Put the files in their places."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            place = place_of(name)
            if place is None or name.endswith("/"):
                continue
            data = archive.read(name)
            if "/share/man/" in f"/{place}":
                place, data = f"{place}.gz", gzip.compress(data, 9, mtime=0)
            write(root / place, data)
    write(root / "usr/bin/pageferry", COMMAND.encode(), 0o755)
    documents = root / "usr/share/doc/pageferry"
    write(documents / "copyright", (ROOT / "LICENSES/Apache-2.0.txt").read_bytes())
    changes = (ROOT / "CHANGELOG.md").read_bytes()
    write(documents / "changelog.gz", gzip.compress(changes, 9, mtime=0))


def main() -> int:
    """Fill a folder, and hand it to dpkg-deb."""
    wheel, out = Path(sys.argv[1]), Path(sys.argv[2])
    version = wheel.name.split("-")[1]
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    ).stdout.strip()
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        fill(root, wheel)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        control = CONTROL.format(
            version=version,
            architecture=architecture,
            size=sum((path.stat().st_size + 1023) // 1024 for path in files),
            libc=libc_of(wheel),
        )
        listed = "".join(
            f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  "
            f"{path.relative_to(root)}\n"
            for path in files
        )
        write(root / "DEBIAN/control", control.encode())
        write(root / "DEBIAN/md5sums", listed.encode())
        for name, program in SCRIPTS.items():
            write(root / "DEBIAN" / name, SCRIPT.format(program=program).encode(), 0o755)
        root.chmod(0o755)
        for path in (root, *root.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
            os.utime(path, (epoch, epoch))
        package = out / f"pageferry_{version}_{architecture}.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", root, package],
            env=os.environ | {"SOURCE_DATE_EPOCH": str(epoch)},
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

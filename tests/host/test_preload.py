# SPDX-License-Identifier: Apache-2.0
"""libpageferry_preload.so before programs that know nothing of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pageferry.bench.preload import idle
from pageferry.preload import Counters, environment, library
from pageferry.syscalls import kernel_has_mt

ROOT = Path(__file__).parents[2]
MODES = ("flag", "always", "never")


def compile_program(source: Path, folder: Path, *options: str) -> Path:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler here")
    program = folder / source.stem
    subprocess.run(
        [compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-pthread",
         f"-I{ROOT / 'native'}", f"-I{ROOT / 'native/include'}", source, "-o", program, *options],
        check=True,
        timeout=300,
    )  # fmt: skip
    return program


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("programs")
    names = ("preload", "preload_differential", "preload_refused")
    return {name: compile_program(ROOT / f"tests/c/{name}.c", folder) for name in names}


def run(*command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    base = {name: value for name, value in os.environ.items() if name[:9] != "PAGEFERRY"}
    return subprocess.run(
        [str(word) for word in command],
        env=base | {"LD_PRELOAD": str(library())} | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_a_program_sees_no_difference(programs: dict[str, Path], mode: str, threads: int) -> None:
    done = run(programs["preload"], **environment(mode, threads=threads))
    assert (done.returncode, done.stdout, done.stderr) == (0, "preload: ok\n", "")


def test_random_calls(programs: dict[str, Path], tmp_path: Path) -> None:
    """With one node nothing moves; the guest tests run it with two."""
    log = tmp_path / "log"
    variables = environment("always", threads=3, log=str(log))
    done = run(programs["preload_differential"], 60, 7, **variables)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"preload differential: ok, 60 calls, \d nodes\n", done.stdout)
    lines = log.read_text().splitlines()
    # So it was put to the test, though on a busy machine by fewer threads.
    assert any(re.search(r" by \d threads?", line) for line in lines)
    assert all(line.startswith("pageferry[") for line in lines)


def test_the_variables_may_be_garbage(programs: dict[str, Path]) -> None:
    garbage = {
        "PAGEFERRY_MT": "always", "PAGEFERRY_THREADS": "many", "PAGEFERRY_CPUS": "3-,x,,1-0,99999",
        "PAGEFERRY_NODES": "-1,0-70000", "PAGEFERRY_LOG": "/nowhere/log",
        "PAGEFERRY_STATS": "/nowhere/stats",
    }  # fmt: skip
    done = run(programs["preload"], **garbage)
    assert (done.returncode, done.stderr) == (0, "")
    for name in garbage:
        assert run("true", **{name: "\xff" * 5000}).returncode == 0


def test_only_the_calls_are_taken() -> None:
    """A further name would come before a program's own, or the extension module's."""
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", library()], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1].split("@")[0] for line in listed.splitlines()}
    assert names - {"_init", "_fini"} == {"move_pages", "mbind", "migrate_pages", "syscall"}


def test_a_program_that_never_moves_pays_little() -> None:
    """No thread, and less than 200 KiB that is in memory."""
    found = idle(environment("always"))
    assert found["threads"] == 1
    assert 0 < found["bytes"] < 200 << 10


def test_counters(programs: dict[str, Path]) -> None:
    with Counters() as counters:
        assert counters.read().calls == 0
        variables = environment("always", threads=2, stats=counters.path)
        assert run(programs["preload"], **variables).returncode == 0
        counts = counters.read()
        assert counts.calls > 10 and counts.passed > 0 and counts.busy_us > 0
        assert 1 <= counts.workers <= 2
        path = counters.path
    assert not path.exists()
    with Counters() as counters:
        variables = environment("flag", threads=2, stats=counters.path)
        assert run(programs["preload"], **variables).returncode == 0
        assert counters.read().calls == 0


def test_the_environment_keeps_other_libraries() -> None:
    ours = str(library())
    kept = environment(base={"LD_PRELOAD": f"/a.so {ours}:/b.so"})["LD_PRELOAD"]
    assert kept == f"{ours}:/a.so:/b.so"
    assert environment()["LD_PRELOAD"] == ours
    values = environment("always", threads=2, log="stderr")
    assert values["PAGEFERRY_MT"] == "always" and values["PAGEFERRY_THREADS"] == "2"
    assert values["PAGEFERRY_CPUS"].count(",") == 1 and values["PAGEFERRY_NODES"]
    assert values["PAGEFERRY_LOG"] == "stderr" and "PAGEFERRY_STATS" not in values


def test_the_example(tmp_path: Path) -> None:
    """Falls back to one thread alone, and has several under the library."""
    program = compile_program(ROOT / "examples/move_mt.c", tmp_path)
    alone = subprocess.run([program, "0"], capture_output=True, text=True, timeout=300)
    with Counters() as counters:
        done = run(program, 0, **environment("flag", threads=2, stats=counters.path))
        calls = counters.read().calls
    assert done.stdout == "16384 of 16384 pages on node 0, by several threads\n"
    if not kernel_has_mt():
        assert alone.stdout == "16384 of 16384 pages on node 0, by one thread\n"
        assert calls == 1


def test_the_manual_tells_every_variable() -> None:
    text = (ROOT / "docs/man/pageferry-preload.7").read_text()
    source = (ROOT / "native/preload_settings.c").read_text()
    names = set(re.findall(r'setting\("(PAGEFERRY_\w+)"\)', source))
    assert len(names) == 6
    assert {name for name in names if f".B {name}\n" not in text} == set()
    for page in ("pageferry-preload.7", "MPOL_MF_MOVE_MT.7"):
        assert (Path(sys.prefix) / "share/man/man7" / page).read_text() == (
            ROOT / "docs/man" / page
        ).read_text()


@pytest.mark.skipif(not shutil.which("migratepages"), reason="numactl is not installed")
def test_migratepages_through_libnuma(tmp_path: Path) -> None:
    log = tmp_path / "log"
    sleeper = subprocess.Popen(["sleep", "600"])
    try:
        variables = environment("always", threads=2, log=str(log))
        node = variables["PAGEFERRY_NODES"][0]
        done = run("migratepages", sleeper.pid, node, node, **variables)
    finally:
        sleeper.kill()
        sleeper.wait()
    assert done.returncode == 0, done.stderr
    assert f"migrate_pages of process {sleeper.pid}" in log.read_text()


def test_a_seccomp_filter_that_refuses(programs: dict[str, Path]) -> None:
    """Where not even move_pages is allowed, the program gets its EPERM."""
    done = run(programs["preload_refused"], **environment("always", threads=2))
    assert (done.returncode, done.stdout, done.stderr) == (0, "preload refused: ok\n", "")

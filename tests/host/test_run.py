# SPDX-License-Identifier: Apache-2.0
"""``pageferry run``: what it starts, what it says, and how it ends."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pageferry import cli
from pageferry.commands import run as run_module
from pageferry.elf import why_not_preloadable
from pageferry.errors import PageferryError
from pageferry.preload import library
from pageferry.switch import Switch, read_switch

PROGRAM = [sys.executable, "-m", "pageferry", "run"]
MOVER = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
count = 4096
memory = mmap.mmap(-1, count * 4096)
memory[:] = bytes(count) * 4096
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
pages = (ctypes.c_void_p * count)(*range(address, address + count * 4096, 4096))
nodes = (ctypes.c_int * count)(*[int(sys.argv[1])] * count)
status = (ctypes.c_int * count)()
number = {"x86_64": 279, "aarch64": 239}[os.uname().machine]
result = libc.syscall(number, 0, ctypes.c_ulong(count), pages, nodes, status, int(sys.argv[2]))
print(result, ctypes.get_errno() if result else 0, set(status))
"""


def pageferry_run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=300, **options
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture
def node() -> int:
    from pageferry import topology

    return topology().target_nodes[0]


def move(node: int, flags: int) -> list[object]:
    return ["--", sys.executable, "-c", MOVER, node, flags]


# --- what is started


@pytest.mark.parametrize("mode", ["flag", "always", "never"])
@pytest.mark.parametrize("bits", [0, 1 << 7])
def test_the_flag_is_taken_on_every_kernel(node: int, mode: str, bits: int) -> None:
    done = pageferry_run("--mt", mode, "--threads", 2, "--stats", "--json", *move(node, 2 | bits))
    assert done.returncode == 0
    assert done.stdout == f"0 0 {{{node}}}\n"
    counts = json.loads(done.stderr)
    threaded = mode == "always" or (mode == "flag" and bits != 0)
    assert (counts["calls"] == 1) == threaded or _kernel_has_mt()
    assert counts["workers"] <= 2


def _kernel_has_mt() -> bool:
    from pageferry.syscalls import kernel_has_mt

    return kernel_has_mt()


def test_without_the_library_a_stock_kernel_refuses_the_flag(node: int) -> None:
    if _kernel_has_mt():
        pytest.skip("this kernel takes the flag")
    command = [str(word) for word in move(node, 2 | 1 << 7)[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("-1 22 ")


def test_the_program_replaces_the_launcher() -> None:
    code = "import os; print(os.environ['LD_PRELOAD'], os.environ['PAGEFERRY_MT'], os.getpid())"
    process = subprocess.Popen(
        [*PROGRAM, "--mt", "always", sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    output, _ = process.communicate(timeout=300)
    assert output == f"{library()} always {process.pid}\n"


def test_exit_codes(tmp_path: Path) -> None:
    assert pageferry_run("--", "sh", "-c", "exit 7").returncode == 7
    assert pageferry_run("--stats", "--", "sh", "-c", "exit 7").returncode == 7
    killed = pageferry_run("--stats", "--", "sh", "-c", "kill -9 $$")
    assert killed.returncode == 128 + signal.SIGKILL
    missing = pageferry_run("--", "no-such-program")
    assert missing.returncode == 127 and "no-such-program: not found" in missing.stderr
    for there in (tmp_path, Path(__file__)):
        done = pageferry_run("--", there)
        assert done.returncode == 126 and "not executable" in done.stderr
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    for options in ([], ["--stats"]):
        done = pageferry_run(*options, "--", broken)
        assert done.returncode == 126 and "Exec format error" in done.stderr
    assert pageferry_run().returncode == 2
    assert pageferry_run("--threads", 0, "--", "true").returncode == 2
    assert pageferry_run("--mt", "sometimes", "--", "true").returncode == 2


def test_options_after_the_command_are_its_own() -> None:
    done = pageferry_run("--mt", "always", "echo", "--mt", "never", "--stats")
    assert done.stdout == "--mt never --stats\n" and done.stderr == ""


def test_the_flag_goes_with_a_move(node: int) -> None:
    """As in the patched kernel: alone it is wrong."""
    for mode in ("flag", "always", "never"):
        done = pageferry_run("--mt", mode, *move(node, 1 << 7))
        assert done.stdout.startswith(f"-1 {errno.EINVAL} ")


HELPERS = """
for task in os.listdir("/proc/self/task"):
    with open(f"/proc/self/task/{task}/comm") as file:
        if re.fullmatch(r"pageferry/\\d+\\n", file.read()):
            print(len(os.sched_getaffinity(int(task))))
"""


def test_helpers_are_pinned_where_there_is_a_choice(node: int) -> None:
    """With as many threads as CPUs one would wait where the scheduler has put the caller."""
    code = f"import re\n{MOVER}\n{HELPERS}"
    arguments = ["--", sys.executable, "-c", code, node, 2]
    done = pageferry_run("--mt", "always", "--threads", 2, *arguments)
    cpus = len(os.sched_getaffinity(0))
    if cpus == 1:
        pytest.skip("one CPU: no helpers")
    assert done.stdout == f"0 0 {{{node}}}\n{1 if cpus > 2 else cpus}\n"


# --- what is said


def test_stats(node: int) -> None:
    done = pageferry_run("--mt", "always", "--threads", 2, "--stats", *move(node, 2))
    assert re.fullmatch(
        r"pageferry: moved [\d.]+ \w+ \(\d+ pages\) in 1 call, [\d.]+ ms, [\d.]+ GB/s, "
        r"with [12] threads\n",
        done.stderr,
    )
    done = pageferry_run("--mt", "always", "--stats", "--", "true")
    assert done.stderr == "pageferry: no call was done by several threads (0 passed on)\n"


def test_log(node: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    pageferry_run("--mt", "always", "--threads", 2, "--log", log, *move(node, 2))
    assert re.search(r"move_pages of process \d+: 0 pages, 0 bytes in \d+ us by", log.read_text())
    done = pageferry_run("--mt", "always", "--threads", 2, "--log", "stderr", *move(node, 2))
    assert "move_pages of process" in done.stderr


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    """The library would say nothing, so the launcher does, and starts nothing."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "log")
    for log, name in (("/nowhere/log", "ENOENT"), (link, "ELOOP"), (tmp_path, "EISDIR")):
        done = pageferry_run("--log", log, "--", "echo", "started")
        assert (done.returncode, done.stdout) == (1, "")
        assert f"cannot write the log {log} [{name}" in done.stderr
    assert not (tmp_path / "log").exists()


def test_the_log_is_where_it_was_asked_for(node: int, tmp_path: Path) -> None:
    """Also when the program goes elsewhere."""
    script = f"cd / && exec {shlex.join(map(str, move(node, 2)[1:]))}"
    options = ["--mt", "always", "--threads", 2, "--log", "here"]
    done = pageferry_run(*options, "--", "sh", "-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "move_pages of process" in (tmp_path / "here").read_text()


def test_stats_say_why_nothing_was_done(node: int) -> None:
    for mode, words in (("flag", "without --mt always"), ("never", "with --mt never")):
        done = pageferry_run("--mt", mode, "--stats", *move(node, 2))
        assert "no call was done by several threads (0 passed on)" in done.stderr
        assert words in done.stderr


def test_signals_reach_the_program() -> None:
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    process = subprocess.Popen(
        [*PROGRAM, "--stats", "--", sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    _, complaint = process.communicate(timeout=300)
    assert process.returncode == 9 and "no call" in complaint


def test_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--environment", "--mt", "always", "--threads", "2"]) == 0
    lines = dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["LD_PRELOAD"] == str(library()) and lines["PAGEFERRY_MT"] == "always"
    assert cli.main(["run", "--environment", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["PAGEFERRY_MT"] in ("flag", "always", "never")


# --- programs that a library cannot be put before


def test_a_static_program(tmp_path: Path) -> None:
    if not shutil.which("gcc"):
        pytest.skip("no gcc here")
    source = tmp_path / "static.c"
    source.write_text('#include <stdio.h>\nint main(void) { puts("ran"); return 0; }\n')
    program = tmp_path / "static"
    made = subprocess.run(["gcc", "-static", source, "-o", program], capture_output=True)
    if made.returncode:
        pytest.skip("no static C library here")
    done = pageferry_run("--", program)
    assert done.stdout == "ran\n" and "statically linked" in done.stderr
    assert pageferry_run("--mt", "never", "--", program).stderr == ""


def test_why_not_preloadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not_preloadable(sys.executable) is None
    shell = shutil.which("sh")
    assert shell and why_not_preloadable(shell) is None
    script = tmp_path / "script"
    script.write_text(f"#!{shell}\n")
    assert why_not_preloadable(script) is None
    script.write_text("#!/usr/bin/env python3\n")
    assert why_not_preloadable(script) is None
    script.write_text("echo no first line\n")
    assert why_not_preloadable(script) is None
    copy = tmp_path / "copy"
    shutil.copy(shell, copy)
    copy.chmod(copy.stat().st_mode | stat.S_ISUID)
    monkeypatch.setattr(os, "geteuid", lambda: copy.stat().st_uid + 1)
    assert "set-uid" in str(why_not_preloadable(copy))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as sudo often is: 4711
    assert "set-uid" in str(why_not_preloadable(copy))
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: copy.stat().st_uid + 1)
    script.write_text(f"#!{copy}\n")
    assert "set-uid" in str(why_not_preloadable(script))
    other = bytearray(Path(shell).read_bytes())
    other[4] = 1  # 32-bit
    copy.write_bytes(other)
    copy.chmod(0o755)
    assert "another word size" in str(why_not_preloadable(copy))


# --- the switch


@pytest.mark.parametrize(
    ("text", "switch"),
    [
        ("mt = 0", ("never", None)),
        ("mt = 1\nthreads = 4", ("always", 4)),
        ('mt = "flag"', ("flag", None)),
        ("", ("flag", None)),
    ],
)
def test_switch(tmp_path: Path, text: str, switch: tuple[str, int | None]) -> None:
    assert read_switch(tmp_path) == Switch()
    file = tmp_path / "etc/pageferry.toml"
    file.parent.mkdir()
    file.write_text(text)
    file.chmod(0o644)
    assert read_switch(tmp_path) == Switch(*switch, file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mt = 2", '0, 1 or "flag"'),
        ("mt = true", '0, 1 or "flag"'),
        ("mt = [1]", '0, 1 or "flag"'),
        ("mt = 1.0", '0, 1 or "flag"'),
        ("threads = 0", "number from 1"),
        ("threads = true", "number from 1"),
        ("copy = 1", "'copy'"),
        ("mt =", "pageferry.toml"),
    ],
)
def test_a_switch_that_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/pageferry.toml").write_text(text)
    (tmp_path / "etc/pageferry.toml").chmod(0o644)
    with pytest.raises(PageferryError, match="EINVAL") as info:
        read_switch(tmp_path)
    assert words in str(info.value)


def test_run_obeys_the_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "read_switch", lambda: Switch("always", 3, tmp_path))
    for arguments, mode, threads in (
        ([], "always", "3"),
        (["--mt", "never", "--threads", "2"], "never", "2"),
    ):
        assert cli.main(["run", "--environment", "--json", *arguments]) == 0
        values = json.loads(capsys.readouterr().out)
        assert (values["PAGEFERRY_MT"], values["PAGEFERRY_THREADS"]) == (mode, threads)

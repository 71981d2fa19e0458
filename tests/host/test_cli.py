# SPDX-License-Identifier: Apache-2.0
"""``pageferry move`` and ``pageferry locate`` as commands: exit codes, text, JSON."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from child import in_a_child
from regions import PAGE

from command import run as inside  # without a process of its own, which takes most of the time

PROGRAM = [sys.executable, "-m", "pageferry"]
OPTIONAL = {"PYTHONWARNINGS": "error", "COLUMNS": "80"}
ESCAPE = "\x1b"


def run(*arguments: object, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | OPTIONAL,
        **kwargs,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def pid() -> Iterator[int]:
    code = "b = bytearray(b'x') * (4 << 20); print(flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process.pid
    assert process.poll() is None  # unharmed by all that
    process.communicate(b"\n")
    assert process.returncode == 0


@pytest.fixture
def heap(pid: int) -> range:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if line.endswith("[heap]"):
            start, stop = (int(part, 16) for part in line.split()[0].split("-"))
            return range(start, stop)
    raise AssertionError("the process has no heap")


# --- move


def test_move(pid: int) -> None:
    done = run("move", pid, "--to", 0)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert re.fullmatch(r"Moved 0 B to node 0 in [\d.]+ ms, 0\.00 GB/s, with \d threads?", first)
    assert re.search(r"already there \d+\.\d MiB", second)


@pytest.mark.parametrize("node", ["0", "0-0", "0,0", "all", "+0"])
def test_one_node_in_any_syntax(pid: int, node: str) -> None:
    assert inside("move", pid, "--to", node).returncode == 0


def test_json(pid: int) -> None:
    done = run("move", pid, "--to", 0, "--json", "--from", "all", "--threads", 2, "--exact")
    assert (done.returncode, done.stderr) == (0, "")
    value = json.loads(done.stdout)
    assert value["complete"] is True and value["pid"] == pid and value["whole_process"] is True
    assert value["bytes_already"] > 4 << 20 and value["bytes_moved"] == 0
    assert value["plan"]["threads"] == 2 and value["plan"]["reasons"]
    assert value["failed"] == {} and value["stopped"] is None


def test_range(pid: int, heap: range) -> None:
    for text in (f"{heap.start:#x}-{heap.stop:#x}", f"{heap.start}+{len(heap)}"):
        value = json.loads(run("move", pid, "--to", 0, "--range", text, "--json").stdout)
        assert value["whole_process"] is False
        present = value["bytes_already"] + value["bytes_zero"]
        assert present + value["bytes_not_present"] == len(heap)
        assert value["bytes_already"] > 0
    cut = f"{heap.start + 1:#x}+{PAGE}"
    touched = json.loads(run("locate", pid, "--range", cut, "--json").stdout)
    inside = json.loads(run("locate", pid, "--range", cut, "--partial", "inside", "--json").stdout)
    assert touched["bytes_present"] + touched["bytes_not_present"] == 2 * PAGE
    assert inside["bytes_present"] + inside["bytes_not_present"] == 0


def test_dry_run(pid: int) -> None:
    done = run("move", pid, "--to", 0, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Would move 0 B of process {pid} to node 0; ")
    value = json.loads(run("move", pid, "--to", 0, "--dry-run", "--json", "--from", 0).stdout)
    assert value["dry_run"] is True and value["node"] == 0 and value["bytes_to_move"] == 0
    assert value["bytes_already"] == value["placement"]["bytes_present"] > 4 << 20
    assert value["bytes_free_on_node"] > 0 and value["plan"]["engine"] == "kernel"


@pytest.mark.parametrize("mode", ["async", "light", "sync"])
def test_modes(pid: int, mode: str) -> None:
    value = json.loads(inside("move", pid, "--to", 0, "--mode", mode, "--json").stdout)
    name = {"async": "ASYNC", "light": "SYNC_LIGHT", "sync": "SYNC"}[mode]
    assert value["plan"]["mode"] == name


# --- usage: exit code 2, and what is wrong on stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "99"], "node 99 does not exist.*nodes here: 0"),
        (["--to", "-1"], "lacks one end|expected one argument|does not exist"),
        (["--to", "x"], "not a node number"),
        (["--to", ""], "empty"),
        (["--to", "!0"], "no node"),
        (["--to", "0-99"], "node 99 does not exist"),
        (["--to", "1048576"], "does not exist"),
        (["--to", "9" * 5000], "does not exist"),
        (["--to", "0", "--dry-run", "--from", "7"], "node 7 does not exist"),
        (["--to", "99", "--dry-run"], "node 99 does not exist"),
        (["--to", "0", "--from", "7"], "node 7 does not exist"),
        (["--to", "0", "--from", ""], "empty"),
        (["--to", "0", "--threads", "0"], "number from 1"),
        (["--to", "0", "--threads", "many"], "number from 1"),
        (["--to", "0", "--mode", "quick"], "invalid choice"),
        (["--to", "0", "--partial", "half"], "invalid choice"),
        (["--to", "0", "--range", "0x0-0x1000"], "nothing is mapped"),
        (["--to", "0", "--range", "0-0x8000000000000000"], "address space"),
        (["--to", "0", "--frob"], "unrecognized"),
        (["--to", "0", "--engine", "user"], "--engine.*own memory only.*engine='user'"),
        (["--to", "0", "--way=hold"], "--way.*own memory only"),
        (["--to"], "expected one argument"),
        ([], "required: --to"),
    ],
)
def test_usage(pid: int, arguments: list[str], words: str) -> None:
    done = inside("move", pid, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.search(words, done.stderr), done.stderr
    assert len(done.stderr) < 2000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0x5000-0x1000", "reversed"),
        ("0x1000-0x1000", "empty"),
        ("7f0000000000+2M", "0x7f0000000000"),  # what /proc/PID/maps prints
        ("0x1000", "START-END"),
        ("0x1000+2X", "not a size"),
        ("0x1000-0x10000000000000000000", "beyond 64 bits"),
    ],
)
@pytest.mark.parametrize("verb", ["move", "locate"])
def test_bad_ranges_are_explained(pid: int, verb: str, text: str, words: str) -> None:
    to = ["--to", "0"] if verb == "move" else []
    done = inside(verb, pid, *to, "--range", text)
    assert done.returncode == 2 and done.stdout == ""
    assert words in done.stderr


@pytest.mark.parametrize("who", ["0", "-5", "abc", "1.5", ""])
@pytest.mark.parametrize("verb", ["move", "locate"])
def test_no_process_id(verb: str, who: str) -> None:
    to = ["--to", "0"] if verb == "move" else []
    assert inside(verb, *to, "--", who).returncode == 2


def test_no_command() -> None:
    done = inside()
    assert done.returncode == 2 and "COMMAND" in done.stderr
    assert inside("frob").returncode == 2
    assert inside("locate").returncode == 2
    assert inside("locate", os.getpid(), "--self").returncode == 2


def test_help_and_version() -> None:
    done = run("--help")
    assert done.returncode == 0
    for verb in ("topology", "locate", "move", "bench", "doctor", "lab"):
        assert verb in done.stdout
        assert inside(verb, "--help").returncode == 0
    version = Path(__file__).parents[2].joinpath("VERSION").read_text().strip()
    assert run("--version").stdout == f"pageferry {version}\n"


# --- refusals: exit code 1


def test_dead_process() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    for verb in (["move", "--to", "0"], ["move", "--to", "0", "--dry-run"], ["locate"]):
        done = run(*verb, process.pid)
        assert done.returncode == 1 and done.stdout == ""
        assert f"process {process.pid}" in done.stderr and "ESRCH" in done.stderr


def test_kernel_thread() -> None:
    if Path("/proc/2/comm").read_text().strip() != "kthreadd":
        pytest.skip("no kernel threads in this PID namespace")
    done = run("move", 2, "--to", 0)
    assert done.returncode == 2 and "no memory of its own" in done.stderr


@pytest.mark.parametrize("verb", [["move", "--to", "0"], ["locate"]])
def test_no_permission(pid: int, verb: list[str]) -> None:
    inside("--version")  # imports what that user may not read

    def unprivileged() -> str:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        done = inside(*verb, pid)
        return f"{done.returncode} {done.stdout!r} {done.stderr}"

    answer = in_a_child(unprivileged)
    assert answer.startswith("1 '' pageferry: ")
    assert "Permission denied" in answer and "CAP_SYS_PTRACE" in answer


# --- locate


def test_locate(pid: int) -> None:
    done = run("locate", pid)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].strip() == f"Memory of process {pid}"
    assert lines[1].split() == ["node", "base", "thp", "hugetlb", "all", "share"]
    assert lines[2].split()[0] == "0" and lines[2].split()[-1] == "100.0%"
    value = json.loads(run("locate", pid, "--json").stdout)
    assert value["pid"] == pid and set(value["nodes"]) == {"0"}
    assert sum(value["nodes"]["0"].values()) == value["bytes_present"] > 4 << 20
    assert json.loads(run("locate", "--self", "--json").stdout)["bytes_present"] > 4 << 20


# --- terminals and pipes


def test_plain_text_without_a_terminal(pid: int) -> None:
    for arguments in (["move", pid, "--to", 0], ["locate", pid], ["topology"]):
        done = run(*arguments)
        assert ESCAPE not in done.stdout + done.stderr


def test_a_terminal(pid: int) -> None:
    near, far = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, "move", str(pid), "--to", "0"],
        stdin=far,
        stdout=far,
        stderr=far,
        env=os.environ | OPTIONAL | {"TERM": "xterm"},
    )
    os.close(far)
    text = b""
    while True:
        try:
            piece = os.read(near, 4096)
        except OSError:  # the other side has closed it
            break
        if not piece:
            break
        text += piece
    os.close(near)
    assert process.wait(300) == 0
    assert b"Moved 0 B to node 0" in text


def test_a_reader_that_goes_away(pid: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [*PROGRAM, "locate", str(pid)], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    _, complaint = process.communicate(timeout=300)
    assert complaint == ""
    assert process.returncode in (0, 141)

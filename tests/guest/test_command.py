# SPDX-License-Identifier: Apache-2.0
"""The ``pageferry`` command on a machine with two nodes.

Run by: pageferry lab run --topology two-node --memory 1536M --cpus 2
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from placement import PAGE, Forked, Memory, Script, nodes_of

from command import run

PROGRAM = [sys.executable, "-m", "pageferry"]
SIZE = 8 << 20


@dataclass
class Target:
    """A process with ``SIZE`` bytes at ``address``, which compares them at the end."""

    pid: int
    address: int


@pytest.fixture(scope="module")
def child() -> Iterator[Target]:
    code = f"""
        memory = Memory("base", {SIZE}, node=0)
        say(memory.address)
        while hear():
            memory.check(); say("whole")
    """
    with Script(code) as process:
        yield Target(process.pid, int(process.hear()))
        process.say("check")
        assert process.hear() == "whole"


def where(child: Target) -> dict[int, int]:
    return nodes_of(child.address, SIZE, child.pid)


def test_dry_run_moves_nothing(child: Target) -> None:
    before = where(child)
    other = 1 if before.get(0) else 0
    done = run("move", child.pid, "--to", other, "--dry-run")
    assert done.returncode == 0 and done.stdout.startswith("Would move ")
    value = json.loads(run("move", child.pid, "--to", other, "--dry-run", "--json").stdout)
    assert value["bytes_to_move"] >= SIZE and value["plan"]["threads"] >= 1
    assert where(child) == before


def test_move_and_locate(child: Target) -> None:
    reports = ""
    for node in (1, 0):
        done = run("move", child.pid, "--to", node)
        reports += done.stdout
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"to node {node} in" in done.stdout and "GB/s" in done.stdout
        assert where(child) == {node: SIZE}
        value = json.loads(run("locate", child.pid, "--json").stdout)
        assert value["nodes"][str(node)]["base"] >= SIZE
    assert "Not moved" in reports and "EACCES" in reports  # its libraries, one way or the other


def test_from(child: Target) -> None:
    here = next(iter(where(child)))
    other = 1 - here
    value = json.loads(run("move", child.pid, "--to", here, "--from", other, "--json").stdout)
    assert value["bytes_already"] >= SIZE
    value = json.loads(
        run("move", child.pid, "--to", other, "--from", f"!{other}", "--json").stdout
    )
    assert value["bytes_moved"] >= SIZE and where(child) == {other: SIZE}


def test_range_and_exit_code_1(child: Target) -> None:
    here = next(iter(where(child)))
    start = child.address
    done = run("move", child.pid, "--to", 1 - here, "--range", f"{start:#x}+1M", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["bytes_moved"] == 1 << 20
    assert where(child) == {here: SIZE - (1 << 20), 1 - here: 1 << 20}
    with open(f"/proc/{child.pid}/maps") as maps:
        library = next(line for line in maps if "/libc." in line and "r-xp" in line)
    text = "-".join("0x" + part for part in library.split()[0].split("-"))
    for node in (0, 1):
        done = run("move", child.pid, "--to", node, "--range", text)
        if done.returncode:
            break
    assert done.returncode == 1  # shared with this process, and asked for by name
    assert "EACCES" in done.stdout and "--shared" in done.stdout


def test_shared(child: Target) -> None:
    with open(f"/proc/{child.pid}/maps") as maps:
        library = next(line for line in maps if "/libm." in line and "r-xp" in line)
    text = "-".join("0x" + part for part in library.split()[0].split("-"))
    for node, option in ((1, "--shared"), (0, "--all")):
        done = run("move", child.pid, "--to", node, "--range", text, option, "--json")
        assert done.returncode == 0, done.stdout
        value = json.loads(run("locate", child.pid, "--range", text, "--json").stdout)
        assert set(value["nodes"]) == {str(node)}


@pytest.mark.parametrize("node", ["7", "0-1", "all", "0,1", "!7", "-1"])
def test_one_node_is_needed(child: Target, node: str) -> None:
    before = where(child)
    done = run("move", child.pid, f"--to={node}")
    assert done.returncode == 2 and done.stdout == "" and "node" in done.stderr
    assert where(child) == before


def test_interrupt() -> None:
    size = 32 << 20

    def work(parent: Forked) -> None:
        memory = Memory("base", size, node=0)
        parent.say(memory.address)
        parent.hear()
        memory.check()
        parent.say("whole")

    with Forked(work) as child:
        start = int(child.hear())
        move = subprocess.Popen(
            [*PROGRAM, "move", str(child.pid), "--to", "1", "--range", f"{start:#x}+32M",
             "--max-gbps", "1e-4"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        # Minutes at that pace: it is seen in the middle, whoever has to wait for a CPU.
        while move.poll() is None and not nodes_of(start, size, child.pid).get(1):
            time.sleep(0.02)  # the command needs the CPU to begin
        move.send_signal(signal.SIGINT)
        out, err = move.communicate(timeout=300)
        assert "Traceback" not in err, err
        assert move.returncode == 130, (out, err)
        assert out.startswith("Moved ") and "Ctrl-C" in out
        moved = nodes_of(start, size, child.pid)
        assert 0 < moved[1] < size and moved[0] + moved[1] == size
        # Interrupted between two batches, of which each is whole.
        assert moved[1] % PAGE == 0
        child.say("check")
        assert child.hear() == "whole"


def test_several_processes_and_a_kind_of_memory(child: Target) -> None:
    before = where(child)
    start = max(before, key=lambda node: before[node])
    second = subprocess.Popen(["sleep", "1000"])
    pids = (child.pid, second.pid)
    assert run("move", *pids, "--to", 1 - start, "--kind", "file").returncode == 0
    assert where(child) == before
    done = run("move", *pids, 999999999, "--to", 1 - start, "--kind", "anon", "--json")
    value = json.loads(done.stdout)
    assert done.returncode == 1 and value["total"]["complete"] == 2
    first, other, gone = value["processes"]
    assert first["result"]["bytes_moved"] >= before[start] and where(child) == {1 - start: SIZE}
    assert other["result"]["complete"] and gone["error"]["errno"] == "ESRCH"
    second.kill()
    second.wait()


def test_topology() -> None:
    value = json.loads(run("topology", "--json").stdout)
    assert value["memory_nodes"] == value["target_nodes"] == [0, 1]
    text = run("topology").stdout
    assert "distance" in text and "may use" in text


def test_own_memory_and_kernel_agree() -> None:
    memory = Memory("base", 1 << 20, node=1)
    value = json.loads(
        run("locate", os.getpid(), "--range", f"{memory.address}+1M", "--json").stdout
    )
    assert value["nodes"] == {"1": {"base": 1 << 20, "thp": 0, "hugetlb": 0}}

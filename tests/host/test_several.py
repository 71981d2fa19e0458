# SPDX-License-Identifier: Apache-2.0
"""Several processes at once: who is meant, one result for each, and errors that stop nobody else.

Pages that really move are in tests/guest.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from child import in_a_child
from test_cli import inside

from pageferry import (
    MovesInterrupted,
    NodeError,
    Process,
    ProcessGoneError,
    TargetError,
    engine,
    find_processes,
    move_processes,
    plan,
    processes,
)

SIZE = 4 << 20
PREFIX = f"pf{os.getpid()}"
CODE = """
import sys
open("/proc/self/comm", "w").write(sys.argv[1])
memory = bytearray(b"x") * int(sys.argv[2])
print(flush=True)
input()
"""


def begun(name: str, size: int = SIZE) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, name, str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.fixture(scope="module")
def three() -> Iterator[list[int]]:
    children = [begun(f"{PREFIX}-{letter}") for letter in "abc"]
    yield [child.pid for child in children]
    for child in children:
        assert child.poll() is None
        child.communicate(b"\n")
        assert child.returncode == 0


@pytest.fixture
def dead() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def pids(found: list[Process]) -> list[int]:
    return [process.pid for process in found]


# --- who is meant


def test_by_name(three: list[int]) -> None:
    assert pids(find_processes(names=[f"{PREFIX}-*"])) == sorted(three)
    assert pids(find_processes(names=[f"{PREFIX}-[ac]"])) == sorted([three[0], three[2]])
    (one,) = find_processes(names=[f"{PREFIX}-b", f"{PREFIX}-b"])
    assert (one.pid, one.name) == (three[1], f"{PREFIX}-b")
    assert str(one) == f"process {three[1]} ({PREFIX}-b)"
    with pytest.raises(ProcessGoneError, match=f"no process is of name {PREFIX}-x"):
        find_processes(names=[f"{PREFIX}-x"])


def test_the_ids_come_first_and_each_once(three: list[int]) -> None:
    a, b, c = sorted(three)
    found = find_processes([c, c, a], names=[f"{PREFIX}-*"])
    assert pids(found) == [c, a, b]
    assert all(process.started for process in found)


def test_patterns_mean_neither_this_process_nor_kernel_threads_nor_zombies(
    three: list[int],
) -> None:
    zombie = begun(f"{PREFIX}-z")
    zombie.stdin.close()  # type: ignore[union-attr]
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    found = pids(find_processes(names=["*"]))
    zombie.wait()
    assert set(three) <= set(found)
    assert os.getpid() not in found and zombie.pid not in found
    kernel = [pid for pid in found if not Path(f"/proc/{pid}/maps").exists()]
    assert kernel == []


def test_kernel_threads_are_told_by_their_flags(tmp_path: Path) -> None:
    """A /proc made of files: kernel threads are out of sight in a PID namespace."""
    rest = "0 " * 12 + "77 4096 1 " + "0 " * 30
    for pid, name, flags in ((2, "kthreadd", 0x00200040), (9, "a) (b", 0x00400100)):
        (tmp_path / str(pid)).mkdir()
        text = f"{pid} ({name}) S 0 0 0 0 -1 {flags} {rest}"
        (tmp_path / str(pid) / "stat").write_text(text)
    assert find_processes(names=["*"], proc=tmp_path) == [Process(9, "a) (b", 77)]


def cgroup(folder: Path, *members: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.procs").write_text("".join(f"{member}\n" for member in members))
    return folder


@pytest.fixture
def mount(tmp_path: Path, three: list[int], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup tree made of files: a real one may not be changed everywhere."""
    a, b, c = three
    cgroup(tmp_path, 1)
    cgroup(tmp_path / "system.slice", os.getpid(), 0)
    cgroup(tmp_path / "system.slice/db.service", a)
    cgroup(tmp_path / "system.slice/db.service/worker", b, 999999999)
    cgroup(tmp_path / "system.slice/system-x.slice")
    cgroup(tmp_path / "system.slice/system-x.slice/x@1.service", c)
    cgroup(tmp_path / "user.slice")
    cgroup(tmp_path / "user.slice/user-1.slice/user@1.service")
    cgroup(tmp_path / "user.slice/user-1.slice/user@1.service/app.slice/mine.service", c)
    cgroup(tmp_path / "empty")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(processes, "cgroup_mounts", lambda: [tmp_path])
    return tmp_path


def test_by_cgroup(mount: Path, three: list[int]) -> None:
    a, b, c = three
    service = mount / "system.slice/db.service"
    for path in (service, "system.slice/db.service", "/system.slice/db.service"):
        assert pids(find_processes(cgroups=[str(path)])) == sorted([a, b])
    assert pids(find_processes(cgroups=[str(service / "worker")])) == [b]
    assert pids(find_processes(cgroups=["/system.slice"])) == sorted(three)
    both = find_processes(cgroups=["user.slice"], units=["db"])
    assert pids(both) == sorted([a, b, c])


def test_by_unit(mount: Path, three: list[int]) -> None:
    a, b, c = three
    assert pids(find_processes(units=["db"])) == sorted([a, b])
    assert pids(find_processes(units=["db.service"])) == sorted([a, b])
    assert pids(find_processes(units=["x@1.service"])) == [c]
    assert pids(find_processes(units=["system-x.slice"])) == [c]
    assert pids(find_processes(units=["user@1.service"])) == [c]
    with pytest.raises(ProcessGoneError, match=r"no cgroup of a unit mine\.service"):
        find_processes(units=["mine"])  # not the system's: one of a user's own systemd


def test_cgroups_and_units_that_are_none(mount: Path) -> None:
    for path in ("", "a\0b", "folder", "/etc"):
        with pytest.raises(TargetError, match="cgroup"):
            find_processes(cgroups=[path])
    for path in ("missing", "/no/such", "a" * 5000):
        with pytest.raises(ProcessGoneError, match="there is no cgroup"):
            find_processes(cgroups=[path])
    with pytest.raises(ProcessGoneError, match="no process is of cgroup empty"):
        find_processes(cgroups=["empty"])
    for unit in ("", "../x", "a b", "x" * 300, "*"):
        with pytest.raises(TargetError, match="name of a unit"):
            find_processes(units=[unit])


def test_the_cgroup_file_systems_of_this_machine(tmp_path: Path, three: list[int]) -> None:
    lines = (
        "31 1 0:9 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "32 1 0:8 / /sys/fs/cgroup/systemd rw shared:2 - cgroup cgroup rw,name=systemd\n"
        "33 1 0:7 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
        "34 1 0:6 / /proc rw - proc proc rw\n"
    )
    (tmp_path / "self").mkdir()
    (tmp_path / "self/mountinfo").write_text(lines)
    assert processes.cgroup_mounts(proc=tmp_path) == [
        Path("/sys/fs/cgroup"),
        Path("/sys/fs/cgroup/systemd"),
        Path("/sys/fs/cgroup/memory"),
    ]
    for line in Path(f"/proc/{three[0]}/cgroup").read_text().splitlines():
        path = line.split(":", 2)[2]
        if path != "/" and any((m / path[1:]).is_dir() for m in processes.cgroup_mounts()):
            assert three[0] in pids(find_processes(cgroups=[path]))


# --- one result for each


def test_each_has_a_result(three: list[int]) -> None:
    result = move_processes(three, 0)
    assert result.complete and not result.cancelled and result.untouched == []
    assert [moved.process.pid for moved in result.processes] == three
    assert all(moved.error is None and moved.complete for moved in result.processes)
    assert result.total_bytes("already") == sum(r.bytes_already for r in result.results)
    assert result.total_bytes("already") > 3 * SIZE and result.total_bytes("moved") == 0
    assert move_processes([], 0).processes == ()


def test_who_has_ended_does_not_stop_the_others(three: list[int], dead: int) -> None:
    result = move_processes([three[0], dead, Process(three[1], "old", started=1), three[2]], 0)
    assert not result.complete
    first, gone, reused, last = result.processes
    assert first.complete and last.complete
    for moved in (gone, reused):
        assert moved.result is None and not moved.untouched
        assert isinstance(moved.error, ProcessGoneError) and moved.error.errno == errno.ESRCH
    value = json.loads(json.dumps(result.as_dict()))
    assert value["complete"] is False and value["total"]["errors"] == 2
    assert value["total"]["processes"] == 4 and value["total"]["complete"] == 2
    assert value["processes"][1]["error"]["errno"] == "ESRCH"
    assert value["processes"][1]["result"] is None


def test_what_makes_no_sense_for_any_is_raised(three: list[int]) -> None:
    with pytest.raises(NodeError):
        move_processes(three, 99)
    with pytest.raises(NodeError):
        move_processes(three, 0, source=99)
    with pytest.raises(ValueError, match="threads"):
        move_processes(three, 0, threads=0)
    with pytest.raises(TypeError, match="unexpected keyword"):
        move_processes(three, 0, frob=1)


@pytest.fixture
def polled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches, with a poll after each of them."""
    monkeypatch.setattr(plan, "FIRST_BATCH_BYTES", 16 << 10)
    monkeypatch.setattr(plan, "CALL_MS", 0)
    monkeypatch.setattr(engine, "_POLL_US", 1)


@pytest.mark.usefixtures("polled")
def test_an_end_leaves_the_rest_untouched(three: list[int]) -> None:
    cancel = threading.Event()
    seen = []

    def end(process: Process, now: Any) -> None:
        seen.append(process.pid)
        if process.pid == three[1]:
            cancel.set()

    result = move_processes(three, 0, threads=1, progress=end, cancel=cancel)
    assert result.cancelled and not result.complete
    assert pids(result.untouched) == [three[2]] and three[2] not in seen
    assert result.processes[0].complete
    assert result.results[1].cancelled and result.results[1].bytes_skipped > 0

    def interrupt(process: Process, now: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(MovesInterrupted) as caught:
        move_processes(three, 0, threads=1, progress=interrupt)
    assert caught.value.result.cancelled and pids(caught.value.result.untouched) == three[1:]


# --- the command


def test_command(three: list[int], dead: int, mount: Path) -> None:
    done = inside("move", "--to", 0, *three)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["pid", "name", "moved"]
    assert [line.split()[0] for line in lines[1:4]] == [str(pid) for pid in three]
    assert lines[-1].startswith("Moved 0 B to node 0 in ")
    assert lines[-1].endswith("all of 3 of 3 processes")
    done = inside("move", "--name", f"{PREFIX}-*", "--to", 0, "--json")
    value = json.loads(done.stdout)
    assert done.returncode == 0 and value["complete"] is True
    assert [p["pid"] for p in value["processes"]] == sorted(three)
    assert all(p["result"]["bytes_already"] > SIZE for p in value["processes"])
    done = inside("move", dead, three[0], "--to", 0)
    assert done.returncode == 1 and f"process {dead} does not exist" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("all of 1 of 2 processes")
    value = json.loads(inside("move", "--unit", "x@1", "--to", 0, "--json").stdout)
    assert [p["pid"] for p in value["processes"]] == [three[2]]


def test_dry_run(three: list[int], dead: int, mount: Path) -> None:
    for words in (["plan"], ["move", "--dry-run"]):
        done = inside(*words, "--cgroup", "/system.slice", "--to", 0)
        assert (done.returncode, done.stderr) == (0, "")
        assert "Would move 0 B of 3 processes to node 0; " in done.stdout
        done = inside(*words, "--to", 0, "--json", *three[:2], dead)
        value = json.loads(done.stdout)
        assert done.returncode == 1 and value["dry_run"] is True
        assert value["bytes_already"] > 2 * SIZE and value["bytes_to_move"] == 0
        assert [p["error"] is None for p in value["processes"]] == [True, True, False]
        assert value["processes"][0]["plan"]["engine"] == "kernel"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no process is named"),
        (["1", "2", "--range", "0x1000+4K"], "--range is for one process"),
        (["--name", "x", "--range", "0x1000+4K"], "--range is for one process"),
        (["--name", ""], "pattern is empty"),
        (["--unit", "a/b"], "no name of a unit"),
        (["--cgroup", ""], "no path of a cgroup"),
        (["1", "0"], "no process id"),
    ],
)
@pytest.mark.parametrize("verb", ["move", "plan"])
def test_usage(verb: str, arguments: list[str], words: str) -> None:
    done = inside(verb, "--to", 0, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_nobody_is_found() -> None:
    for option in (["--name", f"{PREFIX}-none"], ["--unit", "pf-none"], ["--cgroup", "/pf/none"]):
        done = inside("move", "--to", 0, *option)
        assert (done.returncode, done.stdout) == (1, "") and "ESRCH" in done.stderr


def test_who_may_not_be_moved_does_not_stop_the_others(three: list[int]) -> None:
    def unprivileged() -> str:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        own = subprocess.Popen(["sleep", "600"])
        done = inside("move", three[0], own.pid, "--to", 0, "--json")
        own.kill()
        own.wait()
        first, second = json.loads(done.stdout)["processes"]
        return f"{done.returncode} {first['error']['errno']} {second['error']}"

    if os.getuid():
        pytest.skip("only root can become somebody else")
    inside("--version")  # imports what that user may not read
    assert in_a_child(unprivileged) in ("1 EACCES None", "1 EPERM None")

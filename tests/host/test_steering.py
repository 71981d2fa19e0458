# SPDX-License-Identifier: Apache-2.0
"""Moves in progress seen and steered by another process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from child import in_a_child
from test_cli import inside

from pageferry import MoveControl, PageferryError, ProcessGoneError, Progress, steering
from pageferry.steering import Steerable, _address, moves, steer
from pageferry.top.watch import Watch

# The third glance at the move waits for a signal; the others are told what it is by then.
CODE = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
from pageferry import cli, engine, plan, progress_bar
engine._POLL_US, plan.FIRST_BATCH_BYTES, plan.CALL_MS = 1, 16 << 10, 0
show, calls = progress_bar.MoveBar.show, 0
def shown(self, now):
    global calls
    show(self, now)
    calls += 1
    if calls == 3:
        print("waiting", flush=True)
        signal.sigwait({signal.SIGUSR1})
progress_bar.MoveBar.show = shown
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is asked may have to wait for a CPU."""
    monkeypatch.setattr(steering, "_PATIENCE_S", 300.0)


def test_what_is_asked_for_is_done() -> None:
    control = MoveControl(max_gbps=2)
    with Steerable(control, 1, [4711]) as mine:
        pid = os.getpid()
        assert steer(pid) == {
            "pid": pid, "node": 1, "moving": [4711], "max_gbps": 2, "paused": False,
        }  # fmt: skip
        mine.note(Progress(50, 40, 10, 100, 2.0))
        answer = steer(pid, max_gbps=0.5, paused=True)
        assert control.paused and control.max_gbps == 0.5
        assert (answer["bytes_done"], answer["seconds_left"], answer["paused"]) == (50, 2.0, True)
        steer(pid, max_gbps=None, paused=False)
        assert not control.paused and control.max_gbps is None
        assert steer(pid) in moves()
    assert not [each for each in moves() if each["pid"] == pid]
    with pytest.raises(ProcessGoneError, match="makes no move that can be steered"):
        steer(pid)


def test_bad_requests_change_nothing() -> None:
    control = MoveControl(max_gbps=2)
    with Steerable(control, 1, [1]):
        for request in ({"max_gbps": 0}, {"max_gbps": "1"}, {"threads": 2}):
            with pytest.raises(PageferryError, match="EINVAL"):
                steer(os.getpid(), **request)
        for line in (b"[]\n", b"{\n", b"[" * 5000 + b"\n", b"", b"\xff\n", b"x" * 100_000):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
                other.connect(_address(os.getpid()))
                other.sendall(line)
                other.shutdown(socket.SHUT_WR)
                answer = other.recv(1 << 16)
                assert b'"error": "EINVAL"' in answer or not answer
        assert steer(os.getpid())["max_gbps"] == 2


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_is_refused() -> None:
    control = MoveControl()

    def nobody() -> str:
        os.setgid(65534)
        os.setuid(65534)
        assert not moves()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:  # without our own check
            other.connect(_address(os.getppid()))
            other.sendall(b'{"paused": true}\n')
            return other.recv(1 << 16).decode()

    with Steerable(control, 0, [1]):
        assert json.loads(in_a_child(nobody))["error"] == "EPERM"
        assert not control.paused

    # And nobody can stand in for a move: who listens is looked at.
    with (
        subprocess.Popen(["sleep", "600"]) as process,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as false,
    ):
        false.bind(_address(process.pid))
        false.listen()
        with pytest.raises(PageferryError, match="is another user's"):
            steer(process.pid)
        process.kill()


def test_one_name_in_two_moves_of_a_process() -> None:
    first, second = MoveControl(), MoveControl()
    with Steerable(first, 0, [1]), Steerable(second, 1, [2]):
        assert steer(os.getpid())["node"] == 0  # the second goes on without
    with Steerable(second, 1, [2]):
        assert steer(os.getpid())["node"] == 1


@pytest.mark.parametrize("several", [False, True])
def test_command(several: bool) -> None:
    target = subprocess.Popen(
        [sys.executable, "-c", "b = bytearray(1 << 24); print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert target.stdout is not None
    target.stdout.readline()
    pids = [str(target.pid)] * (2 if several else 1)
    mover = subprocess.Popen(
        [sys.executable, "-c", CODE, "move", *pids, "--to", "0", "--threads", "1", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert mover.stdout is not None and mover.stdout.readline() == "waiting\n"
    # By the process that moves, or by the one that is moved.
    words = ["--max-gbps", 0.5, "--pause", "--json"]
    (answer,) = json.loads(inside("steer", mover.pid, *words).stdout)["moves"]
    assert answer["pid"] == mover.pid and target.pid in answer["moving"] and answer["node"] == 0
    assert answer["max_gbps"] == 0.5 and answer["paused"] and answer["bytes_total"] > 1 << 24
    done = inside("steer")
    assert str(mover.pid) in done.stdout and "0.5 GB/s" in done.stdout and "paused" in done.stdout
    (line,) = [each for each in Watch().look(0.1).moves if each["pid"] == mover.pid]
    assert line["paused"]
    mover.send_signal(signal.SIGUSR1)
    done = inside("steer", target.pid, "--no-limit", "--resume")
    assert done.returncode == 0 and "paused" not in done.stdout, done
    result = json.loads(mover.communicate(timeout=300)[0])
    assert mover.returncode == 0
    assert several or result["seconds_paused"] > 0
    target.communicate(b"\n")
    assert inside("steer", mover.pid).returncode == 1


def test_usage() -> None:
    for words, text in (
        (["--pause"], "give its process id"),
        ([1, "--max-gbps", 0], "no number above 0"),
        ([1, "--max-gbps", 1, "--no-limit"], "not allowed with"),
        ([1, "--pause", "--resume"], "not allowed with"),
    ):
        done = inside("steer", *words)
        assert done.returncode == 2 and text in done.stderr
    assert Path("/proc/net/unix").exists() and isinstance(
        json.loads(inside("steer", "--json").stdout)["moves"], list
    )

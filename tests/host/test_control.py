# SPDX-License-Identifier: Apache-2.0
"""Long moves: pause and resume, a limit that changes, Ctrl-Z, and the bar.

A limit is felt by pages that move only, so what it does is in tests/guest.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from regions import PAGE, Region
from terminal import Terminal

from pageferry import MoveControl, Progress, engine, find_processes, move, move_processes, plan
from pageferry.user_engine import why_not

SIZE = 16 << 20


@pytest.fixture(scope="module")
def memory() -> Region:
    region = Region(SIZE)
    region.write(0, SIZE)
    return region


@pytest.fixture
def polled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches, with a poll after each of them."""
    monkeypatch.setattr(plan, "FIRST_BATCH_BYTES", 16 << 10)
    monkeypatch.setattr(plan, "CALL_MS", 0)
    monkeypatch.setattr(engine, "_POLL_US", 1)


class Pausing:
    """Pauses at the first call; resumes when nothing has happened for some calls."""

    def __init__(self, control: MoveControl) -> None:
        self.control = control
        self.seen: list[int] = []
        self.during: Any = None

    def __call__(self, now: Progress) -> None:
        if not self.seen:
            self.control.pause()
        self.seen.append(now.bytes_done)
        if self.control.paused and len(self.seen) > 4 and len(set(self.seen[-4:])) == 1:
            if self.during is not None:
                self.during()
            self.control.resume()


@pytest.mark.usefixtures("polled")
@pytest.mark.parametrize("threads", [1, 2])
def test_pause_and_resume(memory: Region, threads: int) -> None:
    control = MoveControl()
    pausing = Pausing(control)
    result = move(memory.range(), 0, threads=threads, progress=pausing, control=control)
    assert len(pausing.seen) > 4 and not control.paused
    assert result.complete and result.bytes_already == SIZE
    assert 0 < result.seconds_paused <= control.seconds_paused
    assert result.seconds > 0 and result.as_dict()["seconds_paused"] == result.seconds_paused
    if threads == 1:
        assert pausing.seen[-1] > pausing.seen[4]  # there was something left to do


@pytest.mark.usefixtures("polled")
def test_others_may_move_meanwhile(memory: Region) -> None:
    results = []

    def other() -> None:
        thread = threading.Thread(target=lambda: results.append(move(np.ones(1 << 18), 0)))
        thread.start()
        thread.join(300)

    control = MoveControl()
    pausing = Pausing(control)
    pausing.during = other
    assert move(memory.range(), 0, threads=2, progress=pausing, control=control).complete
    assert len(results) == 1 and results[0].complete and results[0].seconds_paused == 0


@pytest.mark.skipif(why_not("checked") is not None, reason="no user engine here")
def test_the_user_engine_pauses_too(memory: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_POLL_US", 1)
    control = MoveControl(max_gbps=1000)
    pausing = Pausing(control)
    result = move(
        memory.range(), 0, threads=1, engine="user", progress=pausing, control=control, exact=True
    )
    assert result.complete and result.bytes_already == SIZE and result.bytes_skipped == 0
    assert result.seconds_paused > 0


@pytest.mark.usefixtures("polled")
@pytest.mark.parametrize("way", ["cancel", "timeout", "interrupt"])
def test_a_pause_can_be_ended_for_good(memory: Region, way: str) -> None:
    control = MoveControl()
    control.pause()  # before it begins
    cancel = threading.Event()
    calls = 0

    def end(now: Progress) -> None:
        nonlocal calls
        calls += 1
        assert now.bytes_done == 0
        if calls == 3 and way == "cancel":
            cancel.set()
        if calls == 3 and way == "interrupt":
            raise InterruptedError

    options: dict[str, Any] = {"control": control, "progress": end, "cancel": cancel}
    if way == "interrupt":
        with pytest.raises(InterruptedError):
            move(memory.range(), 0, threads=2, **options)
    else:
        result = move(
            memory.range(), 0, threads=2, timeout=0.05 if way == "timeout" else None, **options
        )
        assert result.cancelled == (way == "cancel") and result.timed_out == (way == "timeout")
        assert result.bytes_skipped == SIZE
    control.resume()
    assert move(memory.range(), 0, control=control).complete


def test_the_limit_of_a_control() -> None:
    control = MoveControl(max_gbps=2)
    assert control.max_gbps == 2 and not control.paused and control.seconds_paused == 0
    for bad in (0, -1, float("nan"), "1", True):
        with pytest.raises(ValueError, match="max_gbps"):
            control.max_gbps = bad  # type: ignore[assignment]
        with pytest.raises(ValueError, match="max_gbps"):
            MoveControl(max_gbps=bad)  # type: ignore[arg-type]
    assert control.max_gbps == 2
    control.max_gbps = None
    assert control.max_gbps is None
    with pytest.raises(ValueError, match="the limit is the control's"):
        move(np.ones(1), 0, control=control, max_gbps=1)


def test_a_control_tells_all_its_runs_at_once() -> None:
    told: list[tuple[bool, int]] = []

    class Run:
        def steer(self, paused: bool, max_rate: int) -> None:
            told.append((paused, max_rate))

    control, run = MoveControl(max_gbps=1), Run()
    control.attach(run)
    control.pause()
    control.pause()
    control.max_gbps = 0.5
    control.resume()
    control.detach(run)
    control.resume()
    rate = 10**9
    assert told == [
        (False, rate),
        (True, rate),
        (True, rate),
        (True, rate // 2),
        (False, rate // 2),
    ]


@pytest.mark.usefixtures("polled")
def test_progress_tells_pages_by_result(memory: Region) -> None:
    seen: list[Progress] = []
    move(memory.range(), 0, threads=1, progress=seen.append)
    assert seen[-1].pages_already == SIZE // PAGE
    assert seen[-1].pages_moved == seen[-1].pages_failed == 0


# --- on a terminal

COMMON = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
from pageferry import engine, plan, progress_bar
engine._POLL_US, plan.FIRST_BATCH_BYTES, plan.CALL_MS = 1, 16 << 10, 0
progress_bar._PATIENCE_S = 0
show, calls = progress_bar.MoveBar.show, 0
def shown(self, now):
    global calls
    show(self, now)
    calls += 1
    HERE
progress_bar.MoveBar.show = shown
"""


def stopped(terminal: Terminal) -> bool:
    """Whether it has been stopped by SIGSTOP."""
    terminal._read(0.2)
    state = Path(f"/proc/{terminal.pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "T"


@pytest.mark.parametrize("several", [False, True])
def test_ctrl_z(several: bool) -> None:
    code = COMMON.replace("HERE", "if calls == 3: os.kill(os.getpid(), signal.SIGTSTP)") + (
        "from pageferry import cli\nsys.exit(cli.main(sys.argv[1:]))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", "b = bytearray(1 << 24); print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    pids = [str(child.pid)] * (2 if several else 1)
    with Terminal([sys.executable, "-c", code, "move", *pids, "--to", "0", "--threads", "1"]) as it:
        it.until(lambda: stopped(it), "the stop")
        while it._read(0.0):  # what it wrote before
            pass
        assert "100%" not in it.screen and "to node 0" not in it.screen  # taken off
        assert b"to node 0" in it.raw and not it.cursor_hidden
        it.kill(signal.SIGCONT)
        assert it.ended() == 0
        assert "Moved 0 B to node 0" in it.screen and not it.cursor_hidden
    child.communicate(b"\n")


def test_a_bar_for_scripts() -> None:
    code = COMMON.replace("HERE", "if calls == 3: signal.sigwait({signal.SIGUSR1})") + (
        "import numpy, pageferry\n"
        "array = numpy.ones(1 << 21)\n"
        "pageferry.move(array, 0, threads=1, progress=True, engine='kernel')\n"
        "print('done')"
    )
    with Terminal([sys.executable, "-c", code]) as it:
        it.shows("to node 0")
        it.shows("pages: ")
        it.kill(signal.SIGUSR1)
        assert it.ended() == 0
        assert "done" in it.screen and "to node 0" not in it.screen and not it.cursor_hidden


def test_no_bar_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert move(np.ones(1 << 18), 0, progress=True).complete
    assert move_processes(find_processes([os.getpid()]), 0, progress=True).complete
    assert capfd.readouterr() == ("", "")

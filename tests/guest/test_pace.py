# SPDX-License-Identifier: Apache-2.0
"""At which pace pages move: limits are kept to, helpers that do not help go, others have the CPUs.

Run by: pageferry lab run --topology two-node --memory 1536M --cpus 2
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from placement import Memory, become_nobody, in_a_child

from pageferry import MigrateMode, MoveControl, Progress, move
from pageferry._native import lib
from pageferry.bench.load import quick, run_load
from pageferry.bench.stall import run_stall
from pageferry.engine import KernelRun
from pageferry.plan import Plan

MB = 1 << 20


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["base", "thp"])
def test_a_rate_is_kept_to(kind: str, threads: int) -> None:
    memory = Memory(kind, 8 * MB, node=0)
    result = move(memory.words, 1, threads=threads, max_gbps=0.04)
    assert result.complete and result.bytes_moved == memory.bytes
    assert result.gbps <= 0.04
    assert result.calls >= 4  # in pieces, not in one with a long pause after it
    assert memory.nodes() == {1: memory.bytes}
    memory.check()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_limited_move_ends_when_it_is_cancelled(threads: int) -> None:
    """It would take hours else, most of it asleep."""
    memory = Memory("base", 16 * MB, node=0)
    cancel = threading.Event()

    def after_the_first(now: Progress) -> None:
        if now.bytes_moved:
            cancel.set()

    result = move(
        memory.words, 1, threads=threads, max_gbps=1e-6, progress=after_the_first, cancel=cancel
    )
    assert result.cancelled and 0 < result.bytes_moved < memory.bytes
    assert result.bytes_moved + result.bytes_skipped == memory.bytes
    memory.check()


@pytest.mark.parametrize("engine", ["kernel", "user"])
def test_a_limit_that_changes_and_a_pause(engine: str) -> None:
    """At the first limit it would take hours; while it is paused nothing moves."""
    memory = Memory("base", 16 * MB, node=0)
    control = MoveControl(max_gbps=1e-4)
    seen: list[int] = []

    def steer(now: Progress) -> None:
        if now.bytes_moved and control.max_gbps is not None:
            control.pause()
            control.max_gbps = None
        if control.paused:
            seen.append(now.bytes_moved)
            if len(seen) > 3 and len(set(seen[-3:])) == 1:
                control.resume()

    result = move(memory.words, 1, threads=2, engine=engine, progress=steer, control=control)
    assert result.complete and result.bytes_moved == memory.bytes
    assert 0 < seen[-1] < memory.bytes and result.seconds_paused > 0
    assert memory.nodes() == {1: memory.bytes}
    memory.check()


def test_shorter_calls() -> None:
    memory = Memory("base", 32 * MB, node=0)
    usual = move(memory.words, 1, threads=1)
    short = move(memory.words, 0, threads=1, stall_ms=1)
    assert usual.complete and short.complete
    assert short.calls > 8 and short.calls > usual.calls
    memory.check()


@pytest.fixture
def alone_was_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the caller alone had been quicker than any machine, which cannot be had on demand."""
    follow = KernelRun.follow

    def follow_and_pretend(self: KernelRun, plan: Plan, **options: Any) -> None:
        follow(self, plan, **options)
        self._c.batch_bytes = 1 * MB
        self._c.batch_us = 0
        self._c.pace.alone_rate = 10**15

    monkeypatch.setattr(KernelRun, "follow", follow_and_pretend)


@pytest.mark.parametrize("kind", ["base", "thp"])
def test_helpers_that_do_not_help_are_sent_away(kind: str, alone_was_quicker: None) -> None:
    memory = Memory(kind, 128 * MB, node=0)
    result = move(memory.words, 1, exact=True)
    assert result.plan.threads == 2 and result.complete
    assert memory.nodes() == {1: memory.bytes}
    memory.check()
    if result.helpers_left:
        return  # the CPUs were so busy that the helper was gone before it could be judged
    assert result.fell_back is not None and "2 threads together moved" in result.fell_back
    assert 0 < result.together_gbps < 10**6
    assert result.as_dict()["fell_back"] == result.fell_back


@pytest.mark.parametrize(
    "options",
    [{"threads": 2}, {"mode": MigrateMode.SYNC | MigrateMode.MT}, {"max_gbps": 1000.0}],
    ids=str,
)
def test_who_insists_on_threads_gets_them(options: dict[str, Any], alone_was_quicker: None) -> None:
    memory = Memory("base", 64 * MB, node=0)
    result = move(memory.words, 1, **options)
    assert result.complete and result.fell_back is None and result.plan.threads == 2
    memory.check()


def test_rates_are_measured() -> None:
    memory = Memory("base", 128 * MB, node=0)
    result = move(memory.words, 1, engine="kernel")
    assert result.complete and result.alone_gbps > 0
    if result.workers == 2 and not result.helpers_left:
        assert result.together_gbps > 0
    memory.check()


def test_a_busy_machine() -> None:
    """All CPUs are taken by others: everything moves, whoever does it."""
    children = []
    for cpu in os.sched_getaffinity(0):
        pid = os.fork()
        if pid == 0:
            os.sched_setaffinity(0, {cpu})
            while os.getppid() != 1:
                pass
            os._exit(0)
        children.append(pid)
    try:
        for kind in ("base", "thp"):
            memory = Memory(kind, 16 * MB, node=0)
            for threads in ("auto", 2, 1):
                for node in (1, 0):
                    result = move(memory.words, node, threads=threads)
                    assert result.complete and memory.nodes() == {node: memory.bytes}
            memory.check()
    finally:
        for pid in children:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def test_the_load_experiment() -> None:
    figures = run_load(**quick())
    assert [(cell["load"], cell["busy"]) for cell in figures["cells"]] == [("idle", 0), ("all", 2)]
    assert figures["ways"] == ["1", "2", "auto"] and figures["left_out"] == []
    for cell in figures["cells"]:
        assert all(way["seconds"]["low"] > 0 for way in cell["ways"].values())
        assert (cell["ways"]["2"]["others"] is None) == (cell["busy"] == 0)
    assert {each["name"] for each in figures["targets"]} == {
        "auto_best",
        "auto_one",
        "many_one",
        "others",
        "others_auto",
    }
    user = run_load(engine="user", **quick())
    assert user["engine"] == "user" and len(user["cells"]) == 2


def test_who_may_not_lift_threads_has_them_at_normal_priority() -> None:
    def moves() -> object:
        memory = Memory("base", 8 * MB, node=0)
        yields = [lib.pf_crew_yields()]
        move(memory.words, 1, threads=2)
        become_nobody()
        yields.append(lib.pf_crew_yields())
        result = move(memory.words, 0, threads=2)
        memory.check()
        return yields, result.complete, memory.nodes() == {0: memory.bytes}

    assert in_a_child(moves) == repr(([1, 0], True, True))


def test_the_stall_experiment() -> None:
    figures = run_stall(size=4 * MB, bounds=(0.0, 5.0), repeats=1)
    rest, moved = figures["bounds"]
    assert rest["call_ms"] == 0 < moved["call_ms"]
    assert rest["pause_ms"]["high"] > 0 and moved["pause_ms"]["high"] > 0


def test_the_time_of_helpers_is_charged_to_the_cgroup() -> None:
    """They are the process's threads: who limits its cgroup limits them."""
    cgroup = Path("/sys/fs/cgroup/pageferry-pace")
    cgroup.mkdir(exist_ok=True)

    def charged() -> float:
        fields = dict(line.split() for line in (cgroup / "cpu.stat").read_text().splitlines())
        return int(fields["usage_usec"]) / 1e6

    def of_helpers() -> float:
        taken = 0.0
        for task in Path("/proc/self/task").iterdir():
            if (task / "comm").read_text().startswith("pageferry/"):
                taken += int((task / "schedstat").read_text().split()[0]) / 1e9
        return taken

    def moves() -> object:
        memory = Memory("base", 32 * MB, node=0)
        move(memory.words, 1, threads=2)
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
        before, own, theirs = charged(), time.thread_time(), of_helpers()
        for node in (0, 1) * 20:
            move(memory.words, node, threads=2)
            if of_helpers() - theirs > 0.02:
                break
        own, theirs = time.thread_time() - own, of_helpers() - theirs
        assert charged() - before >= 0.9 * (own + theirs), (charged(), before, own, theirs)
        return theirs > 0.02

    assert in_a_child(moves) == "True"
    cgroup.rmdir()

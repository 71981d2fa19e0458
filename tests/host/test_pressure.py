# SPDX-License-Identifier: Apache-2.0
"""The kernel's pressure figures: what is read, what damage does, what plans make of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_plan import CHEAP, sockets

from pageferry import MigrateMode, pressure
from pageferry.plan import make_plan
from pageferry.pressure import Pressure
from pageferry.topology import topology

CPU = """some avg10=61.50 avg60=70.53 avg300=56.30 total=754007656
full avg10=0.00 avg60=0.00 avg300=0.00 total=0
"""
MEMORY = """some avg10=9.00 avg60=0.00 avg300=0.00 total=1
full avg10=7.25 avg60=0.00 avg300=0.00 total=1
"""


def write(root: Path, cpu: str | bytes, memory: str | bytes) -> Path:
    for name, text in (("cpu", cpu), ("memory", memory)):
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def test_what_is_read(tmp_path: Path) -> None:
    assert pressure.read(write(tmp_path, CPU, MEMORY)) == Pressure(61.5, 7.25)


def test_this_machine() -> None:
    now = pressure.read()
    for value in (now.cpu_some, now.memory_full):
        assert value is None or 0 <= value <= 100
    assert pressure.recent() is pressure.recent()


def test_a_kernel_that_says_nothing(tmp_path: Path) -> None:
    assert pressure.read(tmp_path / "none") == Pressure(None, None)
    (tmp_path / "cpu").mkdir()
    assert pressure.read(tmp_path) == Pressure(None, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "some",
        "some avg10=",
        "some avg10=nan",
        "some avg10=-1",
        "some avg10=101 avg60=1",
        "some avg10=1e999",
        "some avg60=1.00",
        "some avg10",
        "other avg10=5.00",
        b"\xff\xfe",
        "\0" * 5000,
    ],
    ids=repr,
)
def test_damage_is_no_figure(tmp_path: Path, text: str | bytes) -> None:
    assert pressure.read(write(tmp_path, text, text)) == Pressure(None, None)


@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    found = pressure.read(write(tmp_path_factory.mktemp("pressure"), text, text))
    assert found.cpu_some is None or 0 <= found.cpu_some <= 100


@pytest.mark.parametrize(
    ("some", "count", "fewer"),
    [
        (None, 8, 8),
        (0.0, 8, 8),
        (49.9, 8, 8),
        (50.0, 8, 4),
        (50.0, 3, 1),
        (79.9, 2, 1),
        (80.0, 8, 1),
        (100.0, 64, 1),
        (100.0, 1, 1),
    ],
)
def test_threads(some: float | None, count: int, fewer: int) -> None:
    number, reason = Pressure(cpu_some=some).threads(count)
    assert number == fewer
    assert bool(reason) == (fewer < count)


def test_a_plan_on_a_busy_machine() -> None:
    machine = topology()
    pages = {4096: 1 << 20}
    calm = make_plan(machine, 0, pages)
    busy = make_plan(machine, 0, pages, pressure=Pressure(cpu_some=97.0))
    if calm.threads > 1:
        assert busy.threads == 1 and any("97 %" in reason for reason in busy.reasons)
    # Who asks for threads has his reasons.
    for asked in ({"threads": 2}, {"mode": MigrateMode.SYNC | MigrateMode.MT}):
        calm = make_plan(machine, 0, pages, **asked)  # type: ignore[arg-type]
        busy = make_plan(
            machine,
            0,
            pages,
            pressure=Pressure(cpu_some=97.0),
            **asked,  # type: ignore[arg-type]
        )
        assert busy == calm


def test_short_memory_is_said() -> None:
    assert "memory is short: in 7 %" in Pressure(memory_full=7.25).warning
    assert Pressure(memory_full=0.5).warning == Pressure().warning == ""
    plan = make_plan(topology(), 0, {4096: 512}, pressure=Pressure(memory_full=20.0))
    assert any("memory is short" in reason for reason in plan.reasons)


def test_who_runs_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # what keeps other tests calm
    assert 0 <= pressure.others_running() < 1 << 22
    for text, others in (
        ("0.10 0.20 0.30 3/123 456\n", 2),
        ("0.10 0.20 0.30 1/123 456\n", 0),
        ("0.10 0.20 0.30 0/123 456\n", 0),
        ("0.10 0.20 0.30", 0),
        ("a b c d/e f", 0),
    ):
        (tmp_path / "loadavg").write_text(text)
        monkeypatch.setattr(pressure, "_LOADAVG", tmp_path / "loadavg")
        assert pressure.others_running() == others
    monkeypatch.setattr(pressure, "_LOADAVG", tmp_path / "none")
    assert pressure.others_running() == 0
    assert pressure.now().cpus == os.cpu_count()


@pytest.mark.parametrize(
    ("others", "cpus", "count", "fewer"),
    [(0, 8, 8, 8), (1, 8, 8, 7), (4, 8, 3, 3), (8, 8, 8, 1), (50, 8, 8, 1), (1, 2, 2, 1)],
)
def test_as_many_threads_as_idle_cpus(others: int, cpus: int, count: int, fewer: int) -> None:
    number, reason = Pressure(others=others, cpus=cpus).threads(count)
    assert number == fewer and bool(reason) == (fewer < count)


def test_a_partly_busy_machine_leaves_the_cpus_to_the_scheduler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4096)))
    pages = {4096: 1 << 20}
    calm = make_plan(sockets(), 0, pages, calibration=CHEAP)
    assert calm.threads > 2 and calm.cpus
    now = Pressure(others=1, cpus=calm.threads)
    busy = make_plan(sockets(), 0, pages, calibration=CHEAP, pressure=now)
    assert busy.threads == calm.threads - 1 and not busy.cpus

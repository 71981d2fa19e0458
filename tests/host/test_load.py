# SPDX-License-Identifier: Apache-2.0
"""The load experiment: its arithmetic, table and plot; other work that can be measured."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pageferry import cli
from pageferry.bench.load import TARGETS, Sample, interval, quick, run_load, summary, targets
from pageferry.bench.load_report import plot, print_table
from pageferry.bench.machine import machine_facts
from pageferry.bench.spinners import Spinners
from pageferry.bench.stall import Writer, _row
from pageferry.commands.bench.stall import print_table as print_stalls
from pageferry.errors import NodeError
from pageferry.topology import topology
from pageferry.user_engine import why_not

SECONDS = {"1": [4.0, 4.4, 3.6], "2": [2.0, 2.2, 3.8], "auto": [2.0, 2.0, 3.8]}
OTHERS = {"1": [90.0, 80.0, 100.0], "2": [81.0, 80.0, 80.0], "auto": [90.0, 90.0, 90.0]}
TAKEN = {
    name: [Sample(s, 1.5 * s, o) for s, o in zip(SECONDS[name], OTHERS[name], strict=True)]
    for name in SECONDS
}
ALONE = [0.0] * 3
REST = [100.0] * 3


def figures() -> dict[str, Any]:
    cells = [
        {"load": "idle", "busy": 0, "bytes": 2 << 20, **summary(TAKEN, ALONE)},
        {"load": "all", "busy": 2, "bytes": 2 << 20, **summary(TAKEN, REST)},
        {"load": "all", "busy": 2, "bytes": 1 << 30, **summary(TAKEN, REST)},
    ]
    return {
        "experiment": "load",
        "machine": {
            "pageferry": "0", "kernel": "6.12", "machine": "x86_64", "cpu": "test", "cpus": 2,
            "memory_nodes": [0, 1], "guest": True, "emulated": True, "numa_balancing": False,
            "host_cpus": 2, "host_other_load": 1.5,
        },
        "engine": "kernel",
        "nodes": [0, 1],
        "repeats": 3,
        "page_size": 4096,
        "ways": list(TAKEN),
        "left_out": [1 << 40],
        "cells": cells,
        "targets": targets(cells),
    }  # fmt: skip


def test_summary_takes_ratios_inside_a_repeat() -> None:
    cell = summary(TAKEN, REST)
    assert cell["best"] == "2"
    assert cell["ways"]["1"]["seconds"] == {"median": 4.0, "low": 3.6, "high": 4.4}
    assert cell["ratios"]["auto_best"]["median"] == pytest.approx(1.0)
    assert cell["ratios"]["auto_one"]["high"] == pytest.approx(2.2)
    assert cell["ratios"]["many_one"]["low"] == pytest.approx(3.6 / 3.8)
    assert cell["ways"]["1"]["others"]["median"] == pytest.approx(0.9)
    assert cell["ways"]["2"]["cpu_seconds"]["high"] == pytest.approx(5.7)


def test_others_are_compared_in_windows_of_one_length() -> None:
    """By two threads a move takes 2 s of 4 s, so that 81 a second and then 100 meet 90."""
    ratio = summary(TAKEN, REST)["ratios"]["others"]
    assert ratio["median"] == pytest.approx((2 * 81 + 2 * 100) / (4 * 90))
    assert ratio["low"] == pytest.approx(3.8 * 80 / (3.6 * 100 + 0.2 * 100))
    assert summary({"1": TAKEN["1"], "auto": TAKEN["1"]}, REST)["ratios"]["others"]["low"] == 1


def test_an_idle_machine_has_no_others() -> None:
    cell = summary(TAKEN, ALONE)
    assert cell["ratios"]["others"] is None and cell["ways"]["2"]["others"] is None


def test_targets_name_the_worst_cell_and_what_misses() -> None:
    found = {each["name"]: each for each in figures()["targets"]}
    assert set(found) == set(TARGETS)
    assert found["auto_best"]["cells"] == 3 and found["auto_best"]["missed"] == []
    assert found["many_one"]["worst"] == pytest.approx(2.0) and not found["many_one"]["missed"]
    assert found["others"]["cells"] == 2
    assert found["others"]["worst_at"] == {"load": "all", "bytes": 2 << 20}


def test_interval_of_a_median() -> None:
    """Of nine samples the lowest and the highest may go, 20 of 512 chances; not of seven."""
    assert interval([3.0, 1.0, 2.0]) == (1, 3)
    assert interval([float(n) for n in range(7)]) == (0, 6)
    assert interval([float(n) for n in range(9, 0, -1)]) == (2, 8)
    assert interval([float(n) for n in range(1, 22)]) == (7, 15)
    assert interval([1.0]) == (1, 1)


def test_what_is_missed_beyond_doubt() -> None:
    slow = [Sample(1.2 * s.seconds, s.cpu_seconds, s.others) for s in TAKEN["1"]]
    cell = {"load": "idle", "busy": 0, "bytes": 4096}
    cell |= summary({"1": TAKEN["1"], "2": TAKEN["1"], "auto": slow}, ALONE)
    found = {each["name"]: each for each in targets([cell])}
    assert found["auto_one"]["beyond_doubt"] == [{"load": "idle", "bytes": 4096}]
    slow[0] = Sample(3.9, 0, 0)
    cell |= summary({"1": TAKEN["1"], "2": TAKEN["1"], "auto": slow}, ALONE)
    found = {each["name"]: each for each in targets([cell])}
    assert found["auto_one"]["missed"] and not found["auto_one"]["beyond_doubt"]


def test_table() -> None:
    stream = io.StringIO()
    print_table(figures(), Console(file=stream, width=220, soft_wrap=True))
    text = stream.getvalue()
    assert "All CPUs busy (2 busy processes)" in text
    assert "4e+03 (3.6e+03–4.4e+03)" in text
    assert "The host was busy" in text and "Left out, for want of memory" in text
    assert "others beside all threads against beside one: at least 0.95 in 2 of 2 cells, " in text
    assert "81% (80%–81%)" not in text and "80% (80%–81%)" in text


def test_others_that_never_ran_are_left_out(tmp_path: Path) -> None:
    """What emulates a machine may have had no CPU for them."""
    found = figures()
    found["cells"][1] |= summary(TAKEN, [100.0, 0.0, 100.0])
    stream = io.StringIO()
    print_table(found, Console(file=stream, width=220, soft_wrap=True))
    assert stream.getvalue().count("80% (80%–81%)") == 1
    plot(found, tmp_path / "load.svg")


def test_plot_and_earlier_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot(figures(), tmp_path / "load.svg")
    drawn = (tmp_path / "load.svg").read_text()
    assert "All CPUs busy" in drawn and "no others" in drawn
    (tmp_path / "load.json").write_text(json.dumps(figures()))
    assert cli.main(["bench", "load", "--from-json", str(tmp_path / "load.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["experiment"] == "load"


@pytest.mark.parametrize(
    "options",
    [
        ["--loads", "half,none"],
        ["--sizes", "0"],
        ["--sizes", ""],
        ["--repeats", "0"],
        ["--seconds", "-1"],
        ["--engine", "auto"],
        ["--page-size", "1G"],
    ],
)
def test_bad_arguments(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "load", *options])
    assert caught.value.code == 2 and options[0] in capsys.readouterr().err


@pytest.mark.skipif(len(topology().target_nodes) > 1, reason="this machine has two nodes")
def test_one_node_is_not_enough() -> None:
    with pytest.raises(NodeError, match="two nodes"):
        run_load()


@pytest.mark.skipif(why_not("checked") is not None, reason="no user engine here")
def test_one_node_is_enough_for_the_user_engine() -> None:
    how = {**quick(), "sizes": (64 << 10, (1 << 20) - 5), "loads": ("idle",), "repeats": 1}
    figures = run_load(engine="user", **how)
    assert [cell["bytes"] for cell in figures["cells"]] == [64 << 10, 1 << 20]
    assert all(cell["ways"]["2"]["seconds"]["low"] > 0 for cell in figures["cells"])
    stream = io.StringIO()
    print_table(figures, Console(file=stream, width=220, soft_wrap=True))
    assert "by the user engine, " in stream.getvalue()


def test_spinners_count_and_end() -> None:
    with Spinners(2) as others:
        before = others.turns
        deadline = time.monotonic() + 300
        while others.turns == before and time.monotonic() < deadline:
            time.sleep(0.001)
        assert others.turns > before
        children = list(others._children)
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    with Spinners(0) as nobody:
        assert nobody.turns == 0


def runs(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # which, depends on when it goes
        return False


def test_spinners_end_with_whoever_began_them() -> None:
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        others = Spinners(1)
        os.write(writer, str(others._children[0]).encode())
        os._exit(0)
    os.waitpid(parent, 0)
    child = int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    deadline = time.monotonic() + 300
    while runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- the longest pause of a writer


def test_a_writer_notes_its_pauses() -> None:
    with Writer(1 << 20, 4096) as writer:
        first = writer.longest_ms()
        deadline = time.monotonic() + 300
        while not first and time.monotonic() < deadline:
            first = writer.longest_ms()
        assert first > 0
        child = writer.pid
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_stall_table() -> None:
    stream = io.StringIO()
    figures = {
        "machine": machine_facts(),
        "bytes": 1 << 20,
        "page_size": 4096,
        "repeats": 3,
        "bounds": [
            _row(0.0, [(1.0, 0.0, 0.0)] * 3),
            _row(20.0, [(4.0, 18.0, 0.5), (5.0, 19.0, 0.6), (9.0, 30.0, 0.7)]),
        ],
    }
    print_stalls(figures, Console(file=stream, width=200))
    text = stream.getvalue()
    assert "no move" in text and "5.0 (4.0–9.0)" in text and "600.0" in text


@pytest.mark.skipif(len(topology().target_nodes) > 1, reason="this machine has two nodes")
def test_one_node_has_no_stalls(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "stall", "--lab", "never"]) == 2
    assert "two nodes" in capsys.readouterr().err

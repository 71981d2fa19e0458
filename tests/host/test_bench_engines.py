# SPDX-License-Identifier: Apache-2.0
"""The engines' experiment: it runs, its bytes are whole, and its arithmetic, table and plot."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pageferry import cli, topology
from pageferry.bench import engines as experiment
from pageferry.bench.engines import COPY, FILL, KERNEL, TARGETS, name_of, run_engines
from pageferry.bench.engines_report import plot, print_table, winner
from pageferry.user_engine import why_not


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return run_engines(size=8 << 20, repeats=2, threads=2)


def test_every_way_is_there(figures: dict[str, Any]) -> None:
    assert figures["bytes"] == 8 << 20 and figures["threads"] == 2
    json.dumps(figures)
    for case in figures["cases"]:
        names = [way["name"] for way in case["ways"]]
        assert names[0] == COPY
        assert (KERNEL in names) == (len(topology().target_nodes) > 1)
        assert FILL not in names or case["page_size"] == "4K"
        for way in ("checked", "hold", "protect"):
            known = why_not(way) is None
            for pool in ("warm", "cold"):
                assert (name_of(way, pool) in names) == known
            assert (f"user engine, {way}" in case["left_out"]) != known
        for way in case["ways"]:
            assert len(way["samples"]) == 2
            assert 0 < way["gbps_low"] <= way["gbps"] <= way["gbps_high"]
            assert (way["stall_max_ms"] is not None) == way["name"].startswith("user engine")
            if way["name"].endswith("cold"):
                assert way["pooled"] == 0
            if way["stall_max_ms"] is not None:
                assert 0 < way["stall_p50_ms"] <= way["stall_p99_ms"] <= way["stall_max_ms"]


def test_a_damaged_byte_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaging(array: Any, target: Any, threads: int) -> Any:
        array.words[5] += 1
        return lambda: 1.0

    monkeypatch.setattr(experiment, "_copying", damaging)
    with pytest.raises(AssertionError, match="damaged"):
        run_engines(size=4 << 20, repeats=1, threads=1)


def test_targets_take_the_best_way_that_counts() -> None:
    samples = {
        COPY: [1.0, 1.0, 1.0],
        name_of("hold", "warm"): [2.0, 2.0, 2.0],
        name_of("protect", "warm"): [1.0, 1.25, 8.0],
        name_of("checked", "warm"): [1.0, 2.0, 1.0],
    }
    found = experiment._targets("4K", samples)
    assert [(t["way"], t["wanted"], t["reached"], t["met"]) for t in found] == [
        (name_of("protect", "warm"), 0.80, 0.8, True),
        (name_of("checked", "warm"), 0.60, 1.0, True),
    ]
    assert {page_size for page_size, *_ in TARGETS} == {"4K", "2M"}


def case(**gbps: float) -> dict[str, Any]:
    names = {"kernel": KERNEL, "copy": COPY, "user": name_of("hold", "warm")}
    return {
        "page_size": "4K",
        "ways": [{"name": names[name], "gbps": value} for name, value in gbps.items()],
    }


def test_the_winner_is_an_engine() -> None:
    assert "user engine, hold, warm, 3.00 GB/s, 2.00× the kernel engine" in winner(
        case(copy=9, user=3, kernel=1.5)
    )
    assert "kernel engine, 4.00 GB/s, 2.00× the user engine's best" in winner(
        case(copy=9, user=2, kernel=4)
    )
    assert "one node" in winner(case(copy=9, user=2))
    assert "no engine" in winner(case(copy=9))


def test_table_plot_and_earlier_figures(
    figures: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = io.StringIO()
    print_table(figures, Console(file=out, width=120))
    text = out.getvalue()
    assert COPY in text and "wanted" in text and "4K pages" in text
    plot(figures, tmp_path / "engines.png")
    assert (tmp_path / "engines.png").read_bytes().startswith(b"\x89PNG")
    path = tmp_path / "engines.json"
    path.write_text(json.dumps(figures))
    assert cli.main(["bench", "engines", "--from-json", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["experiment"] == "engines"
    assert cli.main(["bench", "engines", "--from-json", str(tmp_path / "none")]) == 1


def test_too_little_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "engines", "--mib", str(1 << 30)]) == 1
    assert "no room" in capsys.readouterr().err

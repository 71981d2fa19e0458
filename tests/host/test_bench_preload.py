# SPDX-License-Identifier: Apache-2.0
"""``pageferry bench preload``: its program, its table and its plot; the guest runs it whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pageferry import cli, topology
from pageferry.bench.machine import machine_facts
from pageferry.bench.preload import Program
from pageferry.preload import environment

SIZE = 4 << 20


def figures() -> dict[str, Any]:
    case = {
        "name": "move_pages", "bytes": 400 << 20, "page_size": 4096, "plain_ms": 1000.0,
        "preload_ms": 500.0, "ratio": 2.0, "ratio_low": 1.5, "ratio_high": 2.5,
        "plain_samples": [1000.0], "preload_samples": [500.0],
    }  # fmt: skip
    return {
        "experiment": "preload",
        "machine": machine_facts(),
        "nodes": [0, 1],
        "threads": 2,
        "repeats": 1,
        "cases": [case, case | {"name": "mbind", "page_size": 2 << 20}],
        "idle": {"threads": 1, "bytes": 40960},
        "passed_plain_us": 1.0,
        "passed_preload_us": 1.25,
        "passed_overhead_us": 0.25,
    }


@pytest.mark.parametrize("loaded", [False, True])
def test_the_program_calls_what_it_is_told(loaded: bool) -> None:
    node = topology().target_nodes[0]
    added = environment("always", threads=2) if loaded else {}
    with Program(SIZE, 4096, added) as program:
        assert program.tell("move_pages", node) > 0
        assert program.tell("mbind", node) > 0
        assert program.tell("passed", 10) > 0
        assert program.tell("check") == 0
        with pytest.raises(MemoryError, match="ended with"):
            program.tell("frob")


def test_table_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier, picture = tmp_path / "figures.json", tmp_path / "figures.png"
    earlier.write_text(json.dumps(figures()))
    arguments = ["bench", "preload", "--from-json", str(earlier), "--plot", str(picture)]
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    row = "400 MiB in 4 KiB pages, move_pages      1000.0 ms     500.0 ms   2.00× (1.50–2.50)"
    assert row in lines
    assert "400 MiB in 2 MiB pages, mbind" in "\n".join(lines)
    assert any("+0.25 µs" in line for line in lines)
    assert "A program that never moves: 1 thread, 40 KiB of the library in memory" in lines
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(len(topology().target_nodes) > 1, reason="two nodes are here")
def test_one_node_is_too_few(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "preload", "--lab", "never"]) == 2
    assert "two nodes" in capsys.readouterr().err

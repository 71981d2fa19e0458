# SPDX-License-Identifier: Apache-2.0
"""``bench matrix``: what it measures on one node, its tables, CSV and heat map."""

from __future__ import annotations

import csv
import errno
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pageferry import cli
from pageferry._native import ffi, lib
from pageferry.bench import matrix as module
from pageferry.bench.matrix import Matrix, run_matrix
from pageferry.bench.matrix_report import notes
from pageferry.topology import topology

SMALL = 2 << 20


def figures() -> dict[str, Any]:
    """Those of a machine with nodes 0 and 3, the latter without CPUs."""
    nodes = (0, 3)
    latency = Matrix("latency", "Latency", "ns", "CPU of node", "memory of node")
    copy = Matrix("copy", "Copy bandwidth", "GB/s", "from node", "to node")
    for value in (1.0, 3.0, 2.0):
        latency.add(0, 0, 90 + value)
        latency.add(0, 3, 200 + value)
        for source in nodes:
            for target in nodes:
                copy.add(source, target, value)
    return {
        "experiment": "matrix",
        "machine": {
            "pageferry": "0",
            "kernel": "6.12",
            "machine": "x86_64",
            "cpu": "test",
            "cpus": 2,
            "memory_nodes": [0, 3],
            "guest": True,
            "emulated": True,
            "numa_balancing": False,
        },
        "nodes": list(nodes),
        "repeats": 3,
        "bytes": SMALL,
        "threads": 2,
        "last_level_cache": SMALL * 2,
        "matrices": [latency.as_dict(nodes, threads=1), copy.as_dict(nodes, threads=2)],
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(figures()))
    return path


def test_a_chain_is_followed_to_where_it_leads() -> None:
    order = np.random.default_rng(1).permutation(1000).astype(np.uint64)
    chain = module._chain(topology().target_nodes[0], 64000, order)
    place = ffi.new("uint64_t *", chain.ctypes.data)
    seen = set()
    for _ in range(1000):
        assert lib.pf_chase(place, 1) >= 0
        seen.add(int(place[0]))
    assert seen == {chain.ctypes.data + 64 * line for line in range(1000)}
    assert int(place[0]) == chain.ctypes.data  # all of it, and back
    assert lib.pf_chase(place, 2500) > 0
    assert lib.pf_chase(ffi.new("uint64_t *", chain.ctypes.data + 4), 1) == -errno.EINVAL
    assert lib.pf_chase(ffi.new("uint64_t *"), 1) == -errno.EINVAL


def test_this_machine_is_measured() -> None:
    found = run_matrix(size=SMALL, repeats=2)
    by_name = {matrix["name"]: matrix for matrix in found["matrices"]}
    assert {"latency", "copy"} <= set(by_name)
    home = found["nodes"].index(topology().target_nodes[0])
    for name in ("latency", "copy"):
        cell = by_name[name]["cells"][home][home]
        assert 0 < cell["low"] <= cell["median"] <= cell["high"]
        assert len(cell["samples"]) == 2
    assert len(found["nodes"]) > 1 or set(by_name) == {"latency", "copy"}
    json.dumps(found)


def test_a_wrong_copy_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # No real copy goes wrong, so the check is shown two arrays that differ.
    monkeypatch.setattr(np, "array_equal", lambda *_: False)
    with pytest.raises(AssertionError, match="differs"):
        run_matrix(size=SMALL, repeats=1)


def test_full_nodes_are_refused() -> None:
    with pytest.raises(MemoryError, match="too little free memory"):
        run_matrix(size=1 << 50)
    assert cli.main(["bench", "matrix", "--lab", "never", "--size", "1T"]) == 1


def test_cells_without_samples_are_null() -> None:
    latency = figures()["matrices"][0]
    assert latency["cells"][1] == [None, None] and latency["better"] == "lower"
    assert latency["cells"][0][1]["median"] == 202


def test_table_csv_and_plot(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot, table = tmp_path / "heat.svg", tmp_path / "figures.csv"
    words = ["--from-json", str(file), "--plot", str(plot), "--csv", str(table)]
    assert cli.main(["bench", "matrix", *words]) == 0
    out = capsys.readouterr().out
    assert re.search(r"CPU of node \\ memory of node +0 +3\n", out)
    assert "92.0 (91.0–93.0)" in out and "2.00 (1.00–3.00)" in out and "–" in out
    with open(table, newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 2 + 4
    assert rows[1] == {"matrix": "latency", "unit": "ns", "page_size": "", "from": "0", "to": "3",
                       "median": "202", "low": "201", "high": "203"}  # fmt: skip
    told = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", plot.read_text()))
    for part in ("Copy bandwidth", "GB/s, 2 threads", "202.0", "201.0–203.0", "memory of node"):
        assert part in told


def test_notes_say_what_spoils_the_figures() -> None:
    assert [text.split()[0] for text in notes(figures())] == ["Emulated:", "The"]
    plain = figures() | {"last_level_cache": 0, "nodes": [0]}
    plain["machine"]["emulated"] = False
    assert notes(plain) == ["One node: nothing to migrate between."]


@pytest.mark.parametrize("words", [("--size", "0"), ("--size", "x"), ("--repeats", "0")])
def test_bad_numbers_are_usage_errors(words: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "matrix", *words])
    assert end.value.code == 2


def test_files_that_cannot_be_written(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "matrix", "--from-json", str(file)]
    assert cli.main([*words, "--csv", "/nowhere/x.csv"]) == 1
    assert cli.main([*words, "--output", "/nowhere/x.json"]) == 1
    assert capsys.readouterr().err.count("cannot write /nowhere") == 2

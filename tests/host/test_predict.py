# SPDX-License-Identifier: Apache-2.0
"""Described machines, predictions for them, and the model's check against published figures."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry.bench.model_check import (
    SOURCES,
    START,
    check_published,
    check_runs,
    fitted_costs,
    summarized,
)
from pageferry.bench.model_report import plot as plot_check
from pageferry.bench.model_report import print_table
from pageferry.bench.published import published
from pageferry.console import console
from pageferry.described import Machine, load_machine, parse_machine, shipped, this_machine
from pageferry.errors import DescriptionError, NodeError, PageferryError
from pageferry.fit import Measured, fit
from pageferry.model import DEFAULT_COSTS, predict
from pageferry.sweep import plot, sweep, thread_numbers
from pageferry.topology import topology

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "pageferry", "predict"]
GOOD = """
name = "small"
[[node]]
id = 0
cores = 4
smt = 2
caches = 2
memory = "64G"
[[node]]
id = 5
cores = 2
[[node]]
id = 7
cores = 0
[[link]]
from = 0
to = 7
gbps = 3.5
[costs]
call_us = 100.0
serial = 0.01
crosstalk = 0.001
smt_gain = 0.25
thread_gbps = 5
cache_gbps = 20.0
link_gbps = 12.0
sharpness = 2.0
handover_us = 10.0
handover_thread_us = 1.0
[costs.page_us]
4K = 1.5
2M = 30.0
"""


# --- descriptions


def test_a_description() -> None:
    machine = parse_machine(GOOD)
    assert [(n.id, n.cores, n.smt, n.caches, n.memory) for n in machine.nodes] == [
        (0, 4, 2, 2, 64 << 30),
        (5, 2, 1, 1, None),
        (7, 0, 1, 1, None),
    ]
    assert machine.costs.page_us == ((4096, 1.5), (2 << 20, 30.0))
    assert machine.costs.thread_gbps == 5.0
    assert machine.link(0, 7) == 3.5 and machine.link(7, 0) == 12.0
    with pytest.raises(NodeError, match=r"small has no node 3 .*it has 0,5,7"):
        machine.link(0, 3)


def test_seats_of_a_description() -> None:
    machine = parse_machine(GOOD)
    seats = machine.seats(0, 5)
    assert seats.caches[:6] == ((5, 0), (5, 0), (0, 0), (0, 1), (0, 0), (0, 1))
    assert seats.siblings == (False,) * 6 + (True,) * 4 and seats.cores == 6
    assert machine.seats(0, 7).caches[0] == (0, 0)  # the target has no CPU
    assert replace(machine, cpus_near="source").seats(0, 5).caches[0] == (0, 0)
    assert len(machine.seats(0, 0).cpus) == 10


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[costs]", "[costs", "describes no machine"),
        ('name = "small"', "", "name is missing"),
        ('name = "small"', "name = 4", "name must be a text"),
        ('name = "small"', 'name = "small"\ncolour = 1', "unknown fields: 'colour'"),
        ("id = 5", "id = 0", "there is a node 0 already"),
        ("id = 5", "id = -5", r"node\[1\].id must be from 0"),
        ("id = 5", "id = 5.5", r"node\[1\].id must be a whole number"),
        ("cores = 4", "cores = 1000000", r"node\[0\].cores must be from 0 to"),
        ("cores = 4", "cores = true", r"node\[0\].cores must be a whole number"),
        ("cores = 4", "cores = 1", r"node\[0\].caches must be from 1 to 1"),
        ("smt = 2", "smt = 0", r"node\[0\].smt"),
        ("smt = 2", "smt = 2\nspeed = 3", r"node\[0\] has unknown fields"),
        ('"64G"', '"lots"', r"node\[0\].memory is no size"),
        ("to = 7", "to = 8", r"link\[0\]: there is no node 8"),
        ("to = 7", "to = 0", r"link\[0\] goes from node 0 to itself"),
        ("gbps = 3.5", "gbps = 0.0", r"link\[0\].gbps"),
        ("gbps = 3.5", "gbps = nan", r"link\[0\].gbps"),
        ("gbps = 3.5", "gbps = 3.5\n[[link]]\nfrom = 0\nto = 7\ngbps = 1", "is there already"),
        ("serial = 0.01", "serial = 1.5", "costs.serial must be from 0 to 1"),
        ("serial = 0.01", "", "costs.serial is missing"),
        ("sharpness = 2.0", "sharpness = inf", "costs.sharpness"),
        ("thread_gbps = 5", "thread_gbps = -5", "costs.thread_gbps"),
        ("4K = 1.5", "3K = 1.5", "costs.page_us.3K"),
        ("4K = 1.5", '4K = "1.5"', "costs.page_us.4K must be a number"),
        ("4K = 1.5", "4K = 1.5\n4096 = 1.5", "has a page size twice"),
        ("[costs]", "[costs]\nwatts = 3", "costs has unknown fields: 'watts'"),
    ],
)
def test_impossible_descriptions(old: str, new: str, words: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(DescriptionError, match=words) as refused:
        parse_machine(GOOD.replace(old, new))
    assert refused.value.hint


def test_a_machine_has_nodes_and_cpus() -> None:
    costs = GOOD[GOOD.index("[costs]") :]
    with pytest.raises(DescriptionError, match="node is missing"):
        parse_machine(f'name = "x"\n{costs}')
    with pytest.raises(DescriptionError, match="from 1 to 65536 CPUs, not 0"):
        parse_machine(f'name = "x"\n[[node]]\nid = 0\ncores = 0\n{costs}')
    many = "".join(f"[[node]]\nid = {i}\ncores = 4096\n" for i in range(20))
    with pytest.raises(DescriptionError, match="CPUs, not 81920"):
        parse_machine(f'name = "x"\n{many}{costs}')


@given(st.text(max_size=200))
def test_any_text_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(DescriptionError, match="describes no machine"):
        parse_machine(text)


_toml = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text("ab\n4K", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab4K", max_size=3), inner),
    max_leaves=6,
)


@given(st.sampled_from(["name", "about", "cpus_near", "node", "link", "costs", "x"]), _toml)
def test_any_value_of_a_field_is_read_or_refused_by_name(field: str, value: Any) -> None:
    from pageferry.described import _machine
    from pageferry.strict import Fields

    try:
        machine = _machine(Fields({**tomllib.loads(GOOD), field: value}))
    except ValueError as error:
        assert field in str(error)
    else:
        assert machine.nodes


@pytest.mark.parametrize("text", ["[" * 100_000, "a = " + "[" * 100_000, 'a = """'])
def test_texts_that_are_hard_to_read(text: str) -> None:
    with pytest.raises(DescriptionError):
        parse_machine(text)


def test_where_descriptions_come_from(tmp_path: Path) -> None:
    assert {"e5-2650", "e5-2650v3", "zen3", "eight-socket", "cxl", "cores-256"} == set(shipped())
    for name in shipped():
        machine = load_machine(name)
        source, target = machine.nodes[0].id, machine.nodes[-1].id
        found = predict(machine.costs, machine.seats(source, target), {4096: 1000}, 2)
        assert 0 < found.seconds < 1 and machine.about
    file = tmp_path / "mine.toml"
    file.write_text(GOOD)
    assert load_machine(str(file)) == parse_machine(GOOD)
    file.write_text("#" * (2 << 20))
    with pytest.raises(DescriptionError, match="longer than"):
        load_machine(str(file))
    with pytest.raises(PageferryError, match=r"cannot read .*none.toml"):
        load_machine(str(tmp_path / "none.toml"))
    with pytest.raises(PageferryError, match="cannot read"):
        load_machine(str(tmp_path))
    with pytest.raises(PageferryError, match="cannot read"):
        load_machine("/\0")
    with pytest.raises(DescriptionError, match=r"no machine is called 'zen9'.*cores-256, cxl"):
        load_machine("zen9")


def test_this_machine_is_one_too() -> None:
    here = this_machine()
    assert here.nodes and here.about
    node = here.nodes[0].id
    assert predict(here.costs, here.seats(node, node), {4096: 100}, 1).seconds > 0


# --- fitting


def test_a_fit_finds_the_costs_that_made_the_figures() -> None:
    seats = load_machine("zen3").seats(0, 1)
    true = replace(DEFAULT_COSTS, page_us=((4096, 0.5),), thread_gbps=12.0, link_gbps=70.0)
    start = replace(DEFAULT_COSTS, page_us=((4096, 1.0),))
    cases = [({4096: 10**6}, 1), ({4096: 10**6}, 8), ({2 << 20: 10**4}, 1), ({2 << 20: 10**4}, 32)]
    measured = [
        Measured(pages, threads, predict(true, seats, pages, threads).seconds, seats)
        for pages, threads in cases
    ]
    found = fit(measured, start, ("page_us.4096", "thread_gbps", "link_gbps"))
    assert found.page(4096) == pytest.approx(0.5, rel=0.05)
    assert found.thread_gbps == pytest.approx(12.0, rel=0.05)
    assert found.link_gbps == pytest.approx(70.0, rel=0.05)
    assert replace(found, page_us=(), thread_gbps=1, link_gbps=1) == replace(
        start, page_us=(), thread_gbps=1, link_gbps=1
    )


def test_what_the_figures_do_not_tell_stays() -> None:
    seats = load_machine("zen3").seats(0, 1)
    one = [Measured({4096: 1000}, 1, 0.01, seats)]
    found = fit(one, DEFAULT_COSTS, ("page_us.4096", "link_gbps", "handover_us"))
    assert found.handover_us == pytest.approx(DEFAULT_COSTS.handover_us, rel=1e-3)
    assert one[0].predicted(found) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("name", ["speed", "page_us", "page_us.x", "link_gbps.4096"])
def test_costs_that_there_are_not(name: str) -> None:
    seats = load_machine("zen3").seats(0, 1)
    with pytest.raises(ValueError, match="no cost that can be fitted"):
        fit([Measured({4096: 1}, 1, 1.0, seats)], DEFAULT_COSTS, (name,))
    with pytest.raises(ValueError, match="begins at 0"):
        fit([Measured({4096: 1}, 1, 1.0, seats)], DEFAULT_COSTS, ("smt_gain",))


# --- the check against published figures


def test_the_model_holds_against_published_figures(tmp_path: Path) -> None:
    figures = check_published()
    assert sum(len(source["rows"]) for source in figures["sources"]) == len(published()) == 45
    whole = figures["summary"]
    assert (whole["fitted"], whole["predicted"]) == (15, 30)
    assert whole["median_error"] <= 0.15
    for source in figures["sources"]:
        assert source["summary"]["median_error"] <= 0.15
        assert all(row["predicted"] > 0 for row in source["rows"])
    json.dumps(figures)
    with (tmp_path / "table").open("w") as file:
        print_table(figures, console(file))
    assert "30 predicted, median error" in (tmp_path / "table").read_text()
    plot_check(figures, tmp_path / "check.png")
    assert (tmp_path / "check.png").read_bytes().startswith(b"\x89PNG")


def test_the_shipped_costs_are_the_fitted_ones() -> None:
    for name, source in SOURCES.items():
        fitted, kept = fitted_costs(name).as_dict(), load_machine(source.machine).costs.as_dict()
        assert kept.pop("page_us") == pytest.approx(fitted.pop("page_us"), rel=1e-3)
        assert kept == pytest.approx(fitted, rel=1e-3)


def test_the_fit_begins_the_same_for_all() -> None:
    assert all(name.split(".")[0] in START.as_dict() for s in SOURCES.values() for name in s.free)
    assert all(len(source.fitted) < len(published(name)) / 2 for name, source in SOURCES.items())


def test_own_runs_are_predicted_from_those_by_one_thread(tmp_path: Path) -> None:
    runs = check_runs(json.loads((ROOT / "docs/pageferry-series.json").read_text()))
    fitted = [row for row in runs["rows"] if row["fitted"]]
    assert len(fitted) == 2 and all(row["threads"] == 1 for row in fitted)
    assert all(abs(row["error"]) < 0.05 for row in fitted)
    assert all(("error" in row) != bool(row["left_out"]) for row in runs["rows"])
    assert any(row["left_out"] for row in runs["rows"])
    figures = {**check_published(), "runs": runs}
    with (tmp_path / "table").open("w") as file:
        print_table(figures, console(file))
    assert "Not modelled: migratepages" in (tmp_path / "table").read_text()
    plot_check(figures, tmp_path / "check.png")


def test_moves_here_are_shown_beside_the_rest(tmp_path: Path) -> None:
    """Their figures are made in the guests; see tests/guest/test_plan.py."""
    row = {
        "engine": "pageferry", "page_size": 4096, "pages": 256, "threads": 2, "seconds": 0.002,
        "expected_seconds": 0.001, "published": 0.5, "predicted": 1.0, "error": 1.0,
        "fitted": False, "left_out": None,
    }  # fmt: skip
    own = {
        "source": "moves here", "machine": "a guest", "free": [], "rows": [row],
        "costs": DEFAULT_COSTS.as_dict(), "summary": summarized([row]),
    }  # fmt: skip
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"experiment": "model", **check_published(), "own": own}))
    done = run_model("--from-json", file, "--plot", tmp_path / "own.png")
    assert done.returncode == 0, done.stderr
    assert "moves here: a guest" in done.stdout
    assert "1 predicted: median error 100.0%, worst 100.0%" in done.stdout
    assert (tmp_path / "own.png").read_bytes().startswith(b"\x89PNG")
    if len(topology().target_nodes) < 2:
        refused = run_model("--own", "--lab", "never")
        assert refused.returncode == 2 and "moves need two nodes" in refused.stderr
    assert run_model("--own", "--repeats", 0).returncode == 2


def run_model(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pageferry", "bench", "model", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_own_runs_are_predicted_from_a_calibration(tmp_path: Path) -> None:
    runs = ROOT / "docs/pageferry-series.json"
    found = check_runs(json.loads(runs.read_text()), DEFAULT_COSTS)
    assert not any(row["fitted"] for row in found["rows"]) and found["costs"]["call_us"] == 500.0
    costs = tmp_path / "costs.json"
    costs.write_text(json.dumps({"costs": DEFAULT_COSTS.as_dict()}))
    command = [sys.executable, "-m", "pageferry", "bench", "model", "--runs", str(runs), "--costs"]
    done = subprocess.run([*command, str(costs)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "the costs are a calibration's" in done.stdout
    costs.write_text('{"costs": {}}')
    done = subprocess.run([*command, str(costs)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "has no costs: costs.call_us is missing" in done.stderr


# --- sweeps and the command


def small() -> Machine:
    return parse_machine(GOOD)


def test_a_sweep_has_all_cores_and_all_cpus() -> None:
    assert thread_numbers(6, 10) == (1, 2, 4, 6, 8, 10)
    assert thread_numbers(1, 1) == (1,)
    found = sweep(small(), 0, 5, {4096: 10**6})
    assert [prediction.threads for prediction in found] == [1, 2, 4, 6, 8, 10]
    assert found[1].gbps > found[0].gbps


def test_a_plot(tmp_path: Path) -> None:
    file = tmp_path / "sweep.png"
    plot(small(), 0, 7, 1 << 40, (4096, 2 << 20), file)
    assert file.read_bytes().startswith(b"\x89PNG")
    plot(small(), 0, 7, 4096, (4096, 2 << 20), file)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_text(GOOD)
    where = ("--machine", file, "--from", 0, "--to", 7)
    done = run(*where, "--bytes", "2T", "--page-size", "4K", "--threads", 4, "--sweep")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2.0 TiB in pages of 4 KiB from node 0 to node 7 with 4 threads" in done.stdout
    assert "times one" in done.stdout
    printed = json.loads(run(*where, "--sweep", "--json").stdout)
    assert printed["bytes"] == 64 << 30 and printed["dominant"] in printed["terms"]
    assert printed["gbps"] <= 3.5 and len(printed["sweep"]) == 6
    expected = predict(small().costs, small().seats(0, 7), {4096: 16 << 20}, 4, link_gbps=3.5)
    again = json.loads(run(*where, "--threads", 4, "--json").stdout)
    assert again["seconds"] == pytest.approx(expected.seconds)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--machine", "cxl", "--from", 0, "--to", 9], "has no node 9"),
        (["--machine", "cxl", "--from", 1, "--to", 1], "would not leave their node"),
        (["--machine", "zen3", "--from", 0, "--to", 1], "--bytes"),
        (["--machine", "abacus", "--from", 0, "--to", 1], "no machine is called"),
        (["--machine", "cxl", "--from", 0, "--to", 1, "--bytes", "0"], "nothing to move"),
        (["--machine", "cxl", "--from", 0, "--to", 1, "--page-size", "5K"], "no page size"),
        (["--machine", "cxl", "--from", 0, "--to", 1, "--threads", "0"], "neither"),
        (["--from", 0], "--to"),
    ],
)
def test_what_makes_no_sense(arguments: list[object], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr

# SPDX-License-Identifier: Apache-2.0
"""The calibration: its file, whom it trusts, and that it never stops a move."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry import calibration, move
from pageferry.bench.costs import measure
from pageferry.calibration import Calibration, CalibrationWarning, current, identity, load, save
from pageferry.model import BOUNDS, DEFAULT_COSTS
from pageferry.strict import Fields
from pageferry.topology import topology

PROGRAM = [sys.executable, "-m", "pageferry"]
GOOD = Calibration(
    costs=replace(DEFAULT_COSTS, call_us=77.0, page_us=((4096, 0.9), (2 << 20, 12.0))),
    cpus_near="source",
    links=((0, 1, 20.5), (1, 0, 18.0)),
    measured=("call_us", "page_us"),
    when="2026-01-02 03:04",
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    current.cache_clear()
    yield
    monkeypatch.undo()
    current.cache_clear()


def test_it_is_kept_for_its_user_alone() -> None:
    where = save(GOOD)
    assert where == calibration.path() and where.parent.name == "pageferry"
    assert stat.S_IMODE(where.stat().st_mode) == 0o600
    assert load(where) == current() == GOOD
    save(replace(GOOD, when="later"))
    assert current().when == "later"  # and not what was read before
    assert list(where.parent.iterdir()) == [where]  # nothing half written beside it


def test_the_name_is_the_machine_and_its_kernel() -> None:
    of = identity()
    assert set(of) == {"cpu", "nodes", "product", "kernel"} and all(of.values())
    names = {calibration.path({**of, key: "another"}).name for key in of}
    assert len(names | {calibration.path().name}) == 5


def test_without_one_plans_say_so() -> None:
    assert load(calibration.path()) is None
    assert current().costs == DEFAULT_COSTS
    reasons = move(np.ones(1 << 20), 0).plan.reasons
    assert any(reason.startswith("not calibrated") for reason in reasons)
    save(GOOD)
    reasons = move(np.ones(1 << 20), 0).plan.reasons
    assert not any("calibrat" in reason for reason in reasons)
    save(replace(GOOD, note="calibrated in a hurry"))
    assert move(np.ones(1 << 20), 0).plan.reasons[-1] == "calibrated in a hurry"


def damaged(where: Path, how: str) -> None:
    """Make the good file one that must not be used."""
    value = json.loads(where.read_text())
    if how == "link":
        target = where.with_name("elsewhere")
        where.rename(target)
        where.symlink_to(target)
    elif how == "fifo":
        where.unlink()
        os.mkfifo(where, 0o600)
    elif how == "folder":
        where.unlink()
        where.mkdir()
    elif how == "group":
        where.chmod(0o620)
    elif how == "empty":
        where.write_text("")
    elif how == "cut":
        where.write_text(where.read_text()[:-20])
    elif how == "deep":
        where.write_text("[" * 60_000)
    elif how == "long":
        where.write_text(where.read_text() + " " * 70_000)
    elif how == "bytes":
        where.write_bytes(b"\xff\xfe\x00")
    elif how == "list":
        where.write_text("[1, 2]")
    elif how == "newer":
        where.write_text(json.dumps({**value, "format": 2}))
    elif how == "foreign":
        value["machine"]["cpu"] = "Another CPU"
        where.write_text(json.dumps(value))
    elif how == "kernel":
        value["machine"]["kernel"] = "2.6.18"
        where.write_text(json.dumps(value))
    elif how == "negative":
        value["costs"]["call_us"] = -1.0
        where.write_text(json.dumps(value))
    elif how == "nan":
        value["costs"]["thread_gbps"] = float("nan")
        where.write_text(json.dumps(value))
    elif how == "unknown":
        where.write_text(json.dumps({**value, "colour": "blue"}))


WAYS = {
    "link": "symbolic link",
    "fifo": "no regular file",
    "folder": "no regular file",
    "group": "others can write it",
    "empty": "Expecting value",
    "cut": "line [0-9]+ column",
    "deep": "nested too deeply",
    "long": "longer than 64 KiB",
    "bytes": "decode",
    "list": "must be a table",
    "newer": "format must be from 1 to 1",
    "foreign": "another machine's: cpu",
    "kernel": "another machine's: kernel",
    "negative": "costs.call_us",
    "nan": "costs.thread_gbps",
    "unknown": "unknown fields: 'colour'",
}


@pytest.mark.parametrize("how", list(WAYS))
def test_what_cannot_be_trusted_is_ignored_with_a_warning(how: str) -> None:
    where = save(GOOD)
    damaged(where, how)
    with pytest.raises(ValueError, match=WAYS[how]):
        load(where)
    with pytest.warns(CalibrationWarning, match=f"is ignored: .*{WAYS[how]}"):
        result = move(np.ones(1 << 20), 0)
    assert result.complete
    assert any("is ignored" in reason for reason in result.plan.reasons)
    assert current().costs == DEFAULT_COSTS
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once in a process
        move(np.ones(1 << 20), 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_file_is_ignored() -> None:
    where = save(GOOD)
    os.chown(where, 65534, 65534)
    with pytest.raises(ValueError, match="belongs to another user"):
        load(where)
    with pytest.warns(CalibrationWarning):
        assert current().costs == DEFAULT_COSTS


def test_no_home_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", homeless)  # a user without an entry cannot be had at will
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert current().costs == DEFAULT_COSTS


def test_links_are_found_by_their_ends() -> None:
    assert GOOD.link(0, 1) == 20.5 and GOOD.link(1, 0) == 18.0
    assert GOOD.link(None, 1) == 20.5 and GOOD.link(None, 7) is None and GOOD.link(7, 1) is None


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(_json)
def test_any_json_is_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        Calibration.from_fields(Fields(value))


@given(st.sampled_from(["costs", "cpus_near", "links", "measured", "when", "note", "x"]), _json)
def test_any_field_is_read_or_refused_by_name(field: str, value: Any) -> None:
    try:
        found = Calibration.from_fields(Fields({**GOOD.as_dict(), field: value}))
    except ValueError as error:
        assert field in str(error)
    else:
        assert Calibration.from_fields(Fields(found.as_dict())) == found


# --- measuring


def test_what_one_node_lets_be_measured() -> None:
    if len(topology().target_nodes) > 1:
        pytest.skip("this machine has two nodes with memory; tests/guest has that case")
    said: list[str] = []
    found = measure(repeats=1, say=said.append)
    assert set(found.measured) == {"call_us", "thread_gbps", "cache_gbps"} and said and found.when
    assert found.costs.call_us > 0 and found.costs.cache_gbps >= found.costs.thread_gbps > 0
    for name in BOUNDS:
        if name not in found.measured:
            assert getattr(found.costs, name) == getattr(DEFAULT_COSTS, name)
    assert Calibration.from_fields(Fields(json.loads(json.dumps(found.as_dict())))) == found


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def test_the_command_keeps_what_it_measured() -> None:
    if len(topology().target_nodes) > 1:
        pytest.skip("moves 200 MiB there and back: tests/guest has that case")
    shown = run("calibrate", "--repeats", 1, "--no-save")
    assert shown.returncode == 0 and "assumed" in shown.stdout and "Not kept" in shown.stdout
    assert current().costs == DEFAULT_COSTS
    done = run("calibrate", "--repeats", 1, "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["kept"] == str(calibration.path()) and value["machine"] == identity()
    assert "page_us" in value["assumed"] and "call_us" in value["measured"]
    kept = load(calibration.path())
    assert kept is not None and kept.costs.as_dict() == value["costs"]
    plan = run("plan", os.getpid(), "--to", 0)
    assert plan.returncode == 0 and "not calibrated" not in plan.stdout


def test_a_damaged_file_and_the_command_line() -> None:
    save(GOOD).write_text("{")
    done = run("predict", "--machine", "cxl", "--from", 0, "--to", 1)
    assert (done.returncode, done.stderr) == (0, "")  # it is not asked for there
    done = run("plan", os.getpid(), "--to", 0)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert done.stderr.startswith("pageferry: the calibration of this machine is ignored: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = run("calibrate", "--repeats", 1)
    assert done.returncode == 1 and "XDG_CACHE_HOME" in done.stderr


def test_a_cache_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "pageferry").write_text("in the way")
    assert load(calibration.path()) is None
    if len(topology().target_nodes) > 1:
        return
    done = run("calibrate", "--repeats", 1)
    assert done.returncode == 1 and "XDG_CACHE_HOME" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--repeats", "0"], ["--repeats", "x"], ["extra"]])
def test_usage(arguments: list[str]) -> None:
    assert run("calibrate", *arguments).returncode == 2

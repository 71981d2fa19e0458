# SPDX-License-Identifier: Apache-2.0
"""Plans of memory that really moves, and the calibration of a machine with two nodes.

Run by: pageferry lab run --topology two-node --memory 1536M --cpus 2
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from placement import HUGE, PAGE, Memory

from command import run
from pageferry import MigrateMode, Plan, move, plan_move
from pageferry.bench.own_check import check_here
from pageferry.calibration import Calibration, current, load
from pageferry.calibration import path as calibration_path

SIZE = 16 << 20


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    current.cache_clear()
    yield
    monkeypatch.undo()
    current.cache_clear()


@pytest.mark.parametrize("kind", ["base", "thp"])
def test_a_plan_is_made_kept_and_run(kind: str) -> None:
    memory = Memory(kind, SIZE, node=0)
    plan = plan_move(memory.words, 1)
    assert memory.nodes() == {0: SIZE}  # nothing moved
    assert plan.expected_seconds > 0 and plan.expected_gbps > 0
    assert plan.expected_seconds * plan.expected_gbps == pytest.approx(SIZE / 1e9)
    kept = Plan.from_dict(json.loads(json.dumps(plan.as_dict())))
    result = move(memory.words, 1, plan=kept)
    assert result.complete and result.bytes_moved == SIZE and result.plan == plan
    assert memory.nodes() == {1: SIZE}
    memory.check()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_plan_of_ones_own(threads: int) -> None:
    memory = Memory("base", SIZE, node=0)
    cpus = tuple(i % 2 for i in range(threads))
    own = Plan("kernel", threads, cpus, MigrateMode.SYNC_LIGHT, 1 << 20, 20, ("mine",))
    for node in (1, 0):
        result = move(memory.words, node, plan=own)
        assert result.complete and result.bytes_moved == SIZE and result.plan == own
        assert result.workers <= threads and memory.nodes() == {node: SIZE}
    assert result.calls >= SIZE // (2 << 20)  # batches are no larger than the plan says, about
    memory.check()


def test_shares_shrink_to_what_the_plan_says() -> None:
    """Of two threads one begins with 8 MiB, the other with 2; the rest is one piece."""
    memory = Memory("base", SIZE, node=0)
    own = Plan("kernel", 2, (), MigrateMode.SYNC, SIZE, 0, ("mine",), smallest_bytes=SIZE // 2)
    for _ in range(50):  # until the other thread had a CPU from the beginning to the end of both
        dealt = {}
        for node, plan in ((1, own), (0, replace(own, smallest_bytes=1))):
            result = move(memory.words, node, plan=plan)
            assert result.complete and result.bytes_moved == SIZE and result.plan == plan
            dealt[node] = result.calls
        if dealt[1] <= 3 < dealt[0]:
            break
    assert dealt[1] <= 3 < dealt[0]
    memory.check()


def test_only_what_has_to_move_is_planned_for() -> None:
    memory = Memory("base", SIZE, node=0)
    move(memory.words[: SIZE // 16], 1)
    half = plan_move(memory.words, 1)
    assert half.expected_seconds * half.expected_gbps == pytest.approx(SIZE / 2 / 1e9)
    assert plan_move(memory.words[: SIZE // 16], 1).expected_seconds == 0
    assert plan_move(memory.words, 1, source=1).expected_seconds == 0


def test_cpus_that_were_taken_away() -> None:
    memory = Memory("base", SIZE, node=0)
    plan = plan_move(memory.words, 1, threads=2)
    assert sorted(plan.cpus) == [0, 1]
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {1})
    try:
        result = move(memory.words, 1, plan=plan)
    finally:
        os.sched_setaffinity(0, before)
    assert result.complete and memory.nodes() == {1: SIZE}
    assert result.plan == replace(
        plan,
        threads=1,
        cpus=(1,),
        reasons=(*plan.reasons, "1 thread: the plan's CPUs 0 may not be used now"),
    )
    memory.check()


def test_calibrate_measures_this_machine() -> None:
    done = run("calibrate", "--repeats", 1, "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert {"call_us", "page_us", "thread_gbps", "serial", "handover_us"} <= {*value["measured"]}
    assert value["cpus_near"] in ("target", "source") and value["links"] == []
    kept = load(calibration_path())
    assert kept is not None and kept.costs.as_dict() == value["costs"]
    assert kept.costs.page(PAGE) > 0 and kept.costs.page(HUGE) > 0
    # What was measured is what plans are made with from now on.
    current.cache_clear()
    memory = Memory("base", SIZE, node=0)
    plan = plan_move(memory.words, 1, threads=2)  # asked for, so that a busy machine is no matter
    assert not any("not calibrated" in reason for reason in plan.reasons)
    assert move(memory.words, 1, plan=plan).complete
    predicted = run("predict", "--from", 0, "--to", 1, "--bytes", SIZE, "--threads", 2, "--json")
    assert predicted.returncode == 0, predicted.stderr
    found = json.loads(predicted.stdout)
    assert found["about"].startswith("calibrated 20")
    assert found["seconds"] == pytest.approx(plan.expected_seconds)


def test_moves_are_compared_with_what_plans_expect() -> None:
    found = check_here(repeats=1, sizes=(1 << 20, SIZE), known=Calibration())
    cases = {(row["page_size"], row["pages"], row["threads"]): row for row in found["rows"]}
    # Of 1 MiB no THP is made, and of what is one piece two threads make one.
    assert {case for case in cases if case[0] == PAGE} == {
        (PAGE, size // PAGE, threads) for size in (1 << 20, SIZE) for threads in (1, 2)
    }
    for (page_size, pages, threads), row in cases.items():
        assert page_size * pages in (1 << 20, SIZE) and len(row["samples"]) == 2
        assert row["published"] == pytest.approx(page_size * pages / row["seconds"] / 1e9)
        assert row["error"] == pytest.approx(row["predicted"] / row["published"] - 1)
        plan = plan_move(Memory("base", SIZE, node=0).words, 1, threads=threads)
        if page_size * pages == SIZE and page_size == PAGE:  # not calibrated, as the plan is
            assert row["expected_seconds"] == pytest.approx(plan.expected_seconds)
    assert found["summary"]["predicted"] == len(cases) and current().when == ""

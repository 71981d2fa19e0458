# SPDX-License-Identifier: Apache-2.0
"""Plans: how they are made, kept, read back, and run."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child import in_a_child
from hypothesis import given
from hypothesis import strategies as st
from regions import HUGE, PAGE, Region

from pageferry import MigrateMode, NodeError, Plan, move, plan_move
from pageferry import plan as planned
from pageferry.calibration import Calibration
from pageferry.commands.plan import read_plan
from pageferry.errors import DescriptionError
from pageferry.model import Costs
from pageferry.nodes import machine
from pageferry.pages import EXTENT, extents_by_size
from pageferry.plan import MAX_THREADS, make_plan
from pageferry.quota import cpu_quota
from pageferry.seats import seats_near
from pageferry.topology import Cache, Cpu, Node, Topology

PROGRAM = [sys.executable, "-m", "pageferry"]
GOOD = Plan(
    engine="kernel",
    threads=2,
    cpus=(0, 0),
    mode=MigrateMode.SYNC | MigrateMode.MT,
    batch_bytes=1 << 20,
    call_ms=20,
    reasons=("because",),
    expected_seconds=0.5,
    expected_gbps=3.25,
)
#: Calls cost nothing, so that sharing is worth it for little memory too.
CHEAP = Calibration(costs=Costs(call_us=0.0, handover_us=0.0, handover_thread_us=0.0))


def written(size: int = 4 * HUGE) -> Region:
    region = Region(size)
    region.write(0, size)
    return region


def sockets(nodes: int = 2, cores: int = 8, caches: int = 2, smt: int = 2) -> Topology:
    """A machine whose CPUs are numbered as Linux does: all first siblings before all second."""
    total = nodes * cores
    each = cores // caches

    def place(cpu: int) -> tuple[int, int]:
        return cpu % total // cores, cpu % total // each

    cpus = tuple(
        Cpu(i, place(i)[0], frozenset(range(i % total, total * smt, total)), place(i)[1])
        for i in range(total * smt)
    )
    return Topology(
        nodes=tuple(
            Node(
                n,
                frozenset(c.id for c in cpus if c.node == n),
                1 << 36,
                1 << 35,
                True,
                {other: 10 if other == n else 20 for other in range(nodes)},
            )
            for n in range(nodes)
        ),
        cpus=cpus,
        caches=tuple(
            Cache(k, 3, 1 << 25, frozenset(c.id for c in cpus if c.cache == k))
            for k in range(nodes * caches)
        ),
        allowed_cpus=frozenset(range(total * smt)),
        allowed_nodes=frozenset(range(nodes)),
    )


@pytest.fixture
def all_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let plans be made for machines larger than this one: only the kernel knows its CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4096)))


# --- choosing threads and CPUs


@pytest.mark.usefixtures("all_cpus")
def test_cpus_are_spread_over_caches_and_cores_of_the_target_first() -> None:
    here = sockets()
    plan = make_plan(here, 1, {PAGE: 1 << 20}, threads=32)
    by_cpu = {cpu.id: cpu for cpu in here.cpus}
    assert [by_cpu[c].node for c in plan.cpus[:16]] == [1] * 8 + [0] * 8
    assert [by_cpu[c].cache for c in plan.cpus[:4]] == [2, 3, 2, 3]
    assert len({by_cpu[c].core for c in plan.cpus[:16]}) == 16
    assert sorted(plan.cpus) == list(range(32))


@given(st.data())
def test_the_order_of_cpus(data: st.DataObject) -> None:
    nodes, caches, smt = (data.draw(st.integers(1, 3), label=name) for name in ("n", "c", "s"))
    here = sockets(nodes, caches * data.draw(st.integers(1, 4)), caches, smt)
    allowed = data.draw(st.sets(st.sampled_from(sorted(here.allowed_cpus)), min_size=1))
    target = data.draw(st.integers(0, nodes - 1))
    seats = seats_near(here, allowed, target)
    assert sorted(seats.cpus) == sorted(allowed)  # each once, and no other
    assert seats_near(here, set(allowed), target) is seats  # kept
    assert seats.siblings == tuple(sorted(seats.siblings))  # siblings last
    cpus = [here.cpu(id) for id in seats.cpus]
    cores = [cpu.core for cpu in cpus if cpu is not None][: seats.cores]
    assert len(set(cores)) == seats.cores  # one of each core before any second
    own = [cpu.node == target for cpu in cpus if cpu is not None][: seats.cores]
    assert own == sorted(own, reverse=True)  # the target's first
    # One of each cache before a second: a cache is never two ahead of one that has CPUs left.
    first = [cpu.cache for cpu in cpus if cpu is not None and cpu.node == target][: sum(own)]
    total = Counter(first)
    for end in range(len(first) + 1):
        taken = Counter(first[:end])
        left = [taken[cache] for cache in total if taken[cache] < total[cache]]
        assert not left or max(taken.values(), default=0) - min(left) <= 1


@pytest.mark.usefixtures("all_cpus")
def test_the_calibration_says_whose_cpus_go_first() -> None:
    near_source = replace(CHEAP, cpus_near="source")
    for calibration, source, first in ((CHEAP, 0, 8), (near_source, 0, 0), (near_source, None, 8)):
        plan = make_plan(
            sockets(), 1, {PAGE: 1 << 20}, threads=4, source=source, calibration=calibration
        )
        assert plan.cpus[0] == first


@pytest.mark.usefixtures("all_cpus")
def test_threads_are_no_more_than_help() -> None:
    here = sockets(cores=32, caches=4)
    pages = {HUGE: 10_000}

    def auto(costs: Costs, pages: dict[int, int] = pages) -> int:
        return make_plan(here, 1, pages, calibration=Calibration(costs=costs)).threads

    free = replace(CHEAP.costs, serial=0.0, crosstalk=0.0, link_gbps=1e6, cache_gbps=1e6)
    assert auto(free) == 64  # one for each core: no sibling, as they bring nothing
    assert auto(replace(free, smt_gain=1.0)) > 64
    assert auto(replace(free, link_gbps=8.0, sharpness=20.0, thread_gbps=8.0)) <= 2
    assert auto(replace(free, serial=1.0, page_us=((PAGE, 1e6),))) == 1
    assert 1 < auto(replace(free, link_gbps=40.0)) < 30
    assert auto(free, {PAGE: 1}) == 1
    assert auto(free, {PAGE: 3}) <= 3
    assert auto(replace(free, call_us=1e6), {PAGE: 10_000}) == 1
    assert auto(free, {}) == 1


@pytest.mark.usefixtures("all_cpus")
def test_multi_threaded_mode_takes_two_where_there_are_two_cores() -> None:
    dear = Calibration(costs=Costs(call_us=1e6))
    mode = MigrateMode.SYNC | MigrateMode.MT
    for here, pages, threads in (
        (sockets(), {PAGE: 100}, 2),
        (sockets(), {PAGE: 1}, 1),
        (sockets(nodes=1, cores=1, caches=1), {PAGE: 100}, 1),
    ):
        plan = make_plan(here, 0, pages, mode=mode, calibration=dear)
        assert plan.threads == threads and plan.mode == mode


@pytest.mark.usefixtures("all_cpus")
def test_guesses_have_to_promise_more_than_measured_costs() -> None:
    costs = replace(CHEAP.costs, handover_us=0.0, handover_thread_us=0.0)
    pages = {PAGE: 1024}
    chosen = {}
    for call_us in range(20, 1000, 20):
        for measured in ((), ("page_us",)):
            known = Calibration(replace(costs, call_us=float(call_us)), measured=measured)
            assert known.worth == (0.1 if measured else 0.15)
            plan = make_plan(sockets(cores=1, caches=1), 1, pages, calibration=known)
            chosen[call_us, bool(measured)] = plan.threads
    assert set(chosen.values()) == {1, 2}
    differ = [us for us, measured in chosen if measured and chosen[us, False] < chosen[us, True]]
    assert differ and all(chosen[us, False] <= chosen[us, True] for us, _ in chosen)


def test_a_plan_says_why() -> None:
    plan = make_plan(machine(), 0, {PAGE: 100_000}, threads=2, calibration=Calibration())
    text = "\n".join(plan.reasons)
    assert "2 threads: asked for" in text and "expected: " in text and "CPUs " in text
    assert plan.expected_seconds > 0
    assert plan.expected_gbps == pytest.approx(100_000 * PAGE / plan.expected_seconds / 1e9)
    told = make_plan(machine(), 0, {PAGE: 100}, calibration=replace(CHEAP, note="a note"))
    assert told.reasons[-1] == "a note"


@given(
    st.lists(st.tuples(st.sampled_from([12, 16, 21, 30]), st.integers(1, 1000)), max_size=40),
    st.booleans(),
)
def test_pages_are_counted_by_size(extents: list[tuple[int, int]], alike: bool) -> None:
    window = np.zeros(len(extents), EXTENT)
    expected: Counter[int] = Counter()
    for entry, (shift, pages) in zip(window, extents, strict=True):
        entry["shift"], entry["pages"] = extents[0][0] if alike else shift, pages
        expected[1 << int(entry["shift"])] += pages
    assert extents_by_size(window) == expected


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    """A tree with a cgroup two levels deep, no limit on any level."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/elsewhere\n0::/pod/box\n")
    (tmp_path / "sys/fs/cgroup/pod/box").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("above", "own", "quota"),
    [
        (None, None, None),
        ("max 100000", "max 100000", None),
        ("max 100000", "250000 100000", 2.5),
        ("150000 100000", "400000 100000", 1.5),
        ("50000 100000", None, 0.5),
        ("100000", "1 0", None),
        ("-5 100000", "many", None),
    ],
)
def test_the_tightest_cpu_max_counts(
    cgroup: Path, above: str | None, own: str | None, quota: float | None
) -> None:
    for text, folder in ((above, "pod"), (own, "pod/box")):
        if text is not None:
            (cgroup / "sys/fs/cgroup" / folder / "cpu.max").write_text(text + "\n")
    assert cpu_quota(cgroup) == quota


@pytest.mark.parametrize("line", ["", "0::/../other", "4:cpu:/pod"])
def test_no_cgroup_of_version_2_is_no_limit(cgroup: Path, line: str) -> None:
    (cgroup / "sys/fs/cgroup/pod/cpu.max").write_text("100000 100000")
    (cgroup / "proc/self/cgroup").write_text(line)
    assert cpu_quota(cgroup) is None


@pytest.mark.usefixtures("all_cpus")
def test_a_quota_limits_threads_that_nobody_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # A limit of this process cannot be had without a cgroup to write to.
    monkeypatch.setattr(planned, "threads_within_quota", lambda: 3)
    plan = make_plan(sockets(), 1, {PAGE: 1 << 20}, calibration=CHEAP)
    assert plan.threads == 3 and "cpu.max" in plan.reasons[1]
    assert make_plan(sockets(), 1, {PAGE: 1 << 20}, threads=5, calibration=CHEAP).threads == 5


# --- kept and read back


def test_a_plan_without_a_smallest_piece_is_one_of_before() -> None:
    value = GOOD.as_dict()
    del value["smallest_bytes"]
    assert Plan.from_dict(value) == replace(GOOD, smallest_bytes=2 << 20)


def test_a_plan_survives_json() -> None:
    assert Plan.from_dict(json.loads(json.dumps(GOOD.as_dict()))) == GOOD
    made = make_plan(machine(), 0, {PAGE: 100_000, HUGE: 12})
    assert Plan.from_dict(json.loads(json.dumps(made.as_dict()))) == made


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("engine", "warp"),
        ("engine", None),
        ("threads", 0),
        ("threads", MAX_THREADS + 1),
        ("threads", True),
        ("threads", 2.0),
        ("threads", "2"),
        ("threads", 10**4000),
        ("threads", 3),  # two CPUs
        ("cpus", None),
        ("cpus", [0, -1]),
        ("cpus", [0, 1 << 16]),
        ("cpus", [0, "1"]),
        ("cpus", [0]),
        ("cpus", {"0": 1}),
        ("cpus", [0] * 5000),
        ("mode", "SYNC | ST"),  # and two threads
        ("mode", "SYNC | ASYNC"),
        ("mode", "MT"),
        ("mode", "FAST"),
        ("mode", 4),
        ("mode", ""),
        ("batch_bytes", 0),
        ("batch_bytes", 1 << 61),
        ("smallest_bytes", 0),
        ("smallest_bytes", 1.5),
        ("call_ms", -1),
        ("call_ms", float("nan")),
        ("order", "random"),
        ("expected_seconds", -0.1),
        ("expected_seconds", float("inf")),
        ("expected_gbps", float("nan")),
        ("expected_gbps", "fast"),
        ("reasons", "because"),
        ("reasons", [1]),
        ("reasons", ["x" * 2000]),
        ("colour", "blue"),
    ],
)
def test_each_impossible_field_is_named(field: str, value: Any) -> None:
    named = "threads" if field == "mode" and value == "SYNC | ST" else field
    with pytest.raises(ValueError, match=named):
        Plan.from_dict({**GOOD.as_dict(), field: value})


@pytest.mark.parametrize("field", [name for name in GOOD.as_dict() if name != "smallest_bytes"])
def test_each_missing_field_is_named(field: str) -> None:
    value = GOOD.as_dict()
    del value[field]
    with pytest.raises(ValueError, match=f"{field} is missing"):
        Plan.from_dict(value)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(_json)
def test_anything_else_is_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError):
        Plan.from_dict(value)


@given(st.sampled_from(list(GOOD.as_dict())), _json)
def test_any_field_is_read_or_refused(field: str, value: Any) -> None:
    try:
        plan = Plan.from_dict({**GOOD.as_dict(), field: value})
    except ValueError as error:
        assert field in str(error) or "threads" in str(error)
    else:
        assert Plan.from_dict(plan.as_dict()) == plan


# --- run


def test_a_plan_is_run_as_it_is() -> None:
    region = written()
    plan = plan_move(region.range(), 0)
    assert plan.threads == 1 and plan.expected_seconds == 0  # all is on node 0 already
    for given_plan in (plan, replace(plan, threads=3, cpus=(), mode=MigrateMode.ASYNC), GOOD):
        result = move(region.range(), 0, plan=given_plan)
        assert result.bytes_already == region.size
        assert result.plan == given_plan
        assert result.workers <= given_plan.threads


def test_what_contradicts_a_plan_is_refused() -> None:
    data = np.ones(1)
    with pytest.raises(ValueError, match="threads=3 contradicts the plan, which has 2"):
        move(data, 0, plan=GOOD, threads=3)
    with pytest.raises(ValueError, match=r"mode=.* contradicts the plan"):
        move(data, 0, plan=GOOD, mode=MigrateMode.ASYNC)
    assert move(data, 0, plan=GOOD, threads=2, mode=GOOD.mode).plan == GOOD
    with pytest.raises(ValueError, match="batch_bytes"):
        move(data, 0, plan=replace(GOOD, batch_bytes=0))
    with pytest.raises(TypeError, match="plan_move"):
        move(data, 0, plan=GOOD.as_dict())  # type: ignore[arg-type]


def test_cpus_that_were_taken_away_are_left_out() -> None:
    may = sorted(os.sched_getaffinity(0))
    away = max(may) + 1000
    region = written()
    mixed = move(region.range(), 0, plan=replace(GOOD, cpus=(may[0], away))).plan
    assert (mixed.threads, mixed.cpus) == (1, (may[0],))
    assert mixed.reasons[-1] == f"1 thread: the plan's CPUs {away} may not be used now"
    none = move(region.range(), 0, plan=replace(GOOD, cpus=(away, away))).plan
    assert set(none.cpus) <= set(may) and 1 <= none.threads <= 2
    assert len(none.cpus) == none.threads


def test_affinity_counts_when_the_plan_is_run() -> None:
    cpu = min(os.sched_getaffinity(0))

    def pinned() -> str:
        os.sched_setaffinity(0, {cpu})
        result = move(written().bytes, 0, plan=replace(GOOD, cpus=(cpu, cpu + 1)))
        return str((result.plan.threads, result.plan.cpus, result.bytes_already))

    assert in_a_child(pinned) == str((1, (cpu,), 4 * HUGE))


def test_plan_move_refuses_what_move_refuses() -> None:
    data = np.ones(1)
    with pytest.raises(NodeError):
        plan_move(data, 99)
    with pytest.raises(ValueError, match="threads"):
        plan_move(data, 0, threads=0)
    with pytest.raises(NodeError, match="source nodes is empty"):
        plan_move(data, 0, source=[])
    with pytest.raises(TypeError):
        plan_move(data, 0, mode="SYNC")  # type: ignore[arg-type]


# --- the commands


def run(*arguments: object, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)], input=text, capture_output=True, text=True, timeout=300
    )


def test_a_plan_goes_from_one_command_to_the_other(tmp_path: Path) -> None:
    me = os.getpid()
    told = run("plan", me, "--to", 0)
    assert told.returncode == 0 and told.stdout.startswith("Would move 0 B of process")
    assert told.stdout.splitlines() and "kernel engine" in told.stdout
    printed = run("plan", me, "--to", 0, "--threads", 2, "--mode", "light", "--json")
    assert (printed.returncode, printed.stderr) == (0, "")
    value = json.loads(printed.stdout)
    assert value["bytes_to_move"] == 0 and value["plan"]["mode"] == "SYNC_LIGHT"
    value["plan"].update(threads=2, cpus=[])
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(value))
    heap = written()
    where = f"{heap.address:#x}+{heap.size:#x}"
    for name, text in ((str(file), ""), ("-", json.dumps(value["plan"]))):
        done = run("move", me, "--to", 0, "--range", where, "--plan", name, "--json", text=text)
        assert (done.returncode, done.stderr) == (0, "")
        result = json.loads(done.stdout)
        assert result["plan"] == value["plan"] and result["bytes_already"] == heap.size
    refused = run("move", me, "--to", 0, "--plan", file, "--threads", 3)
    assert refused.returncode == 2 and "contradicts the plan" in refused.stderr
    refused = run("move", me, "--to", 0, "--plan", file, "--mode", "async")
    assert refused.returncode == 2 and "contradicts the plan" in refused.stderr
    assert run("move", me, "--to", 0, "--plan", file, "--dry-run").returncode == 2


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "[" * 100_000, '{"plan": 7}', "\x00", '{"threads": 1}', "x" * 2**21]
)
def test_files_that_are_no_plan(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    with pytest.raises(DescriptionError, match="- is no plan: ") as refused:
        read_plan("-")
    assert refused.value.hint and len(str(refused.value)) < 300


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    done = run("move", os.getpid(), "--to", 0, "--plan", tmp_path / "none")
    assert done.returncode == 1 and "cannot read the plan" in done.stderr
    (tmp_path / "bytes").write_bytes(b"\xff\xfe{}")
    done = run("move", os.getpid(), "--to", 0, "--plan", tmp_path / "bytes")
    assert done.returncode == 2 and "is no plan" in done.stderr

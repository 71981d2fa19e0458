# SPDX-License-Identifier: Apache-2.0
"""Watching a machine with two nodes, and moving on it from the live view and from asyncio.

Run by: pageferry lab run --topology two-node --memory 1536M --cpus 2
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from placement import PAGE, Memory, Script, nodes_of, on

import pageferry
from command import run
from pageferry.areas import areas
from pageferry.exporter import MachineCollector
from pageferry.scan import ProcessScan

sys.path.insert(0, os.fspath(Path(__file__).parents[1] / "host"))
from terminal import Terminal

SIZE = 32 << 20


def printed(*words: object) -> str:
    done = run(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def away():
    """A process that runs on node 0 and has its memory on node 1."""
    code = f"""
        from pathlib import Path
        Path("/proc/self/comm").write_text("!away")
        memory = Memory("base", {SIZE}, node=1)
        say(memory.address)
        while hear():
            memory.check(); say("whole")
    """
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})  # inherited from the beginning, also by threads of libraries
    try:
        script = Script(code)
    finally:
        os.sched_setaffinity(0, everywhere)
    with script as process:
        process.address = int(process.hear())
        yield process
        process.say("check")
        assert process.hear() == "whole"


def test_scan_and_metrics_tell_remote_memory(away):
    (stat,) = ProcessScan(lambda pid, name: pid == away.pid).refresh(30)
    assert stat.home == {0}
    assert SIZE <= stat.remote == stat.nodes[1] < SIZE + (64 << 20)
    families = {family.name: family for family in MachineCollector(["!aw*"], budget=30).collect()}
    (remote,) = families["pageferry_process_remote_bytes"].samples
    assert remote.value >= SIZE
    placed = families["pageferry_process_memory_bytes"].samples
    assert {sample.labels["node"] for sample in placed} == {"0", "1"}


def test_areas_tell_the_node_of_each_part():
    memory = Memory("base", 4 << 20, node=0)
    half = memory.words[: len(memory.words) // 2]
    pageferry.move(half, 1)
    ((area,), _) = areas(os.getpid(), memory.addresses_range, slots=4)
    assert area.nodes[1].tolist() == [1 << 20, 1 << 20, 0, 0]
    assert area.nodes[0].tolist() == [0, 0, 1 << 20, 1 << 20]
    shown = printed("locate", "--self", "--range",
                    f"{memory.address:#x}+4M", "--plot", "-")  # fmt: skip
    strip = next(line.split()[1] for line in shown.splitlines() if line.startswith("anonymous"))
    assert strip == "1" * (len(strip) // 2) + "0" * (len(strip) // 2)


def test_on_local_node_brings_each_page_back():
    with on(0, 1):  # a page here, a page there
        mixed = Memory("base", 2 << 20)
    huge = Memory("thp", 4 << 20, node=1)
    before = pageferry.locate(mixed.words, statuses=True).statuses
    assert set(before["status"]) == {0, 1}
    allowed = os.sched_getaffinity(0)
    try:
        for cpu, node in ((0, 0), (1, 1)):
            os.sched_setaffinity(0, {cpu})
            with pageferry.on_local_node(mixed.words, huge.words) as results:
                assert all(result.complete and result.node == node for result in results)
                assert mixed.nodes() == {node: 2 << 20} and huge.nodes() == {node: 4 << 20}
            after = pageferry.locate(mixed.words, statuses=True).statuses
            assert (after == before).all()
            assert huge.nodes() == {1: 4 << 20}
    finally:
        os.sched_setaffinity(0, allowed)
    with pageferry.on_local_node(huge.words, node=0, back=False):
        pass
    assert huge.nodes() == {0: 4 << 20}
    mixed.check()
    huge.check()


def test_a_cancelled_move_has_ended_when_the_await_is_over():
    memory = Memory("base", 64 << 20, node=0)

    async def cancelled(after: float) -> None:
        task = asyncio.create_task(pageferry.move_async(memory.words, 1))
        await asyncio.sleep(after)
        # A fast machine may be done by then; on others it ends between two batches.
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                await task
        before = pageferry.locate(memory.words).nodes
        await asyncio.sleep(0.2)
        assert pageferry.locate(memory.words).nodes == before

    for after in (0.0, 0.05, 0.2):
        asyncio.run(cancelled(after))
    result = asyncio.run(pageferry.move_async(memory.words, 1))
    assert result.complete and memory.nodes() == {1: 64 << 20}
    memory.check()


def test_matrix_measures_both_directions():
    value = json.loads(
        printed("bench", "matrix", "--lab", "never", "--size", "4M", "--repeats", 1, "--json")
    )
    names = [matrix["name"] for matrix in value["matrices"]]
    assert names == ["latency", "copy", "migration-4KiB", "migration-2MiB"]
    for matrix in value["matrices"]:
        for row, cells in enumerate(matrix["cells"]):
            for column, cell in enumerate(cells):
                if matrix["name"].startswith("migration") and row == column:
                    assert cell is None
                else:
                    assert cell["median"] > 0


def test_machine_picture_has_both_nodes():
    shown = printed("topology", "--plot", "-")
    assert "node 0" in shown and "node 1" in shown and "distance" in shown


def test_dlpack_moves():
    class Tensor:
        def __init__(self, array):
            self._array = array

        def __dlpack__(self, **options):
            return self._array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self._array.__dlpack_device__()

    memory = Memory("base", 256 * PAGE, node=0)
    assert pageferry.move(Tensor(np.asarray(memory.words)), 1).complete
    assert memory.nodes() == {1: 256 * PAGE}
    memory.check()


def test_the_live_view_finds_remote_memory_and_moves_it(away):
    program = [sys.executable, "-m", "pageferry", "top", "--interval", "3", "--sort", "name"]
    with Terminal(program, columns=90, lines=12) as top:  # emulated, a screen takes its time
        line = r"!away +[\d.]+ MiB +[3-9]\d\.\d MiB"  # resident, remote
        top.until(lambda: re.search(line, top.screen), "the process")
        top.shows("NODE 1")
        top.send("\x1b[B")
        top.send("m")
        top.shows(f"move !away ({away.pid}) to node:")
        top.send("0\r")
        top.shows("y/n")
        top.send("y")
        top.shows("to node 0: moved")
        assert nodes_of(away.address, SIZE, away.pid) == {0: SIZE}
        top.send("q")
        assert top.ended() == 0

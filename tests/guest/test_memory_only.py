# SPDX-License-Identifier: Apache-2.0
"""A node with memory and without CPUs, as CXL memory is.

Run by: pageferry lab run --topology memory-only --memory 512M
"""

from __future__ import annotations

import json

import pytest
from placement import Memory, nodes_in_sysfs

from pageferry import cli, locate, move, topology

SIZE = 8 << 20


def test_the_machine() -> None:
    assert nodes_in_sysfs() == ("0-1", "0-1", "0", "10 30")
    near, far = topology().nodes
    assert near.cpus and not far.cpus
    assert far.has_memory and topology().target_nodes == (0, 1)
    assert near.distances[1] > near.distances[0]
    if near.tier is not None:  # kernels with memory tiers
        assert far.tier is not None and far.tier > near.tier


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["base", "thp", "shm"])
def test_there_and_back(kind: str, threads: int | str) -> None:
    memory = Memory(kind, SIZE, node=0)
    for node in (1, 0):
        result = move(memory.words, node, threads=threads)
        assert result.complete and result.bytes_moved == SIZE
        assert memory.nodes() == {node: SIZE}
        assert set(result.plan.cpus) <= topology().nodes[0].cpus
        memory.check()


def test_memory_that_began_there() -> None:
    memory = Memory("thp", SIZE, node=1)
    assert memory.nodes() == {1: SIZE}
    assert locate(memory.words).nodes == {1: {"base": 0, "thp": SIZE, "hugetlb": 0}}
    assert move(memory.words, 0, source=[1]).bytes_moved == SIZE
    memory.check()


def test_topology_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["topology", "--json"]) == 0
    nodes = json.loads(capsys.readouterr().out)["nodes"]
    assert [node["cpus"] for node in nodes][1] == []
    assert cli.main(["topology"]) == 0
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.split()[:1] == ["1"])
    assert "none" in line

# SPDX-License-Identifier: Apache-2.0
"""A node with CPUs and without memory: nothing can move there.

Run by: pageferry lab run --topology memoryless --memory 512M
"""

from __future__ import annotations

import errno
import os

import pytest
from placement import Memory, nodes_in_sysfs

from pageferry import NodeError, cli, move, topology

SIZE = 8 << 20


def test_the_machine() -> None:
    assert nodes_in_sysfs() == ("0-2", "0,2", "0-2", "10 20 20")
    here = topology()
    assert here.node_ids == (0, 1, 2)
    assert here.memory_nodes == here.target_nodes == (0, 2)
    assert here.nodes[1].cpus and here.nodes[1].memory_total == 0


@pytest.mark.parametrize("own", [True, False])
def test_no_move_to_a_node_without_memory(own: bool) -> None:
    memory = Memory("base", SIZE, node=0)
    with pytest.raises(NodeError, match="node 1 has no memory") as caught:
        move(memory.addresses_range, 1, pid=None if own else os.getpid())
    assert caught.value.errno == errno.ENODEV
    if own:
        assert "0,2" in str(caught.value)
    assert memory.nodes() == {0: SIZE}


def test_the_others_work() -> None:
    for kind in ("base", "thp"):
        memory = Memory(kind, SIZE, node=0)
        for node in (2, 0, 2):
            result = move(memory.words, node, threads=3)
            assert result.complete and result.bytes_moved == SIZE
            assert memory.nodes() == {node: SIZE}
        assert move(memory.words, 0, source=[1]).bytes_elsewhere == SIZE
        memory.check()


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--dry-run"]):
        assert cli.main(["move", str(os.getpid()), "--to", "1", *more]) == 2
        assert "node 1 has no memory" in capsys.readouterr().err
    assert cli.main(["topology"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["1"])
    assert line.split()[1] == "none"

# SPDX-License-Identifier: Apache-2.0
"""Node ids with a hole: 0 and 2.

Run by: pageferry lab run --topology sparse --memory 512M
"""

from __future__ import annotations

import errno
import json
import os

import pytest
from placement import Memory, nodes_in_sysfs

from pageferry import NodeError, cli, locate, move, topology

SIZE = 8 << 20


def test_the_machine() -> None:
    assert nodes_in_sysfs() == ("0,2", "0,2", "0", "10 20")
    here = topology()
    assert here.node_ids == here.target_nodes == (0, 2)
    assert here.node(2).distances.keys() == {0, 2}


@pytest.mark.parametrize("kind", ["base", "thp"])
def test_there_and_back(kind: str) -> None:
    memory = Memory(kind, SIZE, node=0)
    for node in (2, 0):
        result = move(memory.words, node, statuses=True, threads=2)
        assert result.complete and result.bytes_moved == SIZE
        assert result.statuses is not None and (result.statuses["status"] == node).all()
        assert memory.nodes() == {node: SIZE}
        assert set(locate(memory.words).nodes) == set(result.verified) == {node}
    assert move(memory.words, 2, source=2).bytes_elsewhere == SIZE
    assert move(memory.words, 2, source=[0]).bytes_moved == SIZE
    memory.check()


@pytest.mark.parametrize("node", [1, 3])
def test_the_hole_is_no_node(node: int) -> None:
    memory = Memory("base", SIZE, node=0)
    for source, target in ((None, node), ([node], 0)):
        with pytest.raises(NodeError, match="does not exist") as caught:
            move(memory.words, target, source=source)
        assert caught.value.errno == errno.ENODEV and "0,2" in str(caught.value)


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    memory = Memory("base", 1 << 20, node=2)
    here = [str(os.getpid()), "--range", f"{memory.address}+1M"]
    assert cli.main(["move", *here, "--to", "0", "--from", "!0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes_moved"] == 1 << 20
    assert cli.main(["move", *here, "--to", "+1", "--from", "0-2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes_moved"] == 1 << 20
    assert memory.nodes() == {2: 1 << 20}
    assert cli.main(["move", *here, "--to", "1"]) == 2
    assert "nodes here: 0,2" in capsys.readouterr().err
    assert cli.main(["topology"]) == 0
    memory.check()

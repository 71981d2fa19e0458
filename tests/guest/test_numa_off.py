# SPDX-License-Identifier: Apache-2.0
"""A kernel that was told to know of one node only.

Run by: pageferry lab run --topology two-node --memory 512M --append numa=off
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from placement import Memory

from pageferry import NodeError, cli, locate, move, topology

SIZE = 8 << 20


def test_the_machine() -> None:
    assert "numa=off" in Path("/proc/cmdline").read_text()
    assert topology().node_ids == topology().target_nodes == (0,)
    assert len(topology().cpus) == 2


@pytest.mark.parametrize("kind", ["base", "thp"])
def test_everything_is_there_already(kind: str) -> None:
    memory = Memory(kind, SIZE)
    result = move(memory.words, 0, threads=2)
    assert result.complete and result.bytes_already == SIZE and result.bytes_moved == 0
    assert locate(memory.words).nodes == {
        0: {name: SIZE if name == kind else 0 for name in ("base", "thp", "hugetlb")}
    }
    memory.check()


@pytest.mark.parametrize("own", [True, False])
def test_there_is_no_other_node(own: bool) -> None:
    memory = Memory("base", SIZE)
    with pytest.raises(NodeError, match=r"node 1 does not exist.*nodes here: 0") as caught:
        move(memory.addresses_range, 1, pid=None if own else os.getpid())
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(NodeError):
        move(np.ones(1), 0, source=[1])


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["move", str(os.getpid()), "--to", "0"]) == 0
    assert "already there" in capsys.readouterr().out
    assert cli.main(["move", str(os.getpid()), "--to", "1"]) == 2
    assert "nodes here: 0" in capsys.readouterr().err
    assert cli.main(["topology"]) == 0
    assert cli.main(["locate", "--self"]) == 0

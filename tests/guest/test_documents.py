# SPDX-License-Identifier: Apache-2.0
"""The blocks of tutorial and how-to guides that need two nodes.

Run by: pageferry lab run --topology two-node --memory 1536M --cpus 2
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from placement import on

import documents

NANOSLEEP = ("35 ", "230 ")  # nanosleep(2) and clock_nanosleep(2) of x86-64


def anonymous(pid: int) -> dict[int, int]:
    """Pages of a process's own by node, by numa_maps."""
    found: dict[int, int] = {}
    for line in Path(f"/proc/{pid}/numa_maps").read_text().splitlines():
        words = dict(word.partition("=")[::2] for word in line.split())
        if "anon" in words and "file" not in words:
            for node in (0, 1):
                found[node] = found.get(node, 0) + int(words.get(f"N{node}", 0))
    return found


PAGES = [
    page
    for page in documents.PAGES
    if any(block.mark == documents.TWO_NODES for block in documents.blocks(page))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_for_two_nodes(page: Path, tmp_path: Path) -> None:
    """Beside a process on node 0, which those about processes move to node 1."""
    ours = [block for block in documents.blocks(page) if block.mark == documents.TWO_NODES]
    assert len(PAGES) >= 5

    server = tmp_path / "redis-server"  # one of the pages looks for it by name
    server.symlink_to(shutil.which("sleep") or "sleep")
    with on(0):  # the program inherits it
        process = subprocess.Popen([server, "600"])
    try:
        # Until it sleeps it maps another page of its libraries at any time.
        while not Path(f"/proc/{process.pid}/syscall").read_text().startswith(NANOSLEEP):
            assert process.poll() is None
            time.sleep(0.01)
        number = str(process.pid)
        ran = documents.run_shell(page, documents.TWO_NODES, tmp_path, PID=number, PIDS=number)
        ran += documents.run_python(page, documents.TWO_NODES, pid=process.pid)
        assert ran == sum(block.language != "check" for block in ours)
        pages = anonymous(process.pid)
    finally:
        process.kill()
        process.wait()
    here = 1 if page.stem in ("empty-a-node", "move-a-database", "README") else 0
    assert pages[here] > 10 and pages[1 - here] == 0

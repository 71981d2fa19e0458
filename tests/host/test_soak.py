# SPDX-License-Identifier: Apache-2.0
"""Two seconds of make soak, and whether it would see what it is for."""

from __future__ import annotations

import gc
import importlib.util
import threading
from pathlib import Path

import numpy as np
import pytest

from pageferry import move, topology
from pageferry.bench.memory import PageArray
from pageferry.pages import PAGE_SIZE

ROOT = Path(__file__).parents[2]
specification = importlib.util.spec_from_file_location("soak", ROOT / "scripts/soak.py")
assert specification and specification.loader
soak = importlib.util.module_from_spec(specification)
specification.loader.exec_module(soak)


def test_two_seconds() -> None:
    threads = threading.active_count()
    result = soak.soak(2.0, 1)
    assert result["wrong"] == [] and result["moves"] > 0
    assert result["writes"] > 0 and result["samples"] and result["latencies"]
    assert threading.active_count() == threads


def test_what_grows_is_named() -> None:
    steady = dict.fromkeys(soak.ROOM, 5.0)
    samples = [{"at": float(i), **steady} for i in range(40)]
    assert soak.grown(samples) == []
    for i, sample in enumerate(samples):
        sample["descriptors"] += i // 10
    assert soak.grown(samples) == ["descriptors grew from 6 to 8"]
    assert soak.grown(samples[:3]) == []  # too short to say


def test_a_lost_write_and_a_changed_byte_are_named() -> None:
    part = soak.Written(PAGE_SIZE)
    part.lines[7, soak.WRITERS] += np.uint64(1)
    part.end.set()
    for thread in part.threads:
        thread.join()
    part.lines[9, 0] -= np.uint64(1)
    assert part.finish() == [
        "a byte that nobody wrote has changed",
        "writer 0 lost a write",
    ]


@pytest.mark.parametrize("engine", ["kernel", "user"])
def test_a_move_leaves_nothing_to_the_collector_of_cycles(engine: str) -> None:
    """It would hold the arrays of the run until it comes round, which may be a long time."""
    memory = PageArray(256, PAGE_SIZE)
    node = topology().memory_nodes[0]
    move(memory.words, node, engine=engine)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        move(memory.words, node, engine=engine)
        gc.collect()
        ours = [type(left).__name__ for left in gc.garbage if "pageferry" in type(left).__module__]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert ours == []

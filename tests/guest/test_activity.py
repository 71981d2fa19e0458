# SPDX-License-Identifier: Apache-2.0
"""Moving only hot, or only idle memory: by mappings, and by pages where the kernel tracks them.

Run by: pageferry lab run --topology two-node --memory 1536M --cpus 2
and, with idle page tracking: scripts/test_kernel idle
"""

from __future__ import annotations

import pytest
from placement import HUGE, PAGE, Script, nodes_of

from pageferry import MoveResult, move, page_idle
from pageferry.activity import Activity
from pageferry.target import resolve

SIZE = 4 << 20
# An access through an entry in the TLB leaves no trace; mprotect(2) takes such entries away.
CODE = f"""
    memories = [Memory(kind, {SIZE}, node=0) for kind in ("base", "shm", "thp")]
    say(*(memory.address for memory in memories))
    libc = ctypes.CDLL(None, use_errno=True)
    while line := hear():
        memory = memories[int(line)]
        for protection in (1, 3):
            assert not libc.mprotect(ctypes.c_void_p(memory.address), {SIZE}, protection)
        int(memory.words[5 * 512 + 1]), int(memory.words[100 * 512])
        say("touched")
    for memory in memories:
        memory.check()
    say("whole")
"""
PAGES = page_idle.available()


@pytest.fixture(scope="module")
def process():
    with Script(CODE) as script:
        script.starts = [int(word) for word in script.hear().split()]
        yield script
        script.say()
        assert script.hear() == "whole"


def moved(process: Script, which: int, node: int = 1, **options: object) -> tuple[MoveResult, dict]:
    start = process.starts[which]
    result = move(range(start, start + SIZE), node, pid=process.pid, exact=True, **options)
    assert result.complete
    return result, nodes_of(start, SIZE, process.pid)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["base", "shm", "thp"])
def test_only_what_is_wanted_moves(process: Script, which: int) -> None:
    other = (which + 1) % 3
    activity = Activity(resolve(None, process.pid))
    assert activity.way == ("pages" if PAGES else "mappings")
    process.say(which)
    assert process.hear() == "touched"
    hot = SIZE if not PAGES else HUGE if which == 2 else 2 * PAGE
    result, nodes = moved(process, which, hot=activity)
    assert result.bytes_moved == hot and result.bytes_other_activity == SIZE - hot
    assert nodes == {node: size for node, size in ((0, SIZE - hot), (1, hot)) if size}
    assert bool(result.warnings) != PAGES
    assert not moved(process, other, hot=activity)[0].bytes_moved
    # What moved keeps its bits: the rest is what is idle.
    result, nodes = moved(process, which, idle=activity)
    assert result.bytes_moved == SIZE - hot and nodes == {1: SIZE}
    result, nodes = moved(process, other, idle=activity)
    assert result.bytes_moved == SIZE and nodes == {1: SIZE}
    for at in (which, other):
        assert moved(process, at, node=0)[1] == {0: SIZE}


@pytest.mark.skipif(not PAGES, reason="this kernel has no idle page tracking")
def test_it_watches_and_moves_in_one_call(process: Script) -> None:
    result, nodes = moved(process, 0, idle=0.01)
    assert result.bytes_moved == SIZE and nodes == {1: SIZE} and not result.warnings

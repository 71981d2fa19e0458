# SPDX-License-Identifier: Apache-2.0
"""Another process of the same user, at each level at which Yama restricts ptrace(2).

Yama is asked when somebody attaches (PTRACE_MODE_ATTACH). What pageferry asks of the kernel, by
move_pages(2) and the files of /proc/PID, is the right to read (PTRACE_MODE_READ), which Yama does
not look at: moves work at each level, for the user who may, and for nobody else.
Run by: pageferry lab run --topology two-node --memory 896M --cpus 2
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from placement import Forked, Memory, become_nobody, nodes_of

from pageferry import PageferryError, locate, move, plan_move
from pageferry.procfs import yama_scope

SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
SIZE = 1 << 20
PTRACE_SEIZE = 0x4206
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def theirs() -> Iterator[tuple[Forked, int]]:
    """A process of another user's than root, and where its memory is."""

    def holds(parent: Forked) -> None:
        memory = Memory("base", SIZE, node=0)
        become_nobody()
        parent.say(memory.address)
        while parent.hear() == "look":
            memory.check()
            parent.say("whole")

    with Forked(holds) as child:
        yield child, int(child.hear())
        child.say("end")


def attach(pid: int) -> int:
    """Errno of an attempt to attach, which is what Yama is about; 0: it was allowed."""
    null = ctypes.c_void_p()
    return ctypes.get_errno() if libc.ptrace(PTRACE_SEIZE, pid, null, null) else 0


@pytest.mark.parametrize("scope", [0, 1, 2, 3])
def test_each_level(theirs: tuple[Forked, int], scope: int) -> None:
    """The last one cannot be left again: it comes last, in the last file of its guest."""
    child, address = theirs
    memory = range(address, address + SIZE)
    roots = os.getpid()

    def work(parent: Forked) -> None:
        """The same user, in a process that did not start the other one."""
        become_nobody()
        parent.say(attach(child.pid))
        planned = plan_move(memory, 1, pid=child.pid)
        complete = move(memory, 1, pid=child.pid, threads=2).complete
        where = locate(memory, pid=child.pid)
        parent.say(planned.engine, complete, where.on(1))
        try:
            move(memory, 1, pid=roots)
        except PageferryError as error:
            parent.say(error.name, bool(error.hint))

    SCOPE.write_text(str(scope))
    assert yama_scope() == scope
    with Forked(work) as other:
        assert int(other.hear()) == (errno.EPERM if scope else 0)
        assert other.hear() == f"kernel True {SIZE}"
        assert nodes_of(address, SIZE, child.pid) == {1: SIZE}
        assert other.hear() in ("EPERM True", "EACCES True")
    assert move(memory, 0, pid=child.pid, threads=2).complete  # root, which may
    assert nodes_of(address, SIZE, child.pid) == {0: SIZE}
    child.say("look")
    assert child.hear() == "whole"

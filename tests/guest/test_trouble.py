# SPDX-License-Identifier: Apache-2.0
"""What goes wrong during a move: a full node, a process that ends or works on, a cpuset.

Run by: pageferry lab run --topology two-node --memory 1536M --cpus 2
"""

from __future__ import annotations

import errno
import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from placement import HUGE, PAGE, Forked, Memory, in_a_child, nodes_of, on

from pageferry import (
    NodeError,
    ProcessGoneError,
    Progress,
    engine,
    locate,
    move,
    plan,
    populate,
    topology,
)
from pageferry.topology import node_free

CGROUP = Path("/sys/fs/cgroup")


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "FIRST_BATCH_BYTES", 256 << 10)
    monkeypatch.setattr(plan, "CALL_MS", 0)
    monkeypatch.setattr(engine, "_POLL_US", 1)


# --- a full node


@pytest.fixture
def full_node_1(pools: tuple[Path, Path]) -> Path:
    """Node 1 with little left: hugetlb pages take its memory without waking the OOM killer."""
    _, pool = pools
    gc.collect()  # memory of earlier tests would become free in the middle
    Path("/proc/sys/vm/drop_caches").write_text("3")  # or the move itself would push them out
    for _ in range(10):
        pool.write_text("100000")
        if node_free(1) < 64 << 20:
            break
    # So that something can move, above what the kernel keeps for itself (some 20 MiB).
    pool.write_text(str(int(pool.read_text()) - 24))
    return pool


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["base", "thp"])
def test_full_node(kind: str, threads: int, full_node_1: Path) -> None:
    size = populate.room(1) + (64 << 20)  # what others may give back meanwhile
    size += -size % HUGE
    memory = Memory(kind, size, node=0)
    result = move(memory.words, 1, threads=threads, statuses=True)
    assert result.stopped == errno.ENOMEM and not result.complete
    assert 0 < result.bytes_moved < size
    moved = result.bytes_moved + result.bytes_already
    assert moved + result.bytes_failed + result.bytes_skipped + result.bytes_elsewhere == size
    assert set(result.failed) == {errno.ENOMEM}
    where = memory.nodes()
    assert where[0] + where[1] == size
    assert where[1] == moved
    memory.check()
    assert result.as_dict()["stopped"] == "ENOMEM"
    # Asked again it takes what has become free meanwhile, and nothing comes back.
    again = move(memory.words, 1, threads=threads, exact=True)
    assert again.stopped in (errno.ENOMEM, 0)
    assert memory.nodes().get(1, 0) >= moved
    memory.check()
    # With room again, all of it moves.
    full_node_1.write_text("0")
    assert move(memory.words, 1, threads=threads).complete
    assert memory.nodes() == {1: size}
    memory.check()


# --- a process that ends


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("reaped", [True, False])
def test_killed_during_the_move(small_batches: None, whole: bool, reaped: bool) -> None:
    size = 32 << 20

    def work(parent: Forked) -> None:
        memory = Memory("base", size, node=0)
        parent.say(memory.address)
        parent.hear()

    with Forked(work) as child:
        start = int(child.hear())
        asked = 0

        def kill(now: Progress) -> None:
            nonlocal asked
            if now.bytes_moved and not asked:
                asked += 1
                child.kill(reap=reaped)

        target = None if whole else range(start, start + size)
        try:
            result = move(target, 1, pid=child.pid, progress=kill, threads=1)
        except ProcessGoneError as error:
            assert error.errno == errno.ESRCH
        else:
            assert result.stopped == errno.ESRCH and not result.complete
            assert 0 < result.bytes_moved < size
        assert asked == 1
        assert child.wait() == -9


# --- a process that works on


def test_a_process_that_writes_forks_and_unmaps() -> None:
    def work(parent: Forked) -> None:
        kept = Memory("base", 2 << 20, node=0)
        written = Memory("base", 4 << 20, node=0)
        lines = written.words.reshape(-1, 8)
        end = threading.Event()
        rounds = [0, 0, 0]
        faults: list[str] = []

        def write() -> None:
            while not end.is_set():
                rounds[0] += 1
                lines[:, 0] = rounds[0]
                if (lines[:, 0] != rounds[0]).any():
                    faults.append("a write got lost")

        def fork() -> None:
            while not end.is_set():
                pid = os.fork()
                if pid == 0:
                    code = 1
                    try:
                        kept.check()
                        code = 0
                    finally:
                        os._exit(code)
                if os.waitpid(pid, 0)[1]:
                    faults.append("a forked child saw wrong bytes")
                rounds[1] += 1

        def unmap() -> None:
            while not end.is_set():
                memory = Memory("base", 1 << 20)
                memory.check()
                del memory
                rounds[2] += 1

        threads = [threading.Thread(target=what) for what in (write, fork, unmap)]
        for thread in threads:
            thread.start()
        parent.say("begun")
        parent.hear()
        while min(rounds) == 0 and all(thread.is_alive() for thread in threads):
            time.sleep(0.01)  # they wait for a CPU
        end.set()
        for thread in threads:
            thread.join()
        kept.check()
        expected = written._expected(0).reshape(-1, 8)
        assert (lines[:, 1:] == expected[:, 1:]).all()
        assert (lines[:, 0] == rounds[0]).all()
        assert not faults, faults
        assert min(rounds) > 0, rounds
        parent.say("whole")

    with Forked(work) as child:
        assert child.hear() == "begun"
        moved = 0
        for node in (1, 0) * 4:
            result = move(pid=child.pid, node=node, threads=2)
            assert set(result.failed) <= {errno.EACCES, errno.EBUSY}
            assert result.stopped == 0
            moved += result.bytes_moved
        assert moved > 1 << 20  # not what a forked child shares at that moment
        child.say("end")
        assert child.hear() == "whole"


# --- a cpuset


@pytest.fixture
def only_node_0() -> Iterator[Path]:
    group = CGROUP / "pageferry-test"
    group.mkdir()
    try:
        (group / "cpuset.mems").write_text("0")
        yield group
    finally:
        group.rmdir()


def test_cpuset_of_this_process(only_node_0: Path) -> None:
    def moves() -> object:
        (only_node_0 / "cgroup.procs").write_text(str(os.getpid()))
        memory = Memory("base", 1 << 20)
        errors = []
        for call in (
            lambda: move(memory.words, 1),
            lambda: move(memory.addresses_range, 1, pid=os.getpid()),
        ):
            try:
                call()
            except NodeError as error:
                errors.append((error.name, bool(error.hint)))
        here = topology()
        memory.check()
        return errors, here.target_nodes, here.memory_nodes, memory.nodes()

    answer = in_a_child(moves)
    assert answer == repr(([("EACCES", True)] * 2, (0,), (0, 1), {0: 1 << 20}))


def test_a_cpuset_that_shrinks_after_the_topology_was_read(only_node_0: Path) -> None:
    def moves() -> object:
        with on(1):
            memory = Memory("base", 1 << 20)
        assert move(memory.words, 0).complete and move(memory.words, 1).complete
        (only_node_0 / "cgroup.procs").write_text(str(os.getpid()))
        move(memory.words, 0)
        try:
            move(memory.words, 1)
        except NodeError as error:
            return error.name, memory.nodes()
        return "moved"

    assert in_a_child(moves) == repr(("EACCES", {0: 1 << 20}))


def test_cpuset_of_another_process(only_node_0: Path) -> None:
    def work(parent: Forked) -> None:
        memory = Memory("base", 1 << 20, node=0)
        parent.say(memory.address)
        parent.hear()
        memory.check()
        parent.say("whole")

    with Forked(work) as child:
        start = int(child.hear())
        (only_node_0 / "cgroup.procs").write_text(str(child.pid))
        for target in (None, range(start, start + (1 << 20))):
            with pytest.raises(NodeError, match=r"cpuset\.mems") as caught:
                move(target, 1, pid=child.pid)
            assert caught.value.errno == errno.EACCES
        assert nodes_of(start, 1 << 20, child.pid) == {0: 1 << 20}
        child.say()
        assert child.hear() == "whole"


def test_a_terabyte_with_pages_on_both_nodes() -> None:
    import mmap

    import numpy as np

    noreserve = 0x4000
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | noreserve
    with mmap.mmap(-1, 1 << 40, flags=flags) as region:
        region.madvise(mmap.MADV_NOHUGEPAGE)
        view = np.frombuffer(region, np.uint8)
        places = [0, PAGE, 1 << 33, (1 << 39) + 5 * PAGE, (1 << 40) - PAGE]
        for number, place in enumerate(places):
            with on(number % 2):
                view[place] = number + 1
        result = move(view, 1, statuses=True)
        assert result.bytes_moved == 3 * PAGE and result.bytes_already == 2 * PAGE
        assert locate(view).on(1) == 5 * PAGE
        assert [int(view[place]) for place in places] == [1, 2, 3, 4, 5]
        del view

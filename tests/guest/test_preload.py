# SPDX-License-Identifier: Apache-2.0
"""The system calls by several threads, and the preload library, on a machine with two nodes.

Run by: pageferry lab run --topology two-node --memory 896M --cpus 2

``PAGEFERRY_DIFFERENTIAL=N`` has each seed of the differential test make N random calls.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from placement import HUGE, PAGE, Forked, Memory, Pinned, Script

from pageferry import flags, locate, syscalls
from pageferry._native import ffi, lib
from pageferry.preload import Counters, environment
from pageferry.syscalls import UNWRITTEN, get_mempolicy, mbind, migrate_pages, move_pages

SIZE = 16 << 20
MOVE_MT = flags.MPOL_MF_MOVE | flags.MPOL_MF_MOVE_MT
ROOT = Path(__file__).parents[2]
ROUNDS = os.environ.get("PAGEFERRY_DIFFERENTIAL", "40")


def program(name: str) -> Path:
    path = ROOT / f"build-tests-gcc/tests/c/test-{name}"
    if not path.exists():
        pytest.skip(f"{path} is not there: tests/host/test_c_programs.py builds it")
    return path


def run(*command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


# --- the same as the kernel


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_calls_answer_as_the_kernel_does(seed: int) -> None:
    with Counters() as counters:
        variables = environment("always", threads=3, stats=counters.path)
        done = run(program("preload_differential"), ROUNDS, seed, **variables)
        counts = counters.read()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"preload differential: ok, {ROUNDS} calls, 2 nodes\n"
    assert counts.calls > 10 and counts.pages > 100 and counts.workers >= 1


def test_a_program_sees_no_difference() -> None:
    done = run(program("preload"), **environment("always", threads=2))
    assert (done.returncode, done.stdout, done.stderr) == (0, "preload: ok\n", "")


# --- move_pages


@pytest.mark.parametrize("kind", ["base", "thp"])
def test_one_big_call(kind: str) -> None:
    memory = Memory(kind, SIZE, node=0)
    settings = ffi.new("struct pf_mt *")
    settings.threads = 2
    settings.measure = 1
    pages = memory.addresses
    status = np.full(len(pages), UNWRITTEN, np.int32)
    # A helper that has no CPU before the caller is done was not there: again, there and back.
    for turn in range(1, 101):
        node = turn % 2
        nodes = np.full(len(pages), node, np.int32)
        result = lib.pf_mt_move_pages(
            settings, 0, len(pages), ffi.cast("uint64_t *", pages.ctypes.data),
            ffi.cast("int32_t *", nodes.ctypes.data), ffi.cast("int32_t *", status.ctypes.data),
            MOVE_MT,
        )  # fmt: skip
        assert result == 0 and set(status) == {node} and memory.nodes() == {node: SIZE}
        memory.check()
        if turn >= 2 and settings.workers == 2:
            break
    assert settings.calls == turn and settings.passed == 0 and settings.repeated == 0
    assert settings.pages == turn * len(pages) and settings.bytes == turn * SIZE
    assert settings.workers == 2


def test_every_base_page_of_huge_pages() -> None:
    """The kernel moves the whole page with the first address, and says EBUSY to the second."""
    memory = Memory("thp", SIZE, node=0)
    pages = np.arange(memory.address, memory.address + SIZE, PAGE, dtype=np.uint64)
    answer = move_pages(0, pages, 1, MOVE_MT, threads=2)
    expected = np.ones(len(pages), np.int32)
    expected[1 :: HUGE // PAGE] = -errno.EBUSY
    assert answer.not_moved == 0 and (answer.status == expected).all()
    assert memory.nodes() == {1: SIZE}
    memory.check()


@pytest.mark.parametrize("target", [0, 1])
def test_pinned_pages_in_one_group(target: int) -> None:
    """All pages are tried, no status is written, and the return value is what stayed."""
    memory = Memory("base", SIZE, node=1 - target)
    stuck = [memory.address + place * PAGE for place in (5, 2000, 4095)]
    pinned = Pinned(stuck)
    answer = move_pages(0, memory.addresses, target, MOVE_MT, threads=2)
    assert answer.not_moved == 3 and set(answer.status) == {UNWRITTEN}
    assert memory.nodes() == {target: SIZE - 3 * PAGE, 1 - target: 3 * PAGE}
    pinned.release()
    memory.check()


def test_a_pinned_page_stops_the_groups_after_it() -> None:
    memory = Memory("base", SIZE, node=0)
    pages = memory.addresses
    move_pages(0, pages[3000:3001], 1)  # is there already: a group ends here
    pinned = Pinned([int(pages[700])])
    answer = move_pages(0, pages, 1, MOVE_MT, threads=2)
    assert answer.not_moved == len(pages) - 3000
    assert (answer.status[:3000] == UNWRITTEN).all() and answer.status[3000] == 1
    assert (answer.status[3001:] == UNWRITTEN).all()
    where = move_pages(0, pages, None, 0).status
    assert where[700] == 0 and set(where[3001:]) == {0}
    assert set(np.delete(where[:3001], 700)) == {1}
    pinned.release()
    memory.check()


def test_another_process() -> None:
    def work(parent: Forked) -> None:
        memory = Memory("base", SIZE, node=0)
        parent.say(memory.address)
        parent.hear()
        memory.check()
        parent.say("whole")

    with Forked(work) as child:
        address = int(child.hear())
        pages = np.arange(address, address + SIZE, PAGE, dtype=np.uint64)
        answer = move_pages(child.pid, pages, 1, MOVE_MT, threads=2)
        assert answer.not_moved == 0 and set(answer.status) == {1}
        assert locate(range(address, address + SIZE), pid=child.pid).on(1) == SIZE
        child.say()
        assert child.hear() == "whole"


# --- mbind


@pytest.mark.parametrize("kind", ["base", "thp", "shm"])
def test_bind(kind: str) -> None:
    memory = Memory(kind, SIZE, node=0)
    for node in (1, 0):
        mbind(memory.address, SIZE, flags.MPOL_BIND, [node], MOVE_MT, threads=2)
        assert get_mempolicy(memory.address, flags.MPOL_F_ADDR) == (flags.MPOL_BIND, {node})
        assert memory.nodes() == {node: SIZE}
        memory.check()
    mbind(memory.address, SIZE, flags.MPOL_DEFAULT)


def test_bind_strictly_with_a_pinned_page() -> None:
    memory = Memory("base", SIZE, node=0)
    pinned = Pinned([memory.address + 77 * PAGE])
    with pytest.raises(OSError) as info:
        mbind(memory.address, SIZE, flags.MPOL_BIND, [1], MOVE_MT | flags.MPOL_MF_STRICT)
    assert info.value.errno == errno.EIO
    assert get_mempolicy(memory.address, flags.MPOL_F_ADDR).nodes == {1}
    assert memory.nodes() == {0: PAGE, 1: SIZE - PAGE}
    mbind(memory.address, SIZE, flags.MPOL_BIND, [1], MOVE_MT)  # not strictly: no error
    pinned.release()
    memory.check()


# --- migrate_pages, and numactl's own tool


def test_migrate_maps_nodes_as_the_kernel_does() -> None:
    memory = Memory("base", SIZE, node=0)
    for old, new, where in (
        ([0], [1], 1), ([0, 1], [0], 0), ([0, 1], [0, 1], 0), ([1], [0], 0), ([0, 5], [1], 1),
    ):  # fmt: skip
        assert migrate_pages(os.getpid(), old, new, flags.MPOL_MF_MOVE_MT, threads=2) >= 0
        assert memory.nodes() == {where: SIZE}, (old, new)
    memory.check()


@pytest.mark.skipif(not shutil.which("migratepages"), reason="numactl is not installed")
def test_migratepages_becomes_parallel() -> None:
    code = f"""
        memory = Memory("base", {SIZE}, node=0)
        say(memory.address)
        hear(); memory.check(); say("whole")
    """
    with Script(code) as child:
        address = int(child.hear())
        for turn in range(20):  # until the helper had a CPU before the caller was done
            old, new = turn % 2, 1 - turn % 2
            done = run(
                *(sys.executable, "-m", "pageferry", "run", "--mt", "always", "--stats", "--json"),
                *("--", "migratepages", child.pid, old, new),
            )
            assert done.returncode == 0, done.stderr
            counts = json.loads(done.stderr)
            assert counts["calls"] == 1 and counts["bytes"] >= SIZE
            assert locate(range(address, address + SIZE), pid=child.pid).on(new) == SIZE
            if counts["workers"] == 2:
                break
        assert counts["workers"] == 2
        child.say()
        assert child.hear() == "whole"


def test_interleaving_is_left_to_the_kernel() -> None:
    memory = Memory("base", SIZE, node=0)
    mbind(memory.address, SIZE, flags.MPOL_INTERLEAVE, [0, 1], MOVE_MT)
    assert memory.nodes() == {0: SIZE}  # each page is on one of the nodes: nothing to move
    for mode in (flags.MPOL_INTERLEAVE, flags.MPOL_WEIGHTED_INTERLEAVE):
        node = int(mode == flags.MPOL_INTERLEAVE)
        mbind(memory.address, SIZE, mode, [node], MOVE_MT)
        assert get_mempolicy(memory.address, flags.MPOL_F_ADDR) == (mode, {node})
        assert memory.nodes() == {node: SIZE}
    syscalls.mbind(memory.address, SIZE, flags.MPOL_DEFAULT)
    memory.check()


def test_the_log_tells(tmp_path: Path) -> None:
    log = tmp_path / "log"
    variables = environment("always", threads=2, log=str(log))
    assert run(program("preload_differential"), 5, 9, **variables).returncode == 0
    assert re.search(r" by [123] threads?", log.read_text())

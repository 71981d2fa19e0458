# SPDX-License-Identifier: Apache-2.0
"""Processes that are killed, stopped, or short of memory in the middle of a move.

What happens when is random, by a seed: always the same one, unless PAGEFERRY_SEED says another.
PAGEFERRY_ROUNDS does more rounds of each; make test-trouble gives both.
Run by: pageferry lab run --topology two-node --memory 896M --cpus 2
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from placement import PAGE, Forked, Memory, nodes_of

from pageferry import NodeFullError, cli, empty, move
from pageferry.errors import PageferryError

ROUNDS = int(os.environ.get("PAGEFERRY_ROUNDS", "3"))
SEED = int(os.environ.get("PAGEFERRY_SEED", "1"))
SIZE = 16 << 20
MADV_PAGEOUT = 21
CGROUP = Path("/sys/fs/cgroup/pageferry-death")
RESTLESS = Path(__file__).parents[2] / "build-tests-gcc/tests/c/test-restless"


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Shown when a test fails; PAGEFERRY_SEED repeats it."""
    print(f"PAGEFERRY_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


def a_while(chance: random.Random, longest: float = 0.03) -> None:
    """Any moment of what goes on meanwhile: the test holds for each of them."""
    time.sleep(chance.uniform(0, longest))


def target(parent: Forked) -> None:
    """Memory that is written all the time, and looked at when asked."""
    still, written = Memory("base", SIZE, node=0), Memory("thp", 4 << 20, node=0)
    lines = written.words.reshape(-1, 8)
    parent.say(still.address, written.address)
    os.set_blocking(parent._from, False)
    rounds = 0
    while True:
        assert (lines[:, 0] == rounds).all() or rounds == 0
        rounds += 1
        lines[:, 0] = rounds
        try:
            asked = os.read(parent._from, 100)
        except BlockingIOError:
            continue
        for _ in asked.splitlines():
            still.check()
            parent.say("whole")
        if not asked:
            return


def mover(pid: int, **how: object) -> Callable[[Forked], None]:
    """Moves that process back and forth until it is killed, or the process is."""

    def work(parent: Forked) -> None:
        parent.say("begun")
        for node in (1, 0) * 10000:
            try:
                move(pid=pid, node=node, threads=2, **how)  # type: ignore[arg-type]
            except PageferryError as error:
                assert error.errno == errno.ESRCH
                return

    return work


def whole(child: Forked) -> None:
    child.say("look")
    assert child.hear() == "whole"


def stat_of_anonymous() -> int:
    text = (CGROUP / "memory.stat").read_text()
    return int(dict(line.split() for line in text.splitlines())["anon"])


@pytest.fixture
def cgroup() -> Iterator[Path]:
    CGROUP.mkdir(exist_ok=True)
    yield CGROUP
    CGROUP.rmdir()


def nothing_left(what: Callable[[], int]) -> None:
    """The kernel gives memory of the dead back in its own time."""
    end = time.monotonic() + 300
    while what():
        assert time.monotonic() < end, f"{what()} is left"
        time.sleep(0.01)


# --- killed


def test_the_mover_is_killed(chance: random.Random) -> None:
    """The target goes on unharmed, and moves the next time."""
    with Forked(target) as child:
        still, written = map(int, child.hear().split())
        for _ in range(ROUNDS):
            with Forked(mover(child.pid)) as other:
                assert other.hear() == "begun"
                a_while(chance)
                other.kill(reap=True)
            whole(child)
        for node in (1, 0):
            assert not move(pid=child.pid, node=node).stopped
            assert nodes_of(still, SIZE, child.pid) == {node: SIZE}
            assert nodes_of(written, 4 << 20, child.pid) == {node: 4 << 20}
        whole(child)


@pytest.mark.skipif(ROUNDS <= 3, reason="takes long: in make test-trouble")
def test_the_command_is_killed() -> None:
    """In the middle, which is seen by pages on both nodes."""
    with Forked(target) as child:
        still, _ = map(int, child.hear().split())
        words = ["move", str(child.pid), "--to", "1", "--max-gbps", "0.02"]
        words += ["--range", f"{still:#x}+16M"]
        with Forked(lambda parent: cli.main(words)) as command:
            while not nodes_of(still, SIZE, child.pid).get(1):
                time.sleep(0.01)
            command.kill(reap=True)
        assert command.wait() == -signal.SIGKILL
        where = nodes_of(still, SIZE, child.pid)
        assert where[0] and where[1] and sum(where.values()) == SIZE
        whole(child)


@pytest.mark.parametrize("both", [False, True])
def test_the_target_is_killed(chance: random.Random, cgroup: Path, both: bool) -> None:
    """Alone, or the mover as well: no page of theirs is left."""
    for _ in range((ROUNDS + 1) // 2):
        with Forked(target) as child:
            (cgroup / "cgroup.procs").write_text(str(child.pid))
            child.hear()
            with Forked(mover(child.pid)) as other:
                assert other.hear() == "begun"
                a_while(chance)
                child.kill(reap=False)
                if both:
                    other.kill(reap=True)
                assert other.wait() in ((0, -signal.SIGKILL) if both else (0,))
            child.wait()
        nothing_left(stat_of_anonymous)


@pytest.mark.parametrize("way", ["checked", "hold", "protect"])
def test_killed_by_its_own_move(chance: random.Random, cgroup: Path, way: str) -> None:
    """A process that the user engine is at work in leaves nothing behind."""

    def work(parent: Forked) -> None:
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
        memory, huge = Memory("base", SIZE, node=0), Memory("thp", 4 << 20, node=0)
        parent.say("begun")
        for node in (1, 0) * 10000:
            for part in (memory, huge):
                assert not move(part.words, node, engine="user", way=way, threads=2).stopped

    for _ in range((ROUNDS + 1) // 2):
        with Forked(work) as child:
            assert child.hear() == "begun"
            a_while(chance)
            child.kill(reap=True)
        assert child.wait() == -signal.SIGKILL
        nothing_left(stat_of_anonymous)


# --- stopped


def test_the_mover_is_stopped(chance: random.Random) -> None:
    """With pages in its hands: the target waits for some of them at most, and is whole."""
    with Forked(target) as child:
        child.hear()
        with Forked(mover(child.pid)) as other:
            assert other.hear() == "begun"
            for _ in range(ROUNDS):
                a_while(chance)
                os.kill(other.pid, signal.SIGSTOP)
                whole(child)
                os.kill(other.pid, signal.SIGCONT)
            other.kill(reap=True)
        whole(child)


def test_the_target_is_stopped() -> None:
    with Forked(target) as child:
        still, _ = map(int, child.hear().split())
        os.kill(child.pid, signal.SIGSTOP)
        assert not move(pid=child.pid, node=1).stopped
        assert nodes_of(still, SIZE, child.pid) == {1: SIZE}
        os.kill(child.pid, signal.SIGCONT)
        whole(child)


def test_stopped_in_its_own_move(chance: random.Random) -> None:
    def work(parent: Forked) -> None:
        memory = Memory("base", SIZE, node=0)
        parent.say("begun")
        os.set_blocking(parent._from, False)
        node = 1
        while True:
            result = move(memory.words, node, engine="user", threads=2)
            assert result.complete
            memory.check()
            node = 1 - node
            try:
                os.read(parent._from, 1)
            except BlockingIOError:
                continue
            return

    with Forked(work) as child:
        assert child.hear() == "begun"
        for _ in range(ROUNDS):
            a_while(chance)
            os.kill(child.pid, signal.SIGSTOP)
            a_while(chance)
            os.kill(child.pid, signal.SIGCONT)
        child.say("end")
    assert child.wait() == 0


# --- a limit of memory


@pytest.fixture
def limited(cgroup: Path) -> Iterator[Callable[[Callable[[], object]], str]]:
    """Run something in a process of a cgroup; it says ``limit(bytes more than now)``."""

    def run(what: Callable[[], object]) -> str:
        (cgroup / "memory.max").write_text("max")
        with Forked(lambda parent: parent.say(what())) as child:
            text = child.hear()
        assert child.wait() == 0
        return text

    yield run


def limit(more: int) -> None:
    """The process is in the cgroup, which allows so many bytes in addition."""
    (CGROUP / "memory.max").write_text(str(int((CGROUP / "memory.current").read_text()) + more))


def enter() -> None:
    (CGROUP / "cgroup.procs").write_text(str(os.getpid()))


@pytest.mark.parametrize("engine", ["kernel", "user"])
@pytest.mark.parametrize("room", [6 << 20, 12 << 20, 64 << 20])
def test_under_a_limit(
    limited: Callable[[Callable[[], object]], str], engine: str, room: int
) -> None:
    """At the limit the kernel would kill the process for a page too many; it never comes to that.

    The kernel engine needs no room, as the kernel counts a page that moves once; it does what the
    user engine has none for, and the result says so.
    """

    def work() -> object:
        enter()
        memory = Memory("base", 2 * SIZE, node=0)
        limit(room)
        result = move(memory.words, 1, engine=engine, threads=2)
        (CGROUP / "memory.max").write_text("max")  # a check of all bytes takes memory
        memory.check()
        assert result.complete and memory.nodes() == {1: 2 * SIZE}, result
        by = {part.engine: part.reason for part in result.parts}
        assert ("memory cgroup" in by.get("left", "")) == (engine == "user" and room < 16 << 20)
        return "moved"

    assert limited(work) == "moved"
    assert " oom_kill 0 " in (CGROUP / "memory.events").read_text().replace("\n", " ")


def test_an_array_above_the_limit_is_refused(
    limited: Callable[[Callable[[], object]], str],
) -> None:
    def work() -> object:
        enter()
        limit(32 << 20)
        with pytest.raises(NodeFullError, match="memory cgroup"):
            empty(64 << 17, np.float64, node=1, page_size="4K")
        return "refused"

    assert limited(work) == "refused"


# --- swap


@pytest.fixture
def swap() -> Iterator[None]:
    """128 MiB of compressed memory to swap to."""
    subprocess.run(["modprobe", "zram"], check=True)
    Path("/sys/block/zram0/disksize").write_text(str(128 << 20))
    subprocess.run(["mkswap", "/dev/zram0"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["swapon", "/dev/zram0"], check=True)
    try:
        yield
    finally:
        subprocess.run(["swapoff", "/dev/zram0"], check=True)
        Path("/sys/block/zram0/reset").write_text("1")


def test_memory_that_is_swapped_out(
    limited: Callable[[Callable[[], object]], str], swap: None
) -> None:
    """Under a limit of half of it: what is in memory moves, what is in swap stays there."""

    def work() -> object:
        enter()
        libc = ctypes.CDLL(None, use_errno=True)
        for engine in ("kernel", "user"):
            memory = Memory("base", SIZE, node=0)
            half = ctypes.c_void_p(memory.address), ctypes.c_size_t(SIZE // 2)
            assert libc.madvise(*half, MADV_PAGEOUT) == 0
            assert _swapped() > 0
            limit(1 << 20)
            result = move(memory.words, 1, engine=engine, threads=2)
            assert not result.stopped
            assert set(memory.nodes()) == {1} and memory.nodes()[1] >= SIZE // 2
            memory.check()  # reads all of it: some comes back, and something else goes
            (CGROUP / "memory.max").write_text("max")
        return "whole"

    assert limited(work) == "whole"


def _swapped() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmSwap:"):
            return int(line.split()[1]) * 1024
    return 0


# --- never still


def test_a_process_that_does_not_hold_still(chance: random.Random) -> None:
    """Moved from outside and, in the long form, at the same time by itself; see restless.c."""
    if not RESTLESS.exists():
        pytest.skip("tests/host/test_c_programs.py has not built it")
    for who in ("outside", "own") if ROUNDS > 3 else ("outside",):
        seed, steps = chance.randrange(1 << 32), 66 * ROUNDS
        words = [str(RESTLESS), str(seed), str(steps), who]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        moved = node = 0
        while process.poll() is None:
            node = 1 - node
            try:
                moved += move(pid=process.pid, node=node, threads=2).bytes_moved
            except PageferryError as error:
                assert error.errno == errno.ESRCH, error
        assert process.stdout is not None
        said = process.stdout.read().decode()
        assert process.returncode == 0 and "restless: ok" in said, (words, said)
        assert moved > 100 * PAGE

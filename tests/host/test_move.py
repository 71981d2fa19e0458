# SPDX-License-Identifier: Apache-2.0
"""move() on a machine with one node: counts, threads, ends of all kinds, and refusals.

Pages that really move, and their bytes, are in tests/guest.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child import in_a_child
from regions import HUGE, PAGE, Region, kinds, needs_thp

from pageferry import (
    MigrateMode,
    MoveInterrupted,
    NodeError,
    NotPermittedError,
    PageferryError,
    ProcessGoneError,
    Progress,
    RangeError,
    UnsupportedError,
    engine,
    locate,
    move,
    plan,
)
from pageferry._native import lib
from pageferry.process import HeldProcess
from pageferry.procfs import smaps
from pageferry.refusal import refusal
from pageferry.survey import Survey
from pageferry.syscalls import kernel_has_mt
from pageferry.target import resolve
from pageferry.topology import topology

NOBODY = 65534
A, L, S, ST, MT = (
    MigrateMode.ASYNC,
    MigrateMode.SYNC_LIGHT,
    MigrateMode.SYNC,
    MigrateMode.ST,
    MigrateMode.MT,
)


def on_node_0(size: int = HUGE) -> Region:
    region = Region(size)
    region.write(0, size)
    return region


@pytest.fixture(scope="module")
def large() -> Region:
    return on_node_0(128 * HUGE)


@pytest.fixture
def slow(large: Region, monkeypatch: pytest.MonkeyPatch) -> Region:
    """Memory that takes thousands of batches, with a poll after each of them."""
    monkeypatch.setattr(plan, "FIRST_BATCH_BYTES", 16 << 10)
    monkeypatch.setattr(plan, "CALL_MS", 0)  # the size of a batch is kept
    monkeypatch.setattr(engine, "_POLL_US", 1)
    return large


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


# --- what is reported


def test_pages_that_are_there_already() -> None:
    region = Region(2 * HUGE)
    region.write(0, HUGE)
    region.write(HUGE + 5 * PAGE, PAGE)
    result = move(region.range(), 0)
    assert result.complete and result.exact
    assert result.bytes_already == HUGE + PAGE
    assert result.pages_already == {"base": 513, "thp": 0, "hugetlb": 0}
    assert result.bytes_not_present == HUGE - PAGE
    assert result.bytes_moved == result.bytes_failed == result.bytes_skipped == 0
    assert (result.node, result.pid, result.calls, result.stopped) == (0, None, 0, 0)
    assert result.failed == {} and result.failures == () and result.warnings == ()
    assert result.gbps == 0 and result.seconds > 0


@needs_thp
def test_huge_pages_count_as_one() -> None:
    region = Region(4 * HUGE)
    region.advise(__import__("mmap").MADV_HUGEPAGE, 0, 2 * HUGE)
    region.write(0, 4 * HUGE)
    result = move(region.range(), 0, statuses=True)
    assert result.pages_already == {"base": 1024, "thp": 2, "hugetlb": 0}
    assert result.bytes_already == 4 * HUGE
    assert result.statuses is not None
    assert kinds(result.statuses) == {PAGE: 1024, HUGE: 2}
    assert (result.statuses["status"] == 0).all()


def test_statuses_name_each_present_page() -> None:
    region = Region(HUGE)
    touched = [0, 3, 4, 100, 511]
    for page in touched:
        region.write(page * PAGE, PAGE)
    result = move(region.range(), 0, statuses=True)
    assert result.statuses is not None
    rows = [((int(a) - region.address) // PAGE, int(b), int(s)) for a, b, s in result.statuses]
    assert rows == [(page, PAGE, 0) for page in touched]
    assert move(region.range(), 0).statuses is None
    empty = move(Region(HUGE).bytes, 0, statuses=True)
    assert empty.statuses is not None and len(empty.statuses) == 0


def test_source_nodes() -> None:
    region = on_node_0()
    for source in (0, [0], {0}, (0, 0), np.int64(0), np.array([0])):
        assert move(region.range(), 0, source=source).bytes_already == HUGE
    for bad in (1 << 20, -1, [0, 99]):
        with pytest.raises(NodeError):
            move(region.range(), 0, source=bad)
    with pytest.raises(NodeError, match="empty"):
        move(region.range(), 0, source=[])
    for odd in ("0", True, [0.5], [None]):
        with pytest.raises(TypeError):
            move(region.range(), 0, source=odd)  # type: ignore[arg-type]


def test_a_result_is_data() -> None:
    import json

    result = move(on_node_0().bytes, 0, statuses=True)
    value = json.loads(json.dumps(result.as_dict()))
    assert value["bytes_already"] == HUGE
    assert value["complete"] is True and value["stopped"] is None
    assert value["kernel_mt"] is kernel_has_mt()
    assert value["plan"]["mode"] == "SYNC" and value["plan"]["engine"] == "kernel"
    assert value["counters"].keys() >= {"pgmigrate_success", "thp_migration_success"}
    assert "statuses" not in value
    placement = json.loads(json.dumps(locate(on_node_0().bytes).as_dict()))
    assert placement["nodes"] == {"0": {"base": HUGE, "thp": 0, "hugetlb": 0}}


def test_counters_are_left_out_of_small_moves() -> None:
    region = on_node_0()
    assert move(region.range(0, PAGE), 0).counters is None
    assert move(region.range(), 0).counters is not None


# --- bad input


@pytest.mark.parametrize("node", [99, -1, 1 << 20, 1 << 70, np.int64(99)])
@pytest.mark.parametrize("own", [True, False])
def test_nodes_that_do_not_exist(node: Any, own: bool) -> None:
    region = on_node_0()
    with pytest.raises(NodeError, match="does not exist") as caught:
        move(region.range(), node, pid=None if own else os.getpid())
    assert caught.value.errno == errno.ENODEV
    assert "nodes here: 0" in str(caught.value)


@pytest.mark.parametrize("node", [True, False, "x", "0", None, 0.0, [0]])
def test_nodes_are_numbers(node: Any) -> None:
    with pytest.raises(TypeError, match="node"):
        move(np.ones(1), node)


@pytest.mark.parametrize("mode", [A | L, A | S, L | S, A | L | S, ST | MT, 32, 64, -1])
def test_modes_that_make_no_sense(mode: Any) -> None:
    with pytest.raises(ValueError):
        move(np.ones(1), 0, mode=mode)


@pytest.mark.parametrize("mode", ["SYNC", None, 4.0, b""])
def test_modes_are_flags(mode: Any) -> None:
    with pytest.raises(TypeError):
        move(np.ones(1), 0, mode=mode)


@pytest.mark.parametrize("threads", [0, -1, "many", True, False, 2.5, None, "2", np.float64(2)])
def test_bad_threads(threads: Any) -> None:
    for target in (np.ones(1), b""):
        with pytest.raises(ValueError, match="threads"):
            move(target, 0, threads=threads)
    with pytest.raises(ValueError, match="threads"):
        locate(np.ones(1), threads=threads)


@pytest.mark.parametrize("mode", [A, L, S, A | ST, L | ST, S | ST, A | MT, L | MT, S | MT, MT, ST])
def test_modes_that_do(mode: MigrateMode) -> None:
    result = move(on_node_0().bytes, 0, mode=mode)
    assert result.bytes_already == HUGE
    assert result.plan.mode & mode == mode
    if ST in mode:
        assert result.plan.threads == result.workers == 1


def test_threads_are_as_many_as_asked_for_and_of_use(large: Region) -> None:
    region = on_node_0(8 * HUGE)
    assert move(region.range(), 0, threads=3).plan.threads == 3
    assert move(region.range(), 0, threads=np.int32(3)).plan.threads == 3  # type: ignore[arg-type]
    assert move(region.range(0, 2 * PAGE), 0, threads=7).plan.threads == 2
    assert move(region.range(), 0, threads=1 << 70).plan.threads == 1024
    assert move(region.range(), 0, threads=5, mode=ST).plan.threads == 1
    assert move(region.range(0, PAGE), 0, mode=MT).plan.threads == 1
    cores = len(topology().cores())
    assert move(region.range(), 0, mode=MT).plan.threads == max(2, min(cores, 2))
    auto = move(large.range(), 0).plan
    assert auto.threads == min(cores, 2) or cores > 2
    assert set(auto.cpus) <= os.sched_getaffinity(0)


def test_affinity_is_kept_to() -> None:
    def one_cpu() -> str:
        (cpu, *_) = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {cpu})
        auto = move(on_node_0(8 * HUGE).bytes, 0).plan
        asked = move(on_node_0(8 * HUGE).bytes, 0, threads=3)
        return f"{auto.threads} {set(asked.plan.cpus) == {cpu}} {asked.bytes_already}"

    assert in_a_child(one_cpu) == f"1 True {8 * HUGE}"


# --- other processes


def test_dead_process() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    for target in (None, range(0x10000, 0x20000)):
        with pytest.raises(ProcessGoneError) as caught:
            move(target, 0, pid=process.pid)
        assert caught.value.errno == errno.ESRCH
        assert isinstance(caught.value, ProcessLookupError)
        with pytest.raises(ProcessGoneError):
            locate(target, pid=process.pid)


def test_zombie() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    for method in (None, "scan", "pagemap", "query"):
        for target in (None, range(0x10000, 0x20000)):
            with pytest.raises(ProcessGoneError):
                move(target, 0, pid=process.pid, survey=method)
    process.wait()


def test_kernel_thread() -> None:
    if Path("/proc/2/comm").read_text().strip() != "kthreadd":
        pytest.skip("no kernel threads in this PID namespace")
    for target in (None, range(0x10000, 0x20000)):
        with pytest.raises(RangeError, match="no memory of its own"):
            move(target, 0, pid=2)
        with pytest.raises(RangeError, match="no memory of its own"):
            locate(target, pid=2)


def test_a_process_that_is_ending(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is gone and it is not, for a moment that is a mock here."""
    monkeypatch.setattr("pageferry.procfs.ranges", lambda pid: [])
    with pytest.raises(ProcessGoneError, match="ended"):
        move(pid=child.pid, node=0)


def test_whole_process(child: subprocess.Popen[bytes]) -> None:
    result = move(pid=child.pid, node=0)
    rss = sum(use.rss for use in smaps(child.pid) if not use.mapping.special)
    assert result.complete and result.whole_process and result.pid == child.pid
    assert result.bytes_already == rss
    assert locate(pid=child.pid).on(0) == result.bytes_already


def test_process_of_another_user(child: subprocess.Popen[bytes]) -> None:
    lines = Path(f"/proc/{child.pid}/maps").read_text().splitlines()
    stack = next(line for line in lines if "[stack]" in line)
    start, stop = (int(part, 16) for part in stack.split()[0].split("-"))

    def unprivileged() -> str:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        names = []
        for pid in (1, child.pid):
            for target in (None, range(start, stop)):
                for call in (lambda t, p: move(t, 0, pid=p), lambda t, p: locate(t, pid=p)):
                    try:
                        call(target, pid)
                        names.append("moved")
                    except NotPermittedError as error:
                        names.append(f"refused {bool(error.hint)} {error.name}")
        return ", ".join(sorted(set(names)))

    assert in_a_child(unprivileged) in (
        "refused True EACCES",
        "refused True EACCES, refused True EPERM",
    )


# --- refusals by seccomp: a filter as a container has it

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_MOVE_PAGES, _SECCOMP = {"x86_64": (279, 317), "aarch64": (239, 277)}[os.uname().machine]
_SCRIPT = """
    import sys
    sys.path.insert(0, sys.argv[1])
    import numpy as np
    from test_move import refuse_move_pages
    from pageferry import locate, move, PageferryError
    data = np.ones(1 << 18)
    move(data, 0)
    refuse_move_pages(int(sys.argv[2]))
    for call in (lambda: move(data, 0), lambda: move(data, 0, threads=4),
                 lambda: move(data, 0, survey="query"), lambda: locate(data),
                 lambda: locate(data, survey="query")):
        try:
            print("done", call())
        except PageferryError as error:
            print(type(error).__name__, error.errno, bool(error.hint))
    assert (data == 1).all()
"""


def refuse_move_pages(number: int) -> None:
    """Have the kernel answer move_pages with an errno, for all threads that exist, for good."""
    code = [
        struct.pack("HBBI", _LOAD, 0, 0, 0),  # the number of the system call
        struct.pack("HBBI", _EQUAL, 0, 1, _MOVE_PAGES),
        struct.pack("HBBI", _RETURN, 0, 0, _ERRNO | number),
        struct.pack("HBBI", _RETURN, 0, 0, _ALLOW),
    ]
    program = ctypes.create_string_buffer(b"".join(code))
    header = struct.pack("HxxxxxxP", len(code), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    every_thread = 1  # SECCOMP_FILTER_FLAG_TSYNC
    assert libc.syscall(_SECCOMP, 1, every_thread, header) == 0, ctypes.get_errno()


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EPERM, "NotPermittedError"), (errno.ENOSYS, "UnsupportedError")]
)
def test_seccomp(number: int, kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_SCRIPT), str(Path(__file__).parent), str(number)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{kind} {number} True"] * 5


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ESRCH, ProcessGoneError),
        (errno.EPERM, NotPermittedError),
        (errno.EACCES, NodeError),
        (errno.ENODEV, NodeError),
        (errno.ENOSYS, UnsupportedError),
        (errno.ENOMEM, PageferryError),
        (errno.EIO, PageferryError),
    ],
)
def test_each_refusal_has_its_error_and_a_cure(number: int, kind: type[PageferryError]) -> None:
    # Called directly: one node gives no way to make the kernel refuse with each of them.
    target = resolve(np.ones(1))
    error = refusal(number, target, 0)
    assert type(error) is kind
    assert error.errno == number and error.hint
    assert errno.errorcode[number] in str(error)


# --- progress, cancel, exceptions


def whole(result: Any, size: int) -> bool:
    """Every present byte was counted exactly once."""
    return bool(
        result.bytes_moved + result.bytes_already + result.bytes_skipped + result.bytes_failed
        == size
    )


def test_progress(slow: Region) -> None:
    seen: list[Progress] = []
    result = move(slow.range(), 0, progress=seen.append, threads=2)
    assert result.complete and result.bytes_already == slow.size
    assert len(seen) > 10
    done = [p.bytes_done for p in seen]
    assert done == sorted(done) and 0 < done[-1] <= slow.size
    assert all(p.bytes_total == slow.size and p.bytes_moved == 0 for p in seen)
    assert all(p.seconds_left >= 0 and p.gbps == 0 for p in seen)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_cancel(slow: Region, threads: int) -> None:
    event = threading.Event()
    calls = 0

    def at_once(_: Progress) -> None:
        nonlocal calls
        calls += 1
        event.set()

    result = move(slow.range(), 0, progress=at_once, cancel=event, threads=threads)
    assert result.cancelled and not result.complete and result.stopped == 0
    assert calls == 1  # not asked again
    assert 0 < result.bytes_already < slow.size
    assert result.bytes_skipped > 0 and whole(result, slow.size)


def test_cancelled_before_it_begins(slow: Region) -> None:
    event = threading.Event()
    event.set()
    result = move(slow.range(), 0, cancel=event, statuses=True)
    assert result.cancelled and result.bytes_skipped > 0 and whole(result, slow.size)
    assert result.statuses is not None
    tried = result.statuses["status"] != -(2**31) + 1
    assert int(result.statuses["size"][tried].sum()) == result.bytes_already
    assert move(slow.range(), 0).complete  # and the next one is not cancelled


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", [ValueError, SystemExit, GeneratorExit, MemoryError])
def test_exception_in_progress(slow: Region, kind: type[BaseException], threads: int) -> None:
    error = kind("out of the callback")
    calls = 0

    def fails(_: Progress) -> None:
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(kind) as caught:
        move(slow.range(), 0, progress=fails, threads=threads)
    assert caught.value is error
    assert calls == 1
    assert move(slow.range(), 0).bytes_already == slow.size


def test_progress_that_moves_memory_itself(slow: Region) -> None:
    inner = on_node_0()
    moved: list[int] = []

    def nested(_: Progress) -> None:
        if len(moved) < 3:
            moved.append(move(inner.range(), 0, threads=2).bytes_already)

    assert move(slow.range(), 0, progress=nested, threads=2).bytes_already == slow.size
    assert moved == [HUGE] * 3


def test_interrupt_in_progress(slow: Region) -> None:
    def interrupted(now: Progress) -> None:
        if now.bytes_done:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(MoveInterrupted) as caught:
        move(slow.range(), 0, progress=interrupted)
    result = caught.value.result
    assert isinstance(caught.value, KeyboardInterrupt)
    assert result.cancelled and not result.complete
    assert 0 < result.bytes_already < slow.size and whole(result, slow.size)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("callback", [None, lambda _: None])
def test_interrupt_while_the_core_works(
    slow: Region, threads: int, callback: Callable[[Progress], None] | None
) -> None:
    # From another process, at a moment when no Python code runs here: that is the usual case.
    # Should Python be in a weak reference's callback, which swallows exceptions, it is sent again.
    once = f"kill -INT {os.getpid()}"
    script = f"read go; sleep 0.15; {once}; sleep 10; exec {once}"
    killer = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, bufsize=0)
    assert killer.stdin is not None
    interrupted: list[MoveInterrupted] = []
    deadline = time.monotonic() + 300
    try:
        killer.stdin.write(b"go\n")  # not before there is somebody to catch it
        while time.monotonic() < deadline:
            result = move(slow.range(), 0, threads=threads, progress=callback)
            assert result.complete  # a Ctrl-C that only cancels is lost for the program
    except MoveInterrupted as stop:
        interrupted.append(stop)
    except KeyboardInterrupt:
        pass  # between two moves
    else:
        pytest.fail("the signal did not arrive")
    finally:
        killer.kill()
        killer.wait()
    for stop in interrupted:
        assert stop.result.cancelled or stop.result.bytes_already == slow.size


def test_other_signal_handlers(slow: Region) -> None:
    """A handler that raises ends the move with its own exception; one that does not, does not."""
    ran: list[int] = []

    def raises(number: int, frame: object) -> None:
        ran.append(number)
        if number == signal.SIGUSR2:
            raise LookupError("from the handler")

    before = [signal.signal(n, raises) for n in (signal.SIGUSR1, signal.SIGUSR2)]
    killer: subprocess.Popen[bytes] | None = None
    try:
        for name in ("USR1", "USR2"):
            ran.clear()
            script = f"read go; sleep 0.1; exec kill -{name} {os.getpid()}"
            killer = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, bufsize=0)
            assert killer.stdin is not None
            deadline = time.monotonic() + 300
            caught = False
            try:
                killer.stdin.write(b"go\n")  # not before there is somebody to catch it
                while not ran and time.monotonic() < deadline:
                    assert move(slow.range(), 0).complete
            except LookupError:
                caught = True
            killer.wait()
            assert ran and caught == (name == "USR2")
    finally:
        if killer is not None:
            killer.wait()
        for number, handler in zip((signal.SIGUSR1, signal.SIGUSR2), before, strict=True):
            signal.signal(number, handler)


# --- threads


def helpers(*, watch: bool = False) -> dict[str, str]:
    """The status of each helper thread, by name; with the one that watches over them."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            name = (task / "comm").read_text().strip()
            if name.startswith("pageferry/") and (watch or name != "pageferry/watch"):
                found[name] = (task / "status").read_text()
    return found


def crew(expected: int) -> int:
    """Count the helpers; the kernel lists a thread for a moment after it was joined."""
    deadline = time.monotonic() + 300
    while len(helpers()) > expected and time.monotonic() < deadline:
        time.sleep(0.001)
    return len(helpers())


def test_helpers_are_kept_and_named() -> None:
    lib.pf_crew_stop()
    assert crew(0) == lib.pf_crew_size() == 0
    region = on_node_0(8 * HUGE)
    for _ in range(5):
        move(region.range(), 0, threads=4)
    assert crew(3) == lib.pf_crew_size() == 3
    watched = lib.pf_crew_yields()
    assert len(helpers(watch=True)) == 3 + watched
    lib.pf_crew_stop()
    assert crew(0) == lib.pf_crew_size() == 0
    deadline = time.monotonic() + 300
    while helpers(watch=True) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not helpers(watch=True)
    assert move(region.range(), 0, threads=2).bytes_already == region.size
    assert crew(1) == 1


def test_cpu_time_of_helpers_is_charged_to_the_process(large: Region) -> None:
    before = time.process_time()
    result = move(large.range(), 0, threads=2, exact=True)
    assert 0 < result.cpu_seconds <= time.process_time() - before
    assert result.as_dict()["cpu_seconds"] == result.cpu_seconds


def test_one_page_uses_no_helper() -> None:
    lib.pf_crew_stop()
    region = on_node_0(PAGE)
    assert crew(0) == 0
    for threads in ("auto", 8):
        assert move(region.range(), 0, threads=threads).workers == 1
    assert not helpers(watch=True)


def test_helpers_block_all_signals() -> None:
    move(on_node_0(8 * HUGE).bytes, 0, threads=4)
    assert len(helpers()) >= 3
    for status in helpers().values():
        (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:"))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD):
            assert int(mask, 16) >> number - 1 & 1


def test_threads_are_gone_at_exit() -> None:
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from test_move import HUGE, helpers, move, on_node_0
        move(on_node_0(8 * HUGE).bytes, 0, threads=4)
        print(len(helpers()))
    """
    for ending in ("", "sys.exit(3)", "raise SystemExit(3)"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code) + ending, str(Path(__file__).parent)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == (3 if ending else 0), done.stderr
        assert done.stdout == "3\n" and done.stderr == ""


def test_exit_while_another_thread_moves() -> None:
    code = """
        import sys, threading
        sys.path.insert(0, sys.argv[1])
        from test_move import HUGE, move, on_node_0
        region = on_node_0(8 * HUGE)
        begun = threading.Event()
        def forever():
            while True:
                move(region.range(), 0, threads=3)
                begun.set()
        threading.Thread(target=forever, daemon=True).start()
        begun.wait()
    """
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(Path(__file__).parent)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_has_a_crew_of_its_own() -> None:
    region = on_node_0(8 * HUGE)
    move(region.range(), 0, threads=4)

    def moves() -> str:
        before = len(helpers()), lib.pf_crew_size()
        result = move(region.range(), 0, threads=3)
        return f"{before} {result.bytes_already} {len(helpers())} {lib.pf_crew_size()}"

    assert in_a_child(moves) == f"(0, 0) {region.size} 2 2"
    assert crew(lib.pf_crew_size()) == lib.pf_crew_size() >= 3
    assert move(region.range(), 0, threads=4).bytes_already == region.size


def test_fork_while_other_threads_move() -> None:
    region = on_node_0(4 * HUGE)
    end = threading.Event()
    failures: list[BaseException] = []

    def mover() -> None:
        try:
            while not end.is_set():
                assert move(region.range(), 0, threads=3).bytes_already == region.size
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=mover) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            answer = in_a_child(lambda: str(move(region.range(), 0, threads=3).bytes_already))
            assert answer == str(region.size)
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_many_threads_move_at_once() -> None:
    regions = [on_node_0(2 * HUGE) for _ in range(8)]
    results: list[int] = []
    start = threading.Barrier(8)

    def mover(region: Region) -> None:
        start.wait()
        results.extend(
            move(region.range(), 0, threads=3, statuses=True).bytes_already for _ in range(10)
        )

    threads = [threading.Thread(target=mover, args=(region,)) for region in regions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [2 * HUGE] * 80
    assert crew(lib.pf_crew_size()) == lib.pf_crew_size() <= 16


def test_python_runs_during_a_move(large: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GIL is free: another thread gets through rounds while one single call works."""
    monkeypatch.setattr(engine, "_POLL_US", 0)  # no callback, which would take the GIL
    region = large
    survey = Survey(resolve(region.bytes))
    (extents,) = (window.copy() for window in survey.windows())
    the_plan = plan.make_plan(topology(), 0, {PAGE: region.size // PAGE}, threads=1)
    rounds = calls = 0
    end = threading.Event()

    def other() -> None:
        nonlocal rounds
        while not end.is_set():
            rounds += 1
            time.sleep(0)  # gives the GIL back

    thread = threading.Thread(target=other)
    before = sys.getswitchinterval()
    thread.start()
    sys.setswitchinterval(1000)  # nobody takes the GIL from its holder: it must be given up
    try:
        during = 0
        while not during and calls < 1000:  # a busy machine may take a few until it has a CPU
            run = engine.KernelRun(0, 0, total=region.size, process=HeldProcess(None), exact=True)
            run.follow(the_plan)
            first = rounds
            assert run.run(extents) == 0
            during = rounds - first
            calls += 1
            assert run.counts()["bytes_already"] == region.size
    finally:
        sys.setswitchinterval(before)
        end.set()
        thread.join()
    assert during > 0


def open_files() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.append(str(Path("/proc/self/fd", number).readlink()))
    return sorted(found)


def test_a_move_leaves_no_file_open() -> None:
    region = on_node_0()
    move(region.range(), 0)
    gc.collect()  # what earlier tests have left would close in the middle
    before = open_files()
    for method in (None, "scan", "pagemap", "query"):
        move(region.range(), 0, survey=method, threads=2, statuses=True)
        locate(region.range(), survey=method)
        with pytest.raises(RangeError):
            move(range(0, PAGE), 0, survey=method)
    assert open_files() == before


def test_progress_that_starts_a_process(slow: Region) -> None:
    ran: list[int] = []

    def starts_a_process(_: Progress) -> None:
        if not ran:
            ran.append(subprocess.run(["true"]).returncode)

    assert move(slow.range(), 0, progress=starts_a_process, threads=3).bytes_already == slow.size
    assert ran == [0]

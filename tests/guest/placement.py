# SPDX-License-Identifier: Apache-2.0
"""Memory that begins on a known node, and where it is by another authority than pageferry.

Placement by set_mempolicy(2), answers by /proc/PID/numa_maps: neither rests on move_pages(2), which
is asked only where numa_maps tells of more than was asked for.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pageferry.bench.memory import HUGE, PageArray

PAGE = mmap.PAGESIZE
NOBODY = 65534
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
MAP_HUGETLB = 0x40000
_SET_MEMPOLICY, _MOVE_PAGES = 238, 279  # x86-64
_DEFAULT, _BIND, _INTERLEAVE = 0, 2, 3
_LATE_SECONDS = 600  # a child that has not ended by then never will; a loaded emulator is slow
_libc = ctypes.CDLL(None, use_errno=True)


def _set_policy(policy: int, nodes: tuple[int, ...]) -> None:
    mask = ctypes.c_ulong(sum(1 << node for node in nodes))
    pointer = ctypes.byref(mask) if nodes else None
    if _libc.syscall(_SET_MEMPOLICY, policy, pointer, 64 if nodes else 0):
        raise OSError(ctypes.get_errno(), f"set_mempolicy({policy}, {nodes})")


@contextmanager
def on(*nodes: int) -> Iterator[None]:
    """New pages of this thread come from this node, or alternate over these."""
    _set_policy(_BIND if len(nodes) == 1 else _INTERLEAVE, nodes)
    try:
        yield
    finally:
        _set_policy(_DEFAULT, ())


def nodes_in_sysfs() -> tuple[str, ...]:
    """Which nodes there are, have memory, have CPUs, and how far they are from node 0."""
    files = ("online", "has_memory", "has_cpu", "node0/distance")
    return tuple(Path("/sys/devices/system/node", file).read_text().strip() for file in files)


class Memory(PageArray):
    """A ``PageArray`` on ``node``, of any kind of memory; "64K" are folios of base pages."""

    KINDS = ("base", "thp", "hugetlb", "shm", "file")

    def __init__(self, kind: str, size: int, node: int | None = None) -> None:
        gc.collect()  # memory of earlier tests, with which the kernel would merge this
        self.kind = kind
        self.unit = {"thp": HUGE, "hugetlb": HUGE, "64K": 64 << 10}.get(kind, PAGE)
        if node is None:
            self._make(kind, size)
        else:
            with on(node):
                self._make(kind, size)

    def _make(self, kind: str, size: int) -> None:
        if kind not in ("shm", "file"):
            super().__init__(size // self.unit, self.unit, hugetlb=kind == "hugetlb")
            return
        if kind == "shm":
            self._map = mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        else:
            with tempfile.TemporaryFile() as file:
                file.truncate(size)
                self._map = mmap.mmap(file.fileno(), size)
        self.page_size = self.unit
        self.bytes = size
        self._fill(np.frombuffer(self._map, np.uint8))

    @property
    def report_kind(self) -> str:
        """What pageferry calls its pages."""
        return self.kind if self.kind in ("thp", "hugetlb") else "base"

    @property
    def addresses_range(self) -> range:
        return range(self.address, self.address + self.bytes)

    def nodes(self) -> dict[int, int]:
        """Bytes by node."""
        return nodes_of(self.address, self.bytes)


def _nodes_by_page(address: int, size: int, pid: int) -> dict[int, int]:
    """Ask the kernel for each page, by a bare move_pages(2) that moves nothing."""
    count = size // PAGE
    pages = np.uint64(address) + np.arange(count, dtype=np.uint64) * np.uint64(PAGE)
    status = np.empty(count, np.int32)
    pointers = (ctypes.c_void_p(pages.ctypes.data), None, ctypes.c_void_p(status.ctypes.data))
    done = _libc.syscall(_MOVE_PAGES, pid, ctypes.c_ulong(count), *pointers, 0)
    assert not done, os.strerror(ctypes.get_errno())
    nodes, pages_of = np.unique(status[status >= 0], return_counts=True)
    return {int(n): int(p) * PAGE for n, p in zip(nodes, pages_of, strict=True)}


def nodes_of(address: int, size: int, pid: int | None = None) -> dict[int, int]:
    """Bytes by node of a range, by numa_maps.

    Where the kernel has merged the mapping with a neighbour, so that numa_maps tells of more than
    the range, by a query for each page.
    """
    found: dict[int, int] = {}
    starts = set()
    for line in Path(f"/proc/{pid or 'self'}/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first < address + size and last > address:
            starts.add(first)
    for line in Path(f"/proc/{pid or 'self'}/numa_maps").read_text().splitlines():
        words = line.split()
        if int(words[0], 16) not in starts:
            continue
        sizes = [int(w.split("=")[1]) for w in words if w.startswith("kernelpagesize_kB=")]
        unit = sizes[0] * 1024 if sizes else PAGE
        for word in words:
            node, _, pages = word.partition("=")
            if node[:1] == "N" and node[1:].isdigit():
                found[int(node[1:])] = found.get(int(node[1:]), 0) + int(pages) * unit
    return found if sum(found.values()) <= size else _nodes_by_page(address, size, pid or 0)


class Script:
    """A child process that runs Python code, prints lines, and waits for lines.

    The code finds ``say`` and ``hear`` defined, and the names of this module. A context
    manager: the process ends with it, killed if it must.
    """

    def __init__(self, code: str, *arguments: object) -> None:
        head = (
            "import sys\n"
            f"sys.path.insert(0, {os.fspath(Path(__file__).parent)!r})\n"
            "from placement import *\n"
            "def say(*what): print(*what, flush=True)\n"
            "def hear(): return sys.stdin.readline().strip()\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", head + textwrap.dedent(code), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid

    def hear(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the child ended with {self.process.wait()}"
        return line.strip()

    def say(self, what: object = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()

    def __enter__(self) -> Script:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        if kind is not None:
            self.process.kill()
        self.process.stdin.close()
        try:
            self.process.wait(300)
        finally:
            if self.process.returncode is None:
                self.process.kill()
                self.process.wait()
            self.process.stdout.close()


class Forked:
    """A forked child that runs ``what(child)``; both sides ``say`` and ``hear`` lines.

    Much quicker than a new interpreter under emulation. What it allocates is its own, all else
    is shared with this process. A context manager, which waits for it, and kills it on an error.
    """

    def __init__(self, what: Callable[[Forked], object]) -> None:
        theirs, self._to = os.pipe()
        self._from, ours = os.pipe()
        self.exit_code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._to)
            os.close(self._from)
            self._to, self._from = ours, theirs
            signal.alarm(_LATE_SECONDS)
            code = 1
            try:
                what(self)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(theirs)
        os.close(ours)

    def say(self, *what: object) -> None:
        os.write(self._to, " ".join(map(str, what)).encode() + b"\n")

    def hear(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            piece = os.read(self._from, 1)
            assert piece, "the other process has ended"
            line += piece
        return line.decode().strip()

    def kill(self, *, reap: bool) -> None:
        """End it, and wait until its memory is gone; without ``reap`` a zombie is left."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        if reap:
            self.wait()

    def wait(self) -> int:
        if self.exit_code is None:
            self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.exit_code

    def __enter__(self) -> Forked:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and self.exit_code is None:
            os.kill(self.pid, signal.SIGKILL)
        os.close(self._to)
        self.wait()
        os.close(self._from)


def in_a_child(what: Callable[[], Any]) -> str:
    """Return ``repr`` of what ``what`` returns in a forked child, or its exception's text."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(_LATE_SECONDS)
        try:
            answer = repr(what())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read().decode()
    os.waitpid(pid, 0)
    return answer


def become_nobody(*, dumpable: bool = True) -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    if dumpable:  # as a program is that began as this user
        _libc.prctl(4, 1, 0, 0, 0)


class Pinned:
    """Single pages with one more reference, from a pipe, as a device in the middle of I/O has."""

    def __init__(self, addresses: list[int]) -> None:
        self._reader, self._writer = os.pipe()
        for address in addresses:
            vector = (ctypes.c_size_t * 2)(address, PAGE)
            done = _libc.vmsplice(self._writer, vector, ctypes.c_ulong(1), 0)
            assert done == PAGE, os.strerror(ctypes.get_errno())
        self._size = len(addresses) * PAGE

    def release(self) -> bytes:
        """Drain the pipe and return what was in it."""
        text = b""
        while len(text) < self._size:
            text += os.read(self._reader, self._size - len(text))
        os.close(self._reader)
        os.close(self._writer)
        return text

# SPDX-License-Identifier: Apache-2.0
"""Memory for experiments: of one page size, with contents that can be checked."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..locate import locate

HUGE = 2 << 20
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_MAP_HUGETLB = 0x40000
_POOL = "/sys/devices/system/node/node{}/hugepages/hugepages-2048kB/nr_hugepages"
_THP = Path("/sys/kernel/mm/transparent_hugepage")
_CHUNK = 1 << 20  # words compared at a time
_MIX = np.uint64(0x9E3779B97F4A7C15)


class PageArray:
    """Private anonymous memory of ``pages`` pages of ``page_size`` bytes, written to.

    4 KiB pages are kept from becoming huge (MADV_NOHUGEPAGE), 2 MiB ones are transparent huge
    pages, or of hugetlb's pool with ``hugetlb``. Sizes between are folios of base pages (mTHP,
    Linux 6.10), for which root changes the machine's setting until they are there. Every word
    holds a value that depends on its place, so that ``check`` finds a lost, torn or swapped page.
    Raises ``MemoryError`` when the kernel does not give that size of page.
    """

    def __init__(self, pages: int, page_size: int, *, hugetlb: bool = False) -> None:
        self.page_size = page_size
        self.bytes = pages * page_size
        if page_size not in (mmap.PAGESIZE, HUGE):
            with _only_folios_of(page_size) as given:
                area = self._map_area()
                area[::page_size] = 0  # what filling needs besides may get such folios, too
                kind, got = f"{page_size >> 10} KiB", given() * page_size
                # Or khugepaged, which wakes up when the setting changes back, makes THPs of them.
                self._map.madvise(mmap.MADV_NOHUGEPAGE)
            self._fill(area)
        else:
            kind = "base" if page_size == mmap.PAGESIZE else "hugetlb" if hugetlb else "thp"
            if hugetlb:
                self._map_of_the_pool()
            else:
                self._fill(self._map_area())
            got = locate(self.words).by_kind(kind)
        if got < self.bytes:
            raise MemoryError(
                f"the kernel gave {got} of {self.bytes} bytes in {kind} pages; is THP enabled "
                "(/sys/kernel/mm/transparent_hugepage/enabled), and enough memory free?"
            )

    def _map_of_the_pool(self) -> None:
        try:
            self._map = mmap.mmap(-1, self.bytes, flags=_PRIVATE | _MAP_HUGETLB)
        except OSError as error:
            raise MemoryError(
                f"hugetlb's pool has no {self.bytes >> 20} MiB left ({error.strerror}); write to "
                "/sys/devices/system/node/node*/hugepages/hugepages-2048kB/nr_hugepages"
            ) from None
        self._fill(np.frombuffer(self._map, np.uint8))

    def _map_area(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        base = self.page_size == mmap.PAGESIZE
        self._map = mmap.mmap(-1, self.bytes + (0 if base else HUGE), flags=_PRIVATE)
        whole = np.frombuffer(self._map, np.uint8)
        skip = 0 if base else -whole.ctypes.data % HUGE
        self._map.madvise(mmap.MADV_NOHUGEPAGE if base else mmap.MADV_HUGEPAGE)
        return whole[skip : skip + self.bytes]

    def _fill(self, area: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self.words = area.view(np.uint64)
        for first in range(0, len(self.words), _CHUNK):
            self.words[first : first + _CHUNK] = self._expected(first)
        self.address = int(self.words.ctypes.data)

    def keep_from_children(self) -> None:
        """Children forked from now on do not have it: what is shared does not move."""
        self._map.madvise(mmap.MADV_DONTFORK)

    @property
    def addresses(self) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """The address of each page."""
        count = self.bytes // self.page_size
        return np.uint64(self.address) + np.arange(count, dtype=np.uint64) * np.uint64(
            self.page_size
        )

    def _expected(self, first: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        last = min(first + _CHUNK, len(self.words))
        return np.arange(first + 1, last + 1, dtype=np.uint64) * _MIX

    def check(self) -> None:
        """Compare every byte with what was written. Raises ``AssertionError`` with the place."""
        for first in range(0, len(self.words), _CHUNK):
            got = self.words[first : first + _CHUNK]
            wrong = np.flatnonzero(got != self._expected(first))
            if len(wrong):
                at = self.address + (first + int(wrong[0])) * 8
                raise AssertionError(f"{len(wrong)} words are damaged, the first at {at:#x}")


@contextmanager
def _only_folios_of(size: int) -> Iterator[Callable[[], int]]:
    """Have MADV_HUGEPAGE give folios of ``size`` bytes; yields how many were given since.

    Raises ``MemoryError`` where the kernel has no folios of that size, or not for this user.
    """
    wanted = {f"hugepages-{HUGE >> 10}kB": "never", f"hugepages-{size >> 10}kB": "madvise"}
    files = {_THP / name / "enabled": value for name, value in wanted.items()}
    given = _THP / f"hugepages-{size >> 10}kB/stats/anon_fault_alloc"
    try:
        before = {file: file.read_text().split("[")[1].split("]")[0] for file in files}
        began = int(given.read_text())
        for file, value in files.items():
            file.write_text(value)
    except OSError as error:
        raise MemoryError(
            f"no folios of {size >> 10} KiB here: {error.filename}: {error.strerror}; "
            "they take Linux 6.10 and root"
        ) from None
    try:
        yield lambda: int(given.read_text()) - began
    finally:
        for file, value in before.items():
            file.write_text(value)


@contextmanager
def hugetlb_pool(nodes: Iterable[int], pages: int) -> Iterator[None]:
    """Have at least so many free hugetlb pages of 2 MiB on each node; as before afterwards.

    Raises ``MemoryError`` where there is no pool, or this user may not change it.
    """
    files = [Path(_POOL.format(node)) for node in nodes]
    try:
        before = [int(file.read_text()) for file in files]
        for file, count in zip(files, before, strict=True):
            file.write_text(str(count + pages))
            if int(file.read_text()) < count + pages:
                raise MemoryError(f"{file}: {pages} more pages are not to be had in one piece")
    except OSError as error:
        raise MemoryError(
            f"no pool of hugetlb pages: {error.filename}: {error.strerror}; it takes root"
        ) from None
    try:
        yield
    finally:
        for file, count in zip(files, before, strict=True):
            file.write_text(str(count))


class Child:
    """Another process with a ``PageArray``, idle, to be moved from outside.

    A context manager: the process ends with it. ``check`` has it compare its memory.
    """

    def __init__(self, pages: int, page_size: int) -> None:
        self.bytes = pages * page_size
        code = (
            "import sys\n"
            "from pageferry.bench.memory import PageArray\n"
            f"array = PageArray({pages}, {page_size})\n"
            "print(hex(array.address), flush=True)\n"
            "for line in sys.stdin:\n"
            "    array.check()\n"
            "    print('whole', flush=True)\n"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        self.address = int(self._answer(), 16)

    @property
    def addresses(self) -> range:
        """The range of its array."""
        return range(self.address, self.address + self.bytes)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise MemoryError(f"the process to move ended with {self._process.wait()}")
        return line

    def check(self) -> None:
        """Have the process compare its bytes. Raises ``AssertionError``."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        try:
            self._answer()
        except MemoryError as error:
            raise AssertionError("the moved process found its memory damaged") from error

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def has_program(name: str) -> bool:
    """Say whether a program is on the PATH."""
    return any(
        os.access(Path(folder, name), os.X_OK) for folder in os.environ.get("PATH", "").split(":")
    )

# SPDX-License-Identifier: Apache-2.0
"""Every kind of target, and the addresses that it comes down to."""

from __future__ import annotations

import array
import ctypes
import errno
import gc
import io
import mmap
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry import RangeError, locate, move
from pageferry.errors import ProcessGoneError
from pageferry.target import resolve

PAGE = mmap.PAGESIZE
END = 1 << 57


def touched(start: int, size: int) -> tuple[range, ...]:
    """The pages that hold any of these bytes."""
    return (range(start // PAGE * PAGE, -(-(start + size) // PAGE) * PAGE),)


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
    process.communicate(b"\n")


# --- numpy


def test_contiguous_array() -> None:
    data = np.ones(10_000, np.float64)
    target = resolve(data)
    assert target.ranges == touched(data.ctypes.data, data.nbytes)
    assert target.pid == 0 and not target.whole_process
    assert target.bytes == len(target.ranges[0])


@pytest.mark.parametrize(
    "cut",
    [
        np.s_[100:2000, :],
        np.s_[::3, ::7],
        np.s_[::-1, ::-1],
        np.s_[5:-5, 900:100:-3],
        np.s_[7, 3:4],
    ],
)
def test_strided_array_is_all_from_its_first_to_its_last_byte(cut: Any) -> None:
    whole = np.zeros((3000, 1000), np.int32)
    part = whole[cut]
    offsets = np.arange(whole.size).reshape(whole.shape)[cut] * 4
    first, last = int(offsets.min()), int(offsets.max()) + 4
    assert resolve(part).ranges == touched(whole.ctypes.data + first, last - first)


def test_fortran_order_read_only_scalar_and_broadcast_arrays() -> None:
    fortran = np.asfortranarray(np.zeros((300, 500)))
    assert resolve(fortran).ranges == touched(fortran.ctypes.data, fortran.nbytes)
    fortran.flags.writeable = False
    assert resolve(fortran).ranges == touched(fortran.ctypes.data, fortran.nbytes)
    scalar = np.array(3.5)
    assert resolve(scalar).ranges == touched(scalar.ctypes.data, 8)
    same = np.broadcast_to(scalar, (1 << 20,))  # 8 MiB on paper, 8 bytes in memory
    assert resolve(same).ranges == touched(scalar.ctypes.data, 8)


@pytest.mark.parametrize(
    "empty", [np.zeros(0), np.zeros((0, 5)), np.zeros(10)[5:5], b"", bytearray()]
)
def test_nothing_is_nothing_to_move(empty: Any) -> None:
    assert resolve(empty).ranges == ()
    result = move(empty, 0)
    assert result.complete
    assert result.bytes_moved == result.bytes_already == result.bytes_not_present == 0
    assert locate(empty).nodes == {}


# --- buffers


@pytest.mark.parametrize(
    "make",
    [
        lambda: bytes(100_000),
        lambda: bytearray(100_000),
        lambda: array.array("d", [1.5]) * 20_000,
        lambda: array.array("u", "x") * 20_000,
        lambda: (ctypes.c_double * 10_000)(),
        lambda: (ctypes.c_void_p * 10_000)(),  # a format that numpy does not know
        lambda: memoryview(bytearray(100_000)).cast("i", (100, 250)),
        lambda: np.ones(20_000).data,
        lambda: io.BytesIO(bytes(100_000)).getbuffer(),
    ],
)
def test_objects_with_a_buffer(make: Any) -> None:
    data = make()
    view = memoryview(data)
    start = ctypes.addressof(
        ctypes.c_char.from_buffer(data) if not view.readonly else ctypes.c_char()
    )
    if view.readonly:
        start = np.frombuffer(view, np.uint8).ctypes.data
    assert resolve(data).ranges == touched(start, view.nbytes)
    present = locate(data).bytes_present + locate(data).bytes_zero
    assert present >= view.nbytes


def test_slices_of_a_memoryview() -> None:
    data = bytearray(50 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(data))
    view = memoryview(data)
    assert resolve(view[100:300]).ranges == touched(start + 100, 200)
    assert resolve(view[3 * PAGE : 5 * PAGE]).ranges == touched(start + 3 * PAGE, 2 * PAGE)
    # Every 1000th byte, and backwards: from the lowest to the highest byte.
    assert resolve(view[500::1000]).ranges == touched(
        start + 500, len(range(500, len(data), 1000)) * 1000 - 999
    )
    assert resolve(view[99:0:-1]).ranges == touched(start + 1, 99)
    assert resolve(view[7:7]).ranges == ()


def test_mmap() -> None:
    with mmap.mmap(-1, 10 * PAGE) as memory:
        view = ctypes.c_char.from_buffer(memory)
        start = ctypes.addressof(view)
        assert resolve(memory).ranges == (range(start, start + 10 * PAGE),)
        del view


def test_closed_mmap_and_released_view() -> None:
    memory = mmap.mmap(-1, PAGE)
    memory.close()
    with pytest.raises(ValueError, match="closed"):
        move(memory, 0)
    view = memoryview(bytearray(10))
    view.release()
    with pytest.raises(ValueError, match="released"):
        move(view, 0)


def test_file_mapping(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 64)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        assert bytes(memory[:256]) == bytes(range(256))
        assert move(memory, 0).bytes_already >= PAGE
    mapped = np.memmap(path, np.uint8, "r")
    assert mapped[1] == 1
    assert move(mapped, 0).bytes_already >= PAGE


@pytest.mark.parametrize("thing", ["text", 5, 2.5, [1, 2], {}, object(), int, iter(b"")])
def test_objects_without_a_buffer(thing: Any) -> None:
    with pytest.raises(TypeError, match="numpy array"):
        move(thing, 0)


def test_a_buffer_is_held_while_its_target_lives() -> None:
    data = bytearray(10 * PAGE)
    target = resolve(data)
    with pytest.raises(BufferError):
        data.extend(b"x")  # would move the bytes elsewhere
    del target
    data.extend(b"x")
    owner = np.zeros(10 * PAGE)
    alive = weakref.ref(owner)
    target = resolve(owner)
    del owner
    gc.collect()
    assert alive() is not None
    assert target.bytes >= 10 * PAGE
    del target
    gc.collect()
    assert alive() is None


def test_none_without_a_process_is_no_target() -> None:
    with pytest.raises(TypeError, match="pid="):
        move(None, 0)


# --- addresses


@pytest.mark.parametrize(
    ("addresses", "number", "words"),
    [
        (range(0x9000, 0x5000), errno.EINVAL, "reversed"),
        (range(0x5000, 0x9000, 2), errno.EINVAL, "step"),
        (range(0x9000, 0x5000, -1), errno.EINVAL, "step"),
        (range(-0x1000, 0x1000), errno.EFAULT, "address space"),
        (range(0, 1 << 58), errno.EFAULT, "address space"),
        (range(1 << 64, (1 << 64) + 1), errno.EFAULT, "address space"),
        (range((1 << 64) - PAGE, 1 << 64), errno.EFAULT, "address space"),
        (range((1 << 57) - PAGE, 1 << 57), errno.EFAULT, "address space"),
    ],
)
@pytest.mark.parametrize("call", [lambda r: move(r, 0), locate])
def test_impossible_addresses(call: Any, addresses: range, number: int, words: str) -> None:
    with pytest.raises(RangeError, match=words) as caught:
        call(addresses)
    assert caught.value.errno == number


def test_empty_range_is_nothing() -> None:
    assert resolve(range(0x5000, 0x5000)).ranges == ()
    assert move(range(0x5123, 0x5123), 0).complete


def test_unaligned_range() -> None:
    data = np.ones(20 * PAGE, np.uint8)
    first = -(-data.ctypes.data // PAGE) * PAGE
    middle = range(first + 100, first + 3 * PAGE + 1)
    assert resolve(middle).ranges == (range(first, first + 4 * PAGE),)
    assert resolve(middle, partial="inside").ranges == (range(first + PAGE, first + 3 * PAGE),)
    assert resolve(range(first + 1, first + PAGE), partial="inside").ranges == ()
    assert resolve(range(first + 1, first + 2)).ranges == (range(first, first + PAGE),)
    assert move(middle, 0).bytes_already >= 4 * PAGE


@pytest.mark.parametrize("partial", ["whole", "", None, "TOUCHED", 0])
def test_bad_partial(partial: Any) -> None:
    for target in (np.ones(1), range(0, PAGE), b""):
        with pytest.raises(ValueError, match="partial"):
            resolve(target, partial=partial)


def test_unmapped_range() -> None:
    with mmap.mmap(-1, 16 * PAGE) as memory:
        view = ctypes.c_char.from_buffer(memory)
        start = ctypes.addressof(view)
        del view
    # Page 0 is never mapped (vm.mmap_min_addr); what was unmapped just now may be again.
    for gap in (range(0, PAGE), range(0x100, 0x200)):
        with pytest.raises(RangeError, match="nothing is mapped") as caught:
            move(gap, 0)
        assert caught.value.errno == errno.EFAULT
        with pytest.raises(RangeError):
            locate(gap)
    assert start > PAGE


# --- processes


def test_whole_process(child: subprocess.Popen[bytes]) -> None:
    target = resolve(None, child.pid)
    maps = Path(f"/proc/{child.pid}/maps").read_text().splitlines()
    special = [line for line in maps if line.endswith(("[vvar]", "[vdso]", "[vvar_vclock]"))]
    assert special
    wanted = [line.split()[0] for line in maps if line not in special]
    spans = [tuple(int(end, 16) for end in span.split("-")) for span in wanted]
    spans = [span for span in spans if span[0] < 1 << 63]  # not the vsyscall page
    # Every mapping is in one range, and the ranges have nothing else.
    assert sum(len(r) for r in target.ranges) == sum(stop - start for start, stop in spans)
    for start, stop in spans:
        assert any(r.start <= start and stop <= r.stop for r in target.ranges)
    assert target.whole_process and target.pid == child.pid


def test_range_of_a_process(child: subprocess.Popen[bytes]) -> None:
    heap = next(
        line for line in Path(f"/proc/{child.pid}/maps").read_text().splitlines() if "heap" in line
    )
    start, end = (int(part, 16) for part in heap.split()[0].split("-"))
    target = resolve(range(start + 1, end - 1), child.pid)
    assert target.ranges == (range(start, end),)
    assert target.pid == child.pid and not target.whole_process
    result = move(range(start, end), 0, pid=child.pid)
    assert result.complete and 0 < result.bytes_already <= end - start
    with pytest.raises(RangeError):
        move(range(0, PAGE), 0, pid=child.pid)


def test_buffer_of_another_process_is_no_target(child: subprocess.Popen[bytes]) -> None:
    with pytest.raises(TypeError, match="pid"):
        resolve(np.ones(5), child.pid)


@pytest.mark.parametrize("pid", [0, -1, -(1 << 40)])
def test_impossible_process_ids(pid: int) -> None:
    with pytest.raises(RangeError):
        resolve(None, pid)


@pytest.mark.parametrize("pid", [True, "1", 1.0, b"1"])
def test_process_ids_are_numbers(pid: Any) -> None:
    with pytest.raises(TypeError, match="process id"):
        resolve(None, pid)


def test_process_that_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    # It waits for its parent to ask: a zombie, with a pid and without memory.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ProcessGoneError):
        resolve(None, process.pid)
    process.wait()
    with pytest.raises(ProcessGoneError):
        resolve(None, process.pid)


# --- properties

addresses = st.integers(0, END)


@given(start=addresses, stop=addresses)
def test_rounding_outwards(start: int, stop: int) -> None:
    start, stop = min(start, stop), max(start, stop)
    found = resolve(range(start, stop)).ranges
    if start == stop:
        assert found == ()
        return
    (pages,) = found
    assert pages.start % PAGE == 0 and pages.stop % PAGE == 0
    assert pages.start <= start < pages.start + PAGE
    assert pages.stop - PAGE < stop <= pages.stop


@given(start=addresses, size=st.integers(0, 5 * PAGE))
def test_rounding_inwards(start: int, size: int) -> None:
    stop = min(start + size, END)
    found = resolve(range(start, stop), partial="inside").ranges
    whole = [page for page in range(start // PAGE, stop // PAGE + 1) if page * PAGE >= start]
    whole = [page for page in whole if (page + 1) * PAGE <= stop]
    assert [r.start // PAGE for r in found] == whole[:1]
    assert sum(len(r) for r in found) == len(whole) * PAGE


@given(start=addresses, stop=addresses)
def test_inside_is_part_of_touched(start: int, stop: int) -> None:
    start, stop = min(start, stop), max(start, stop)
    outer = resolve(range(start, stop)).ranges
    for inner in resolve(range(start, stop), partial="inside").ranges:
        assert outer[0].start <= inner.start < inner.stop <= outer[0].stop
        assert start <= inner.start and inner.stop <= stop


@given(
    step=st.integers(-5, 5).filter(bool),
    first=st.integers(0, 60_000),
    last=st.integers(0, 60_000),
)
def test_a_slice_of_an_array_covers_each_of_its_items(step: int, first: int, last: int) -> None:
    items = _ITEMS[first:last:step]
    found = resolve(items).ranges
    if not len(items):
        assert found == ()
        return
    ends = sorted((items[:1].ctypes.data, items[-1:].ctypes.data))
    assert found == touched(ends[0], ends[1] + items.itemsize - ends[0])


_ITEMS = np.zeros(60_000, np.int16)

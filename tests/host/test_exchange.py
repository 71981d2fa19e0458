# SPDX-License-Identifier: Apache-2.0
"""exchange(): what pairs up, what is refused, and that no byte changes.

One node is enough for that: the core is asked to exchange pages of one node, too.
"""

from __future__ import annotations

import errno
import gc
import json
import mmap
import os
import signal
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from regions import HUGE, PAGE, Region

import pageferry
from pageferry import ExchangeInterrupted, RangeError, exchange
from pageferry._native import lib
from pageferry.stalls import stalls_of

module = sys.modules["pageferry.exchange"]  # "pageferry.exchange" is the function

_FEATURES = int(lib.pf_user_features())
needs_move = pytest.mark.skipif(
    _FEATURES < 0 or (lib.PF_USER_HAS_MOVE | lib.PF_USER_HAS_EVENTS) & ~_FEATURES != 0,
    reason="an exchange needs UFFDIO_MOVE and the right to a userfaultfd",
)


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchange pages of one node as well: this machine may have no other."""
    monkeypatch.setattr(module, "_FLAGS", lib.PF_EXCHANGE_SAME)


def frames(array: np.ndarray[Any, Any], pages: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The frame number of each page; zeros unless root asks."""
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(array.ctypes.data // PAGE * 8)
        entries = np.frombuffer(file.read(pages * 8), np.uint64)
    return entries & np.uint64((1 << 55) - 1)


@needs_move
@pytest.mark.parametrize("threads", [1, 2, "auto"])
@pytest.mark.parametrize("huge", [False, True])
def test_pages_swap_places_and_bytes_stay(threads: Any, huge: bool) -> None:
    gc.collect()
    size = 8 * HUGE
    sides = [Region(size, huge=huge) for _ in range(2)]
    for number, side in enumerate(sides):
        side.bytes[:] = np.arange(size, dtype=np.uint8) + number
    before = [frames(side.bytes, size // PAGE) for side in sides]
    result = exchange(sides[0].bytes, sides[1].bytes, threads=threads)
    after = [frames(side.bytes, size // PAGE) for side in sides]
    assert result.complete and result.bytes == result.bytes_exchanged == size
    assert not result.refused and not result.reasons and result.threads >= 1
    assert result.stalls.pieces >= 8 and 0 < result.stalls.p50_ms <= result.stalls.p99_ms
    assert result.stalls.p99_ms <= result.stalls.max_ms
    for number, side in enumerate(sides):
        assert (side.bytes == np.arange(size, dtype=np.uint8) + number).all()
    if os.geteuid() == 0:
        assert (after[0] == before[1]).all() and (after[1] == before[0]).all()
    value = json.loads(json.dumps(result.as_dict()))
    assert value["bytes_exchanged"] == size and value["complete"] is True


@needs_move
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=200),
    st.lists(st.booleans(), min_size=1, max_size=200),
    st.integers(1, 64),
)
def test_pages_without_a_partner_stay(ours: list[bool], theirs: list[bool], block: int) -> None:
    pages = min(len(ours), len(theirs))
    sides = [Region(pages * PAGE) for _ in range(2)]
    for number, present in enumerate((ours, theirs)):
        for page in range(pages):
            if present[page]:
                sides[number].bytes[page * PAGE : (page + 1) * PAGE] = 1 + page % 100 + number
    both = sum(a and b for a, b in zip(ours, theirs, strict=False))
    normal, module.BLOCK_BYTES = module.BLOCK_BYTES, block * PAGE
    try:
        result = exchange(sides[0].bytes, sides[1].bytes)
    finally:
        module.BLOCK_BYTES = normal
    assert result.bytes == pages * PAGE
    assert (result.bytes_exchanged, result.bytes_alone) == (both * PAGE, (pages - both) * PAGE)
    assert result.complete and result.bytes_skipped == 0
    for number, present in enumerate((ours, theirs)):
        assert pageferry.locate(sides[number].bytes).bytes_not_present == PAGE * sum(
            not p for p in present[:pages]
        )
        for page in range(pages):
            expected = 1 + page % 100 + number if present[page] else 0
            assert (sides[number].bytes[page * PAGE : (page + 1) * PAGE] == expected).all()


@needs_move
def test_arrays_of_ours() -> None:
    a = pageferry.full((1 << 20) + 5, 3, np.uint8, node=0)
    b = pageferry.full((1 << 20) + 5, 4, np.uint8, node=0)
    result = exchange(a, b)
    assert result.complete and result.bytes == result.bytes_exchanged == (1 << 20) + PAGE
    assert (a == 3).all() and (b == 4).all()


@needs_move
def test_ranges_over_several_mappings() -> None:
    sides = [Region(64 * PAGE) for _ in range(2)]
    for side in sides:
        side.bytes[:] = 7
    sides[0].advise(10, 8 * PAGE, 8 * PAGE)  # MADV_DONTFORK makes it a mapping of its own
    sides[1].advise(10, 20 * PAGE, 30 * PAGE)
    result = exchange(sides[0].range(), sides[1].range())
    assert result.complete and result.bytes_exchanged == 64 * PAGE
    assert (sides[0].bytes == 7).all() and (sides[1].bytes == 7).all()


@needs_move
def test_shared_by_a_fork_is_refused() -> None:
    sides = [Region(32 * PAGE) for _ in range(2)]
    for number, side in enumerate(sides):
        side.bytes[:] = 5 + number
        side.advise(10)  # MADV_DONTFORK
    sides[1].advise(11, 4 * PAGE, 8 * PAGE)  # MADV_DOFORK
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        result = exchange(sides[0].bytes, sides[1].bytes)
    finally:
        os.close(writer)
        os.waitpid(child, 0)
    assert result.refused == {errno.EBUSY: 8 * PAGE} and not result.complete
    assert result.bytes_exchanged == 24 * PAGE
    assert "shared by a fork" in result.reasons[0] and "EBUSY" in result.reasons[0]
    assert (sides[0].bytes == 5).all() and (sides[1].bytes == 6).all()


@needs_move
def test_shared_memory_is_refused() -> None:
    shared = mmap.mmap(-1, 16 * PAGE)
    shared[:] = b"s" * (16 * PAGE)
    side = Region(16 * PAGE)
    side.bytes[:] = 1
    result = exchange(side.bytes, shared)
    assert sum(result.refused.values()) == 16 * PAGE and not result.bytes_exchanged
    assert (side.bytes == 1).all() and shared[:] == b"s" * (16 * PAGE)


def test_nonsense() -> None:
    side = Region(16 * PAGE)
    with pytest.raises(RangeError, match="same size"):
        exchange(side.range(0, 4 * PAGE), side.range(8 * PAGE, 8 * PAGE))
    with pytest.raises(RangeError, match="overlap"):
        exchange(side.range(0, 4 * PAGE), side.range(2 * PAGE, 4 * PAGE))
    with pytest.raises(TypeError):
        exchange(None, side.bytes)
    with pytest.raises(TypeError):
        exchange(3, side.bytes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threads"):
        exchange(side.range(0, 4 * PAGE), side.range(8 * PAGE, 4 * PAGE), threads=0)


@needs_move
def test_nothing() -> None:
    empty = np.empty(0)
    result = exchange(empty, empty)
    assert result.complete and result.bytes == 0


@needs_move
def test_cancelled_before() -> None:
    sides = [Region(16 * PAGE) for _ in range(2)]
    for side in sides:
        side.bytes[:] = 1
    cancel = threading.Event()
    cancel.set()
    result = exchange(sides[0].bytes, sides[1].bytes, cancel=cancel)
    assert result.cancelled and not result.complete
    assert result.bytes_skipped == 16 * PAGE and not result.bytes_exchanged


@needs_move
def test_ctrl_c_ends_it_between_two_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes from a poll, so it is there in the middle for certain."""
    monkeypatch.setattr(module, "_POLL_US", 1)
    size = 8 * HUGE
    sides = [Region(size) for _ in range(2)]
    for number, side in enumerate(sides):
        side.bytes[:] = number + 1
    polls = []

    class Cancel(threading.Event):
        def is_set(self) -> bool:
            polls.append(1)
            if len(polls) == 4:
                signal.raise_signal(signal.SIGINT)
            return False

    with pytest.raises(ExchangeInterrupted) as caught:
        exchange(sides[0].bytes, sides[1].bytes, threads=1, cancel=Cancel())
    result = caught.value.result
    assert result.cancelled and 0 < result.bytes_exchanged < size
    assert result.bytes_exchanged + result.bytes_skipped == size
    for number, side in enumerate(sides):
        assert (side.bytes == number + 1).all()


@needs_move
def test_an_exception_of_the_caller_comes_out() -> None:
    class Cancel(threading.Event):
        def is_set(self) -> bool:
            raise ZeroDivisionError

    side = Region(16 * PAGE)
    with pytest.raises(ZeroDivisionError):
        exchange(side.range(0, PAGE), side.range(PAGE, PAGE), cancel=Cancel())


@needs_move
def test_under_a_writer_in_python() -> None:
    """It holds the interpreter when it waits for a page, and nothing may need that meanwhile."""
    size = 4 * HUGE
    sides = [Region(size) for _ in range(2)]
    for side in sides:
        side.bytes[:] = 0
    words = [side.bytes.view(np.uint64)[:: PAGE // 8] for side in sides]
    stop = threading.Event()
    rounds = [0]

    def write() -> None:
        while True:
            for side in words:
                side += np.uint64(1)
            rounds[0] += 1
            if stop.is_set():
                return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(20):
            assert exchange(sides[0].bytes, sides[1].bytes).complete
    finally:
        stop.set()
        thread.join()
    assert all((side == rounds[0]).all() for side in words)


def test_kernels_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel lacks is a mock: this one has what it has."""
    missing = pageferry.UnsupportedError(errno.EOPNOTSUPP, "no UFFDIO_MOVE")
    monkeypatch.setattr(module, "why_not", lambda way: missing)
    side = Region(2 * PAGE)
    with pytest.raises(pageferry.UnsupportedError, match="no UFFDIO_MOVE"):
        exchange(side.range(0, PAGE), side.range(PAGE, PAGE))


def test_stalls() -> None:
    assert stalls_of([0] * 128, 0).max_ms == 0
    buckets = [0] * 128
    buckets[3] = 98  # 3 us
    buckets[40] = 2  # 2048 to 2559 us: four buckets an octave
    stalls = stalls_of(buckets, 2100)
    assert (stalls.pieces, stalls.p50_ms, stalls.p99_ms) == (100, 0.004, 2.1)
    assert stalls.max_ms == 2.1

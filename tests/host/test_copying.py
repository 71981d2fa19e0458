# SPDX-License-Identifier: Apache-2.0
"""copy(): every byte of any two buffers, by every method, or a refusal that writes nothing."""

from __future__ import annotations

import mmap
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pageferry
from pageferry import copying

LARGE = 5 << 20


def pattern(size: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


@pytest.fixture
def restored() -> Iterator[None]:
    """Tuning is the process's: give back what was there."""
    found = copying.ffi.new("struct pf_copy_tuning *")
    copying.lib.pf_copy_tuned(found)
    before = copying._tuned
    yield
    assert copying.lib.pf_copy_tune(found) == 0
    copying._tuned = before


@pytest.mark.parametrize("method", ["auto", *copying.methods()])
@pytest.mark.parametrize("threads", ["auto", 1, 2, 5])
@pytest.mark.parametrize("size", [0, 1, 4097, LARGE])
def test_every_byte_and_no_other(method: str, threads: int | str, size: int) -> None:
    source = pattern(size)
    room = np.full(size + 128, 0xA5, np.uint8)
    result = pageferry.copy(room[64 : size + 64], source, threads=threads, method=method)
    assert np.array_equal(room[64 : size + 64], source)
    assert (room[:64] == 0xA5).all() and (room[size + 64 :] == 0xA5).all()
    assert result.bytes == size
    assert result.method in copying.methods() and method in ("auto", result.method)
    assert 1 <= result.threads <= (5 if threads == "auto" else int(threads)) or threads == "auto"
    assert result.seconds >= 0 and (result.gbps > 0 or size < 2)
    assert set(result.as_dict()) == {"bytes", "seconds", "threads", "method", "gbps"}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_parts_of_buffers(data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 20000))
    to, at = data.draw(st.integers(0, 70)), data.draw(st.integers(0, 70))
    method = data.draw(st.sampled_from(["auto", *copying.methods()]))
    source, target = pattern(size + at, size), bytearray(size + to + 3)
    pageferry.copy(
        memoryview(target)[to : to + size],
        source[at:],
        threads=data.draw(st.integers(1, 4)),
        method=method,
    )
    assert target == bytes(to) + source[at:].tobytes() + bytes(3)


def test_kinds_of_buffers() -> None:
    source = pattern(8192)
    target = mmap.mmap(-1, 8192)
    pageferry.copy(target, source.tobytes())
    assert target[:] == source.tobytes()
    pageferry.copy(bytearray(target), target)
    dates = np.arange(0, 1024, dtype="datetime64[s]")  # numpy exports no buffer of these
    words = np.zeros((2, 512), np.uint64)
    pageferry.copy(words, dates)
    assert np.array_equal(words.reshape(-1).view(dates.dtype), dates)
    record = np.zeros(3, [("a", "i4"), ("b", "f8")])
    pageferry.copy(record, np.arange(36, dtype=np.uint8))
    assert record.tobytes() == bytes(range(36))


def test_a_result_cannot_be_changed() -> None:
    result = pageferry.copy(bytearray(8), bytes(8))
    with pytest.raises(AttributeError):
        result.bytes = 9  # type: ignore[misc]
    assert result.threads == 1 and result.method == "memcpy"


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: (np.zeros((8, 8))[:, 1], np.zeros(8)), ValueError, "dst is not contiguous"),
        (lambda: (np.zeros(8), np.zeros(16)[::2]), ValueError, "src is not contiguous"),
        (lambda: (np.zeros((4, 2)), np.zeros((4, 2)).T), ValueError, "src is not contiguous"),
        (lambda: (memoryview(bytearray(9))[::3], b"abc"), ValueError, "dst is not contiguous"),
        (lambda: (bytes(8), bytearray(8)), ValueError, "dst is read-only"),
        (lambda: (np.broadcast_to(np.zeros(1), 1), bytes(8)), ValueError, "dst is read-only"),
        (lambda: (bytearray(8), bytes(9)), ValueError, "dst has 8 bytes, src 9"),
        (lambda: (3, bytes(9)), TypeError, "dst is a int"),
        (lambda: (bytearray(9), "text"), TypeError, "src is a str"),
        (lambda: (np.zeros(2, object), bytes(16)), TypeError, "Python objects"),
        (lambda: (bytearray(16), memoryview(np.zeros(2, object))), TypeError, "Python objects"),
    ],
)
def test_refusals(make, error, says) -> None:  # type: ignore[no-untyped-def]
    dst, src = make()
    with pytest.raises(error, match=says):
        pageferry.copy(dst, src)


@pytest.mark.parametrize("threads", [1, 3])
def test_overlap_is_refused_and_nothing_written(threads: int) -> None:
    memory = pattern(10000)
    before = memory.copy()
    for to, at in ((0, 1), (1, 0), (0, 4095), (0, 0)):
        with pytest.raises(ValueError, match=r"overlap$"):
            pageferry.copy(memory[to : to + 4096], memory[at : at + 4096], threads=threads)
    assert np.array_equal(memory, before)
    pageferry.copy(memory[:4096], memory[4096:8192], threads=threads)  # neighbours do not


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2", None])
def test_bad_threads(threads: object) -> None:
    with pytest.raises(ValueError, match="threads must be"):
        pageferry.copy(bytearray(8), bytes(8), threads=threads)  # type: ignore[arg-type]


def test_methods_of_this_and_of_other_cpus() -> None:
    with pytest.raises(ValueError, match="method must be 'auto' or one of memcpy, words"):
        pageferry.copy(bytearray(8), bytes(8), method="magic")
    missing = set(copying.METHOD_CODES) - set(copying.methods()) - {"auto"}
    assert missing, "no CPU has all of them"
    with pytest.raises(ValueError, match="this CPU cannot copy by"):
        pageferry.copy(bytearray(8), bytes(8), method=missing.pop())


def test_automatic_copies_go_by_the_tuning(restored: None) -> None:
    wanted = copying.ffi.new("struct pf_copy_tuning *")
    wanted.large_method = copying.METHOD_CODES["words"]
    wanted.large_bytes, wanted.thread_bytes = 1000, 4096
    assert copying.lib.pf_copy_tune(wanted) == 0
    copying._tuned = True
    kept = copying.tune(again=False)
    assert kept == copying.Tuning("words", 1000, 4096)
    assert pageferry.copy(bytearray(999), bytes(999)).method == "memcpy"
    assert pageferry.copy(bytearray(1000), bytes(1000)).method == "words"
    count, cpus = copying._workers(8192)
    assert count == min(2, copying._seats().cores)
    assert count == 1 or len(set(cpus[0:2])) == 2
    assert copying._workers(8191)[0] == 1


def test_tuning_is_measured_once(restored: None, monkeypatch: pytest.MonkeyPatch) -> None:
    copying._tuned = False
    monkeypatch.setattr(copying, "TUNED_FROM", 1 << 16)
    pageferry.copy(bytearray(1 << 16), bytes(1 << 16), threads=1, method="words")
    assert not copying._tuned  # nothing was left to choose
    pageferry.copy(bytearray(1 << 16), bytes(1 << 16))
    assert copying._tuned
    first = copying.tune(again=False)
    assert first.large_method in copying.methods()
    assert first.thread_bytes >= 4096 and first.large_bytes >= 4096
    assert copying.tune(again=False) == first


def test_others_run_meanwhile() -> None:
    """The GIL is free: another thread gets it between the beginning of a copy and its end."""
    source, target = np.ones(64 << 20, np.uint8), np.zeros(64 << 20, np.uint8)
    began, ran = threading.Event(), []

    def other() -> None:
        began.wait(300)
        ran.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # nobody gets the GIL who is not given it
    try:
        began.set()
        for _ in range(1000):  # a busy machine may take a few until the other thread gets a CPU
            pageferry.copy(target, source, threads=1, method="words")
            if ran:
                break
    finally:
        sys.setswitchinterval(interval)
        thread.join(300)
        assert not thread.is_alive()
    assert ran
    assert np.array_equal(target, source)


def test_callers_at_once() -> None:
    source = pattern(LARGE)
    targets = [np.zeros(LARGE, np.uint8) for _ in range(4)]
    threads = [
        threading.Thread(target=pageferry.copy, args=(to, source), kwargs={"threads": 3})
        for to in targets
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert all(np.array_equal(to, source) for to in targets)


def test_a_forked_child_copies_too() -> None:
    code = (
        "import os, numpy as np, pageferry\n"
        "a, b = np.ones(1 << 23, np.uint8), np.zeros(1 << 23, np.uint8)\n"
        "pageferry.copy(b, a, threads=2)\n"
        "pid = os.fork()\n"
        "b[:] = 0\n"
        "pageferry.copy(b, a, threads=2)\n"
        "assert b.all()\n"
        "if not pid: os._exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

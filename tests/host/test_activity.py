# SPDX-License-Identifier: Apache-2.0
"""Hot and idle pages: told by mappings, and by the bits of idle page tracking.

Most kernels here have no idle page tracking. A file stands in for its bitmap: what the kernel would
clear is cleared by hand. tests/guest/test_idle.py does it with the kernel's own.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child import in_a_child
from regions import HUGE, PAGE, Region, needs_thp
from test_cli import inside

from pageferry import (
    ProcessGoneError,
    UnsupportedError,
    locate,
    move,
    move_processes,
    page_idle,
    plan_move,
    procfs,
)
from pageferry.activity import Activity, Selection, selection
from pageferry.engine import status_table
from pageferry.pages import EXTENT
from pageferry.survey import Survey
from pageferry.target import resolve

SIZE = 4 << 20
CODE = f"""
import ctypes, mmap, sys
libc = ctypes.CDLL(None)
maps = [mmap.mmap(-1, {SIZE}), mmap.mmap(-1, {SIZE}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)]
for each in maps:
    each.madvise(mmap.MADV_NOHUGEPAGE)
    each.write(b"x" * {SIZE})
starts = [ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in maps]
print(*starts, flush=True)
for line in sys.stdin:
    # An access through an entry in the TLB leaves no trace; mprotect takes such entries away.
    for protection in (1, 3):
        assert not libc.mprotect(ctypes.c_void_p(starts[int(line)]), {SIZE}, protection)
    maps[int(line)][5 * 4096]
    print(flush=True)
"""
needs_clear_refs = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists() or procfs.smaps()[0].referenced is None,
    reason="this kernel does not tell what is referenced",
)


class Child:
    """A process with two mappings of its own, of which it reads one when told."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.pid = self._process.pid
        starts = map(int, self._process.stdout.readline().split())
        self.ranges = [range(start, start + SIZE) for start in starts]

    def touch(self, which: int) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{which}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "\n"

    def end(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    one = Child()
    yield one
    one.end()


@needs_clear_refs
def test_mappings_that_are_touched_are_hot(child: Child) -> None:
    for hot in (0, 1):
        activity = Activity(resolve(None, child.pid), way="mappings")
        child.touch(hot)
        for which in (0, 1):
            for name in ("hot", "idle"):
                result = move(
                    child.ranges[which],
                    0,
                    pid=child.pid,
                    exact=True,
                    **{name: activity},  # type: ignore[arg-type]
                )
                wanted = (which == hot) == (name == "hot")
                assert result.bytes_already == (SIZE if wanted else 0)
                assert result.bytes_other_activity == (0 if wanted else SIZE)
                assert result.complete and result.bytes_not_present == 0
                assert f"{name} was told of whole mappings" in result.warnings[0]


@needs_clear_refs
def test_watching_by_the_call_itself(child: Child) -> None:
    for which in (0, 1):
        options: dict[str, Any] = {"pid": child.pid, "idle": 0.01}
        assert locate(child.ranges[which], **options).bytes_present == SIZE
        assert plan_move(child.ranges[which], 0, **options).threads >= 1
        result = move(child.ranges[which], 0, pid=child.pid, hot=0.01)
        assert result.bytes_other_activity == SIZE and not result.bytes_already
        assert json.loads(json.dumps(result.as_dict()))["bytes_other_activity"] == SIZE
    # Several at once; one that is not there is told of as ever.
    done = move_processes([child.pid, 1 << 22], 0, idle=0.01, kind="file")
    assert done.processes[0].complete and done.processes[0].error is None
    assert done.results[0].bytes_already >= SIZE
    assert isinstance(done.processes[1].error, ProcessGoneError)


@needs_clear_refs
def test_a_cancel_ends_the_wait(child: Child) -> None:
    cancel = threading.Event()
    cancel.set()
    result = move(child.ranges[0], 0, pid=child.pid, idle=1e6, cancel=cancel)
    assert result.cancelled and not result.complete


def test_what_makes_no_sense() -> None:
    region = Region(HUGE)
    region.write(0, PAGE)
    for options in (
        {"hot": 1, "idle": 1}, {"hot": 0}, {"idle": -1}, {"hot": float("nan")}, {"idle": "1"},
        {"hot": True}, {"idle": 1e7},
    ):  # fmt: skip
        for what in (move, plan_move):
            with pytest.raises(ValueError, match=r"hot|idle"):
                what(region.range(), 0, **options)  # type: ignore[operator]
    with pytest.raises(ValueError, match="the way is one of"):
        Activity(resolve(region.range()), way="guess")


def test_processes_that_cannot_be_watched() -> None:
    with pytest.raises(ProcessGoneError):
        move(range(PAGE, 2 * PAGE), 0, pid=(1 << 22) - 1, idle=0.01)
    if os.getuid() == 0:
        assert in_a_child(_another_user).startswith("NotPermittedError: may not watch which pages")


def _another_user() -> str:
    parent = os.getppid()
    os.setgid(65534)
    os.setuid(65534)
    Activity(resolve(range(PAGE, 2 * PAGE), parent), way="mappings")
    return "watched"


def test_a_kernel_that_tells_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel here is built so; the file's name is changed for it."""
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.name != "clear_refs" and exists(path))
    monkeypatch.setattr(page_idle, "BITMAP", Path("/nowhere/bitmap"))
    with pytest.raises(UnsupportedError, match="cannot tell hot pages from idle ones"):
        move(Region(HUGE).range(), 0, idle=1)


# --- the bits of idle page tracking


@pytest.fixture
def bitmap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if os.getuid() != 0 or not Path("/proc/kpageflags").exists():
        pytest.skip("only root sees frame numbers")
    path = tmp_path / "bitmap"
    path.touch()
    monkeypatch.setattr(page_idle, "BITMAP", path)
    assert page_idle.available()
    return path


def clear(bitmap: Path, addresses: list[int]) -> None:
    """What the kernel does when the pages there are touched."""
    places = np.array(addresses, np.uint64)
    content = np.fromfile(bitmap, np.uint64)
    for frame in page_idle._heads(page_idle._frames_of(places, 0)).tolist():
        assert int(content[frame // 64]) >> frame % 64 & 1
        content[frame // 64] &= np.uint64(~(1 << frame % 64) & (1 << 64) - 1)
    content.tofile(bitmap)


@needs_thp
def test_pages_that_are_touched_are_hot(bitmap: Path) -> None:
    region = Region(4 * HUGE)
    region.advise(mmap.MADV_HUGEPAGE, HUGE, 2 * HUGE)
    region.write(0, 4 * HUGE)
    activity = Activity(resolve(region.range()))
    assert activity.way == "pages"
    hot = [0, PAGE, 7 * PAGE, 511 * PAGE, 2 * HUGE, 3 * HUGE]  # the fifth is a huge page
    clear(bitmap, [region.address + offset for offset in hot])
    first = move(region.range(), 0, hot=activity, exact=True)
    assert first.pages_already == {"base": 5, "thp": 1, "hugetlb": 0}
    rest = move(region.range(), 0, idle=activity, exact=True, statuses=True)
    assert rest.pages_already == {"base": 1024 - 5, "thp": 1, "hugetlb": 0}
    assert first.bytes_other_activity == rest.bytes_already
    assert rest.bytes_other_activity == first.bytes_already == HUGE + 5 * PAGE
    assert not first.warnings and not rest.warnings
    assert rest.statuses is not None
    assert set(rest.statuses["address"].tolist()).isdisjoint(region.address + h for h in hot)


def test_extents_of_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any pattern, in any cut: the pages that were wanted, each once, in order."""
    monkeypatch.setattr("pageferry.activity._CHUNK_PAGES", 7)
    random = np.random.default_rng(1)
    for _ in range(50):
        rows, at = [], 0
        for _ in range(random.integers(1, 6)):
            huge = bool(random.integers(2))
            shift, count = (21 if huge else 12), int(random.integers(1, 20))
            at = (at + int(random.integers(3)) * HUGE + HUGE - 1) // HUGE * HUGE
            rows.append((at, count, shift, int(huge)))
            at += count << shift
        extents = np.array(rows, EXTENT)
        table = status_table(extents)
        hot = set(table["address"][random.random(len(table)) < 0.5].tolist())

        class Known:
            way = "pages"

            def touched(self, pages: Any, hot: Any = hot) -> Any:
                return np.array([page in hot for page in pages["address"].tolist()], bool)

        chosen = Selection(Known(), idle=False)  # type: ignore[arg-type]
        found = [status_table(part) for part in chosen.keep(extents)]
        pages = np.concatenate(found) if found else table[:0]
        assert pages["address"].tolist() == [a for a in table["address"].tolist() if a in hot]
        size = dict(zip(table["address"].tolist(), table["size"].tolist(), strict=True))
        assert pages["size"].tolist() == [size[a] for a in pages["address"].tolist()]
        assert chosen.bytes_left == int(table["size"].sum()) - sum(size[a] for a in hot)


def test_nothing_asked_for_is_nothing_done() -> None:
    region = Region(HUGE)
    region.write(0, HUGE)
    target = resolve(region.range())
    assert selection(target, None, None) is None
    assert Survey(target).selection is None


# --- the command


@needs_clear_refs
def test_command(child: Child) -> None:
    words = ["--kind", "file", "--idle", 0.01, "--json"]
    for verb in (["move"], ["plan"], ["move", "--dry-run"]):
        done = inside(verb[0], child.pid, "--to", 0, *verb[1:], *words)
        assert done.returncode == 0 and done.stderr == ""
        assert json.loads(done.stdout)["bytes_already"] >= SIZE
    done = inside("move", child.pid, child.pid, "--to", 0, "--kind", "file", "--hot", 0.01)
    assert done.returncode == 0, done.stderr
    done = inside("move", child.pid, "--to", 0, "--kind", "file", "--hot", 0.01)
    assert "left by --hot or --idle" in done.stdout and "Note: hot was told of" in done.stdout
    one = json.loads(inside("locate", child.pid, "--idle", 0.01, "--json").stdout)
    assert one["bytes_present"] >= 2 * SIZE


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--hot", 1, "--idle", 1], "not allowed with argument"),
        (["--idle", 0], "no number of seconds above 0"),
        (["--hot", "x"], "no number of seconds above 0"),
    ],
)
def test_usage(words: list[object], text: str) -> None:
    for verb in (["move", 1, "--to", 0], ["locate", 1]):
        done = inside(*verb, *words)
        assert (done.returncode, done.stdout) == (2, "") and text in done.stderr
    done = inside("locate", "--self", "--hot", 1, "--plot", "-")
    assert done.returncode == 2 and "--plot draws all pages" in done.stderr

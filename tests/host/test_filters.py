# SPDX-License-Identifier: Apache-2.0
"""Filters: memory of one kind, pages of one size; in moves, plans and on the command line."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from regions import HUGE, PAGE, Region, needs_thp
from test_cli import inside

from pageferry import UnsupportedError, locate, move, plan_move
from pageferry.filters import MEMORY_KINDS, Filter
from pageferry.procfs import Mapping
from pageferry.survey import Survey
from pageferry.target import resolve

CODE = """
import ctypes, mmap, sys
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
ctypes.memset(libc.sbrk(1 << 20), 1, 1 << 20)
anon = mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
anon.write(b"x" * len(anon))
shared = mmap.mmap(-1, 3 << 20)
shared.write(b"x" * len(shared))
print(flush=True)
input()
"""


@pytest.fixture(scope="module")
def pid() -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    # Until it waits for its input, it may map another page of its libraries at any time.
    waiting = Path(f"/proc/{process.pid}/syscall")
    while waiting.read_text().split()[1:2] != ["0x0"]:  # a call with descriptor 0
        assert process.poll() is None
        time.sleep(0.01)
    yield process.pid
    process.communicate(b"\n")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("name", "perms", "inode", "kinds"),
    [
        ("", "rw-p", 0, {"anon"}),
        ("[anon:arena]", "rw-p", 0, {"anon"}),
        ("[heap]", "rw-p", 0, {"anon", "heap"}),
        ("[stack]", "rw-p", 0, {"anon", "stack"}),
        ("/anon_hugepage", "rw-p", 7, {"anon"}),
        ("/usr/lib/libc.so.6", "r-xp", 7, {"file"}),
        ("/memfd:x", "rw-s", 7, {"file"}),
        ("/dev/zero", "rw-s", 7, {"file"}),
        ("[vdso]", "r-xp", 0, set()),
    ],
)
def test_kinds_of_mappings(name: str, perms: str, inode: int, kinds: set[str]) -> None:
    device = "00:05" if inode else "00:00"
    mapping = Mapping(0x1000, 0x2000, perms, 0, device, inode, name)
    assert {kind for kind in MEMORY_KINDS if Filter.of(kind, None)._takes(mapping)} == kinds


def test_the_kinds_of_a_process(pid: int) -> None:
    sizes = {kind: move(pid=pid, node=0, kind=kind).bytes_already for kind in MEMORY_KINDS}
    assert sizes["heap"] >= 1 << 20 and sizes["stack"] >= PAGE
    assert sizes["anon"] >= (2 << 20) + sizes["heap"] + sizes["stack"]
    assert sizes["file"] >= 3 << 20
    # The libraries' pages that are not in use by others, and those that are: all are there.
    everything = move(pid=pid, node=0).bytes_already
    assert sizes["anon"] + sizes["file"] == everything
    both = move(pid=pid, node=0, kind=("heap", "stack"))
    assert both.bytes_already == sizes["heap"] + sizes["stack"]
    assert both.complete and both.whole_process
    assert locate(pid=pid, kind="heap").bytes_present == sizes["heap"]


def test_a_kind_in_a_range_of_another() -> None:
    region = Region(HUGE)
    region.write(0, HUGE)
    assert move(region.range(), 0, kind="anon").bytes_already == HUGE
    for kind in ("file", "heap", "stack"):
        result = move(region.range(), 0, kind=kind)
        assert result.complete and result.bytes_already == result.bytes_not_present == 0
    # A part of a mapping stays a part.
    assert move(region.range(PAGE, 3 * PAGE), 0, kind="anon").bytes_already == 3 * PAGE


@needs_thp
@pytest.mark.skipif(os.getuid() != 0, reason="only root can tell page sizes on every kernel")
def test_pages_of_one_size() -> None:
    region = Region(4 * HUGE)
    region.advise(mmap.MADV_HUGEPAGE, HUGE, 2 * HUGE)
    region.write(0, 4 * HUGE)
    base, huge = (move(region.range(), 0, only_page_size=size) for size in ("4K", "2M"))
    assert base.pages_already == {"base": 1024, "thp": 0, "hugetlb": 0}
    assert huge.pages_already == {"base": 0, "thp": 2, "hugetlb": 0}
    assert base.bytes_other_size == huge.bytes_other_size == 2 * HUGE
    assert base.complete and huge.complete and base.bytes_not_present == 0
    assert json.loads(json.dumps(huge.as_dict()))["bytes_other_size"] == 2 * HUGE
    where = locate(region.range(), only_page_size="2M")
    assert where.by_kind("thp") == where.bytes_present == 2 * HUGE
    assert plan_move(region.range(), 0, only_page_size="2M", kind="file").threads == 1


def test_where_sizes_cannot_be_told_it_says_so() -> None:
    region = Region(HUGE)
    region.write(0, HUGE)
    with pytest.raises(UnsupportedError, match="cannot be told"):
        move(region.range(), 0, only_page_size="4K", survey="query")
    only = Filter.of(None, "4K").page_size
    survey = Survey(resolve(region.range()), method="query", only=only)
    with pytest.raises(UnsupportedError):
        list(survey.windows())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"kind": "code"}, ValueError),
        ({"kind": ""}, ValueError),
        ({"kind": []}, ValueError),
        ({"kind": ["heap", "x"]}, ValueError),
        ({"kind": 3}, TypeError),
        ({"only_page_size": "3K"}, ValueError),
        ({"only_page_size": ""}, ValueError),
        ({"only_page_size": 4096}, TypeError),
    ],
)
def test_what_makes_no_sense(options: dict[str, Any], error: type[Exception]) -> None:
    for what in (move, plan_move):
        with pytest.raises(error):
            what(Region(HUGE).range(), 0, **options)


# --- the command


def test_command(pid: int) -> None:
    value = json.loads(inside("move", pid, "--to", 0, "--kind", "heap", "--json").stdout)
    assert value["complete"] and 1 << 20 <= value["bytes_already"] < 16 << 20
    done = inside("move", pid, "--to", 0, "--kind", "heap", "--kind", "stack", "--dry-run")
    assert done.returncode == 0 and done.stdout.startswith("Would move 0 B of process")
    several = json.loads(inside("plan", pid, pid, "--to", 0, "--kind", "heap", "--json").stdout)
    assert several["bytes_already"] == value["bytes_already"]
    if os.getuid() == 0 and Path("/proc/kpageflags").exists():
        value = json.loads(inside("move", pid, "--to", 0, "--page-size", "4K", "--json").stdout)
        assert value["complete"] and value["pages_already"]["thp"] == 0
        assert value["pages_already"]["base"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kind", "code"], "invalid choice: 'code'"),
        (["--kind"], "expected one argument"),
        (["--page-size", "3K"], "no page size of this machine; it has 4K"),
        (["--page-size", ""], "no page size of this machine"),
    ],
)
@pytest.mark.parametrize("verb", ["move", "plan"])
def test_usage(pid: int, verb: str, arguments: list[str], words: str) -> None:
    done = inside(verb, pid, "--to", 0, *arguments)
    assert (done.returncode, done.stdout) == (2, "") and words in done.stderr

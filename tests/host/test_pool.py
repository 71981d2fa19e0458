# SPDX-License-Identifier: Apache-2.0
"""Reservations of the warm pool. What engines do with it is tests/c/pool.c's."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from regions import HUGE, PAGE, needs_thp

import pageferry
from pageferry import NodeError, NodeFullError, page_size, pool, populate, topology
from pageferry._native import lib

NODE = topology().target_nodes[0]
BASE = page_size.BASE


def resident() -> int:
    """Bytes of anonymous memory that this process has."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def held() -> int:
    return int(lib.pf_pool_bytes(NODE, BASE.shift))


@pytest.mark.parametrize("threads", [1, 2, "auto"])
def test_there_until_released(threads: Any) -> None:
    size = 64 << 20
    before = resident()
    with pageferry.reserve(NODE, size, threads=threads) as reservation:
        assert (reservation.node, reservation.bytes, reservation.held) == (NODE, size, size)
        assert reservation.page_size == BASE.name and str(size) in repr(reservation)
        assert resident() - before > size * 0.9
        more = pageferry.reserve(NODE, PAGE + 1)
        assert more.bytes == 2 * PAGE and reservation.held == size + 2 * PAGE
        assert more.release() == 2 * PAGE and more.bytes == 0
        assert more.release() == 0 and reservation.held == size
    assert reservation.bytes == 0 and held() == 0
    assert resident() - before < size * 0.1


@needs_thp
def test_huge_pages() -> None:
    name = page_size.PageSize(HUGE.bit_length() - 1).name
    with pageferry.reserve(NODE, 3 * HUGE + 1, name) as reservation:
        assert reservation.bytes == reservation.held == 4 * HUGE
        assert reservation.page_size == name and held() == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((4000, PAGE), NodeError),
        ((True, PAGE), TypeError),
        ((NODE, -1), ValueError),
        ((NODE, 1.5), TypeError),
        ((NODE, PAGE, "3K"), ValueError),
    ],
)
def test_refused(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        pageferry.reserve(*arguments)


def test_nothing_at_all() -> None:
    with pageferry.reserve(NODE, 0) as reservation:
        assert reservation.bytes == reservation.held == 0


def test_no_room() -> None:
    size = 1 << 50
    with pytest.raises(NodeFullError, match=f"node {NODE} has no room for {size} bytes"):
        pageferry.reserve(NODE, size)
    assert held() == 0


@pytest.mark.parametrize("error", [NodeFullError, KeyboardInterrupt])
def test_an_end_half_way_leaves_nothing(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment is a mock: a full node, or a signal, between two portions."""
    monkeypatch.setattr(pool, "PORTION", 8 << 20)
    seen: list[int] = []

    def room(node: int) -> int:
        seen.append(held())
        if seen[-1] < 16 << 20:
            return 1 << 40
        if error is KeyboardInterrupt:
            raise error
        return 0

    monkeypatch.setattr(populate, "room", room)
    before = resident()
    with pytest.raises(error):
        pageferry.reserve(NODE, 64 << 20)
    assert seen[-1] == 16 << 20 and held() == 0
    assert resident() - before < 8 << 20


def test_threads_reserve_side_by_side() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                with pageferry.reserve(NODE, 64 * PAGE) as reservation:
                    assert reservation.held >= 64 * PAGE
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and held() == 0


def test_a_forked_child_has_none() -> None:
    code = (
        "import os, pageferry\n"
        f"reservation = pageferry.reserve({NODE}, 1 << 20)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    none = reservation.held == 0 and reservation.release() == 0\n"
        f"    with pageferry.reserve({NODE}, 1 << 20) as own:\n"
        "        os._exit(0 if none and own.held == 1 << 20 else 1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "assert reservation.release() == 1 << 20\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=300, env=os.environ)
    assert done.returncode == 0

# SPDX-License-Identifier: Apache-2.0
"""``move_async`` and ``on_local_node``."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import numpy as np
import pytest
from regions import PAGE, Region

import pageferry
from pageferry import NodeError, aio, local
from pageferry.engine import Progress
from pageferry.report import MoveResult
from pageferry.topology import topology

NODE = topology().target_nodes[0]
PATIENCE = 300


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE))


def filled(size: int) -> Region:
    region = Region(size)
    region.write(0, size)
    return region


# ---- move_async


def test_it_moves_and_returns_the_result() -> None:
    region = filled(4 << 20)
    result = run(pageferry.move_async(region.bytes, NODE, threads=1, statuses=True))
    assert isinstance(result, MoveResult) and result.complete
    assert len(result.statuses) == (4 << 20) // PAGE


def test_errors_are_those_of_move() -> None:
    with pytest.raises(NodeError):
        run(pageferry.move_async(np.ones(10), 999))
    with pytest.raises(TypeError):
        run(pageferry.move_async(np.ones(10), NODE, no_such_option=1))


class Held:
    """In place of move(): real moves of pages that are there already cannot be held up.

    It looks at ``cancel`` as the engine does, and can be let go on.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on, self.over = (threading.Event() for _ in range(3))
        self.cancelled = False
        self.beats = 0
        monkeypatch.setattr(aio, "move", self)

    def __call__(
        self, *arguments: Any, cancel: threading.Event, progress: Any, **options: Any
    ) -> str:
        self.begun.set()
        while not (cancel.is_set() or self.go_on.is_set()):
            if progress:
                progress(Progress(1, 1, 0, 2, 1.0))
            self.beats += 1
            self.go_on.wait(0.005)
        self.cancelled = cancel.is_set()
        if self.cancelled:
            self.go_on.wait(0.2)  # a batch that is under way ends first
        self.over.set()
        return "result"


def test_the_event_loop_goes_on_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)

    async def work() -> None:
        task = asyncio.create_task(pageferry.move_async(np.ones(1), NODE))
        for _ in range(50):
            await asyncio.sleep(0)
        assert await asyncio.to_thread(held.begun.wait, PATIENCE)
        assert not task.done()
        held.go_on.set()
        assert await task == "result"  # type: ignore[comparison-overlap]

    run(work())


@pytest.mark.parametrize("times", [1, 3])
def test_cancelled_it_waits_until_the_move_has_ended(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)

    async def work() -> None:
        task = asyncio.create_task(pageferry.move_async(np.ones(1), NODE))
        assert await asyncio.to_thread(held.begun.wait, PATIENCE)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not task.done() or held.over.is_set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert held.cancelled and held.over.is_set()

    run(work())


def test_the_callers_own_event_cancels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    event = threading.Event()

    async def work() -> None:
        task = asyncio.create_task(pageferry.move_async(np.ones(1), NODE, cancel=event))
        assert await asyncio.to_thread(held.begun.wait, PATIENCE)
        event.set()
        assert await task == "result"  # type: ignore[comparison-overlap]

    run(work())
    assert held.cancelled


def test_cancelling_a_task_leaves_the_callers_event_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    event = threading.Event()

    async def work() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pageferry.move_async(np.ones(1), NODE, cancel=event), 0.05)

    run(work())
    assert held.cancelled and not event.is_set()


def test_progress_comes_in_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    threads: set[int] = set()

    def progress(now: Progress) -> None:
        threads.add(threading.get_ident())
        held.go_on.set()

    assert run(pageferry.move_async(np.ones(1), NODE, progress=progress)) == "result"
    assert threads == {threading.get_ident()}


def test_an_exception_out_of_progress_ends_the_move(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)

    def progress(now: Progress) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(pageferry.move_async(np.ones(1), NODE, progress=progress))
    assert held.cancelled


def test_many_at_once() -> None:
    async def work() -> list[MoveResult]:
        regions = [filled(1 << 20) for _ in range(8)]
        return await asyncio.gather(*(pageferry.move_async(r.bytes, NODE) for r in regions))

    assert all(result.complete for result in run(work()))


# ---- on_local_node


def test_the_local_node_is_that_of_the_cpu() -> None:
    before = os.sched_getaffinity(0)
    try:
        for cpu in topology().cpus[:4]:
            os.sched_setaffinity(0, {cpu.id})
            at = topology().node(cpu.node or 0)
            if at.id in topology().target_nodes:
                assert local.local_node() == at.id
            else:
                assert local.local_node() in topology().target_nodes
    finally:
        os.sched_setaffinity(0, before)


def test_arrays_come_and_go_back() -> None:
    first, second = filled(1 << 20), filled(2 << 20)
    before = first.bytes.copy()
    with pageferry.on_local_node(first.bytes, second.bytes) as results:
        assert [result.complete for result in results] == [True, True]
        assert all(result.node == local.local_node() for result in results)
    assert (first.bytes == before).all()


def test_a_bad_target_leaves_nothing_behind() -> None:
    with (
        pytest.raises(TypeError, match="cannot move a str"),
        pageferry.on_local_node(np.ones(1000), "no buffer"),  # type: ignore[arg-type]
    ):
        raise AssertionError("not reached")
    with pytest.raises(NodeError), pageferry.on_local_node(np.ones(1000), node=999):
        raise AssertionError("not reached")


def test_what_the_body_raises_comes_out() -> None:
    with pytest.raises(ZeroDivisionError), pageferry.on_local_node(np.ones(1000)):
        raise ZeroDivisionError

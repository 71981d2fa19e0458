# SPDX-License-Identifier: Apache-2.0
"""What is looked for in values, and the thread that moves it; placement: tests/guest."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from pageferry import NodeError, keeping
from pageferry.keeping import Keeper, arrays_in

LARGE = 1 << 20


class Elsewhere:
    """A tensor on a device."""

    nbytes = LARGE

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, *, stream: None = None) -> Any:
        raise AssertionError("its device was to be asked first")


def test_what_is_found() -> None:
    array, small, text = np.zeros(LARGE, "u1"), np.zeros(10), b"x" * LARGE
    view = memoryview(array)
    value = [array, small, {"a": (text, "a" * LARGE), "b": view}, None, 7, {array.nbytes}]
    found = list(arrays_in(value, LARGE))
    assert len(found) == 3
    assert all(one is other for one, other in zip(found, (array, text, view), strict=True))
    nested: list[Any] = []
    nested.append(nested)
    assert list(arrays_in(nested, LARGE)) == []  # and it ends


def test_one_array_that_cannot_be_moved_does_not_stop_the_next() -> None:
    keeper = Keeper(0)
    try:
        bad, good = Elsewhere(), np.ones(LARGE, "u1")
        keeper.keep([bad, good])
        assert keeper.settle(300)
        kept = keeper.kept()
        assert kept.arrays == 2 and not kept.bytes_failed
        (problem,) = kept.errors
        assert problem.startswith("TypeError: this Elsewhere is not in the memory of the CPU")
        assert kept.errors[problem] == 1
    finally:
        keeper.close()


def test_what_waits_can_be_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The move is held up here, as it cannot be made to take long enough on demand."""
    begun, go_on = threading.Event(), threading.Event()
    moved: list[int] = []
    move = keeping.move

    def slow(target: Any, *arguments: Any, **options: Any) -> Any:
        begun.set()
        assert go_on.wait(300)
        moved.append(len(target))
        return move(target, *arguments, **options)

    monkeypatch.setattr(keeping, "move", slow)
    keeper = Keeper(0, least=1)
    try:
        first, second = np.ones(LARGE, "u1"), np.ones(LARGE + 1, "u1")
        gone = weakref.ref(second)
        keeper.keep(first)
        assert begun.wait(300)
        keeper.keep(second)
        del second
        gc.collect()
        assert gone() is None and not keeper.settle(0)
        go_on.set()
        assert keeper.settle(300)
        assert moved == [LARGE] and keeper.kept().arrays == 1
    finally:
        go_on.set()
        keeper.close()


def test_closed() -> None:
    with pytest.raises(NodeError, match="node 4095"):
        Keeper(4095)
    keeper = Keeper(0)
    keeper.close()
    keeper.close()
    assert "pageferry-keep" not in [thread.name for thread in threading.enumerate()]

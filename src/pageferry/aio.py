# SPDX-License-Identifier: Apache-2.0
"""move_async(): a move that an asyncio program waits for while it does other things."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .migrate import move

if TYPE_CHECKING:
    from .engine import Progress
    from .report import MoveResult
    from .target import Movable


async def move_async(
    target: Movable = None,
    node: int = -1,
    *,
    progress: Callable[[Progress], object] | bool | None = None,
    cancel: threading.Event | None = None,
    **options: Any,
) -> MoveResult:
    """Move as ``move`` does, with its arguments and errors, without blocking the event loop.

    The move runs on a thread of its own. ``progress`` is called in the event loop; an exception
    out of it ends the move, and is raised. When the task is cancelled, the move ends between two
    batches, and only then is ``asyncio.CancelledError`` raised: nothing of the target is touched
    any more once the await is over. What had moved by then stays moved.
    """
    import asyncio  # whoever awaits has imported it; others need not
    from concurrent.futures import ThreadPoolExecutor

    loop = asyncio.get_running_loop()
    ending = _Either(cancel)
    raised: list[BaseException] = []

    def show(now: Progress) -> None:
        assert callable(progress)
        if ending.is_set():
            return
        try:
            progress(now)
        except BaseException as error:
            raised.append(error)
            ending.set()

    def note(now: Progress) -> None:
        loop.call_soon_threadsafe(show, now)

    call = partial(
        move,
        target,
        node,
        progress=note if callable(progress) else progress,
        cancel=ending,
        **options,
    )
    # Not the loop's own threads: a move may take minutes, and they are few.
    executor = ThreadPoolExecutor(1, "pageferry-move")
    future = loop.run_in_executor(executor, contextvars.copy_context().run, call)
    executor.shutdown(wait=False)
    try:
        result = await asyncio.shield(future)
    except asyncio.CancelledError:
        ending.set()
        while not future.done():
            # Cancelled again or not, the move is over when it is over.
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        future.exception()  # looked at: nobody else will
        raise
    if raised:
        raise raised[0]
    return result


class _Either(threading.Event):
    """An event that is set when it is, or when another one is."""

    def __init__(self, other: threading.Event | None) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or (self._other is not None and self._other.is_set())

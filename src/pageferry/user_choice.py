# SPDX-License-Identifier: Apache-2.0
"""Which engine a move may use: what is asked for, and where the user engine is safe."""

from __future__ import annotations

from .page_size import parse_page_size
from .pages import PAGE_SHIFT
from .target import Target
from .user_engine import ENGINES, WAYS, WORTH_BYTES, UserRun, why_not


def choose_engine(
    what: Target,
    node: int,
    engine: str,
    way: str,
    page_size: str | None,
    *,
    stall_ms: float | None,
    exact: bool,
    bound: bool,
) -> UserRun | None:
    """Return the user engine's part of a move, or None where the kernel engine does it alone.

    ``bound`` says that something was asked for that only the kernel engine can do. ``"auto"``
    takes the user engine only for memory whose owner is held by the target, so that nobody unmaps
    it meanwhile, and only by ``checked``. Raises ``ValueError`` for what does not go together,
    ``NotPermittedError`` and ``UnsupportedError`` where the user engine was asked for and cannot
    be had.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is one of {', '.join(ENGINES)}, not {engine!r}")
    if way not in WAYS:
        raise ValueError(f"way is one of {', '.join(WAYS)}, not {way!r}")
    base = False
    if page_size is not None:
        if parse_page_size(page_size).shift != PAGE_SHIFT:
            raise ValueError(f"page_size can be the base page's only, not {page_size!r}")
        base = True
    if engine == "auto" and (base or way != "auto"):
        engine = "user"
    if engine == "kernel":
        if base or way != "auto":
            raise ValueError("way and page_size are for engine='user'")
        return None
    if engine == "user":
        if what.pid:
            raise ValueError("engine='user' moves only this process's own memory; leave pid out")
        if bound:
            raise ValueError(
                "engine='user' knows no source, shared, statuses or max_gbps; take engine='kernel'"
            )
        error = why_not("checked" if way == "auto" else way)
        if error is not None:
            raise error
    elif (
        what.pid
        or what.owner is None
        or bound
        or what.bytes < WORTH_BYTES
        or why_not("checked") is not None
    ):
        return None
    return UserRun(node, way, trial=engine == "auto", stall_ms=stall_ms, exact=exact, base=base)

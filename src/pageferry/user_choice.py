# SPDX-License-Identifier: Apache-2.0
"""Which engine a move may use: what is asked for, and where the user engine is safe."""

from __future__ import annotations

import errno

from ._native import lib
from .engine_trial import WORTH_BYTES
from .errors import UnsupportedError
from .limits import Limits
from .page_size import parse_page_size
from .pages import PAGE_SHIFT
from .target import Target
from .user_engine import ENGINES, WAYS, UserRun, features, why_not

_HUGE_SHIFT = 21  # what the C core can make of base pages


def choose_engine(
    what: Target,
    node: int,
    engine: str,
    way: str,
    page_size: str | None,
    *,
    limits: Limits,
    exact: bool,
    bound: bool,
    steered: bool = False,
) -> UserRun | None:
    """Return the user engine's part of a move, or None where the kernel engine does it alone.

    ``bound`` says that something was asked for that only the kernel engine can do, ``steered`` that
    somebody may pause or limit the move while it runs. ``"auto"``
    takes the user engine only for memory whose owner is held by the target, so that nobody unmaps
    it meanwhile, and only by ``checked``. Raises ``ValueError`` for what does not go together,
    ``NotPermittedError`` and ``UnsupportedError`` where the user engine was asked for and cannot
    be had.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is one of {', '.join(ENGINES)}, not {engine!r}")
    if way not in WAYS:
        raise ValueError(f"way is one of {', '.join(WAYS)}, not {way!r}")
    shift = _wanted_shift(page_size)
    if engine == "auto" and (shift or way != "auto"):
        engine = "user"
    if engine == "kernel":
        if shift or way != "auto":
            raise ValueError("way and page_size are for engine='user'")
        return None
    if engine == "user":
        if what.pid:
            raise ValueError("engine='user' moves only this process's own memory; leave pid out")
        if bound:
            raise ValueError(
                "engine='user' knows no source, shared or statuses; take engine='kernel'"
            )
        error = why_not("checked" if way == "auto" else way)
        if error is not None:
            raise error
        if shift > PAGE_SHIFT and not features() & lib.PF_USER_HAS_COLLAPSE:
            raise UnsupportedError(
                errno.EOPNOTSUPP,
                "this kernel makes no huge pages of base pages on request",
                "page_size='2M' needs MADV_COLLAPSE (Linux 6.1); leave page_size out",
            )
    elif (
        what.pid
        or what.owner is None
        or bound
        or limits.max_gbps is not None
        or steered  # what is held back says nothing about who is faster
        or what.bytes < WORTH_BYTES
        or why_not("checked") is not None
    ):
        return None
    return UserRun(
        node,
        way,
        trial=engine == "auto",
        stall_ms=limits.stall_ms,
        exact=exact,
        shift=shift,
        max_rate=limits.max_rate,
    )


def _wanted_shift(page_size: str | None) -> int:
    """Return the shift of the pages that are wanted in place of others, or 0."""
    if page_size is None:
        return 0
    size = parse_page_size(page_size)
    if size.hugetlb or size.shift not in (PAGE_SHIFT, _HUGE_SHIFT):
        raise ValueError(
            f"page_size is that of the base page or of a 2 MiB transparent huge page, "
            f"not {page_size!r}"
        )
    return size.shift

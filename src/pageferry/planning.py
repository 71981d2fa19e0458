# SPDX-License-Identifier: Apache-2.0
"""Planning: a plan before a move, and the plan of a move while its windows come in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from . import pressure
from .flags import MigrateMode
from .locate import locate
from .model import SMALLEST_CALL_BYTES
from .nodes import check_node, check_sources, machine
from .pages import extents_by_size
from .plan import Plan, check_request, make_plan
from .report import Placement

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .activity import Activity
    from .pressure import Pressure
    from .target import Movable

# Bytes, to look once who runs, since less is one thread's work, and to look until that is sure.
_WORTH_A_LOOK = 2 * SMALLEST_CALL_BYTES
_WORTH_SOME = 16 << 20


class Planning:
    """The plan of one move: the given one, or one made for the largest window so far.

    Raises ``ValueError`` and ``TypeError`` for what makes no sense before anything is looked at.
    """

    def __init__(
        self,
        node: int,
        given: Plan | None,
        *,
        threads: int | str,
        mode: MigrateMode,
        sources: frozenset[int] | None,
    ) -> None:
        self._node = node
        self._threads = threads
        self._source = next(iter(sources)) if sources is not None and len(sources) == 1 else None
        self._given = given is not None
        self._largest = -1
        self._bytes = 0
        self._seconds = 0.0
        self._plan: Plan | None = None
        self._mode = mode
        self._warning = ""
        if given is None:
            check_request(threads, mode)
        else:
            self._plan = _checked(given, threads, mode).allowed(machine())

    @property
    def plan(self) -> Plan:
        """The plan to follow now; of nothing, when no window was seen."""
        if self._plan is None:
            self._plan = self._made({})
        return self._plan

    def _made(self, pages: Mapping[int, int], now: Pressure | None = None) -> Plan:
        return make_plan(
            machine(),
            self._node,
            pages,
            threads=self._threads,
            mode=self._mode,
            source=self._source,
            pressure=now,
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to say of the machine as it was when the move was planned."""
        return (self._warning,) if self._warning else ()

    @property
    def judged(self) -> bool:
        """True when nobody insists on several threads: one does the rest, if that is quicker."""
        return not self._given and self._threads == "auto" and MigrateMode.MT not in self._mode

    def follow(self, extents: npt.NDArray[np.void]) -> bool:
        """Look at the next window; True when the plan is a new one that is to be followed."""
        if self._given:
            first, self._largest = self._largest < 0, 0
            return first
        pages = extents_by_size(extents)
        size = sum(page * count for page, count in pages.items())
        new = size > self._largest
        if new:
            self._largest = size
            now = _pressure(pages)
            self._plan = self._made(pages, now)
            self._warning = now.warning if now else ""
        self._bytes += size
        self._seconds += self.plan.expected_seconds * (size / self._largest if size else 0.0)
        return new

    def whole(self) -> Plan:
        """Return the plan with what is expected of all windows together."""
        if self._bytes <= self._largest or not self._seconds:
            return self.plan
        gbps = self._bytes / self._seconds / 1e9
        return replace(self.plan, expected_seconds=self._seconds, expected_gbps=gbps)


def _pressure(pages: Mapping[int, int]) -> Pressure | None:
    """Look how busy the machine is, for a move that takes longer than the look."""
    size = sum(size * count for size, count in pages.items())
    if size < _WORTH_A_LOOK:
        return None
    return pressure.now() if size >= _WORTH_SOME else pressure.now(looks=1)


def _checked(plan: Plan, threads: int | str, mode: MigrateMode) -> Plan:
    """Return ``plan`` if it can be run, and nothing beside it says otherwise."""
    if not isinstance(plan, Plan):
        raise TypeError(f"a plan is a Plan (see plan_move), not {plan!r}")
    if threads not in ("auto", plan.threads):
        raise ValueError(
            f"threads={threads!r} contradicts the plan, which has {plan.threads}; leave one out"
        )
    if mode not in (MigrateMode.SYNC, plan.mode):
        raise ValueError(f"mode={mode!r} contradicts the plan, which has {plan.mode!r}")
    return Plan.from_dict(plan.as_dict())


@dataclass(frozen=True)
class Outlook:
    """What a move would do: its plan, where the pages are now, and the bytes that would move."""

    plan: Plan
    placement: Placement
    bytes_to_move: int
    bytes_already: int

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "bytes_to_move": self.bytes_to_move,
            "bytes_already": self.bytes_already,
            "placement": self.placement.as_dict(),
            "plan": self.plan.as_dict(),
        }


def outlook(
    target: Movable,
    node: int,
    *,
    pid: int | None = None,
    source: Iterable[int] | int | None = None,
    mode: MigrateMode = MigrateMode.SYNC,
    threads: int | str = "auto",
    partial: str = "touched",
    survey: str | None = None,
    kind: str | Iterable[str] | None = None,
    only_page_size: str | None = None,
    hot: float | Activity | None = None,
    idle: float | Activity | None = None,
) -> Outlook:
    """Return what ``move`` with the same arguments would do. Moves nothing. Raises as ``move``."""
    check_node(node, pid)
    sources = check_sources(source)
    placement = locate(
        target,
        pid=pid,
        partial=partial,
        survey=survey,
        kind=kind,
        only_page_size=only_page_size,
        hot=hot,
        idle=idle,
    )
    pages: Counter[int] = Counter()
    size = 0
    for at, sizes in placement.pages.items():
        if at != node and (sources is None or at in sources):
            pages.update(sizes)
    size = sum(page * count for page, count in pages.items())
    from_ = {at for at in placement.nodes if at != node and (sources is None or at in sources)}
    plan = make_plan(
        machine(),
        node,
        pages,
        threads=threads,
        mode=mode,
        source=next(iter(from_)) if len(from_) == 1 else None,
        pressure=_pressure(pages),
    )
    return Outlook(plan, placement, size, placement.on(node))


def plan_move(
    target: Movable = None,
    node: int = -1,
    *,
    pid: int | None = None,
    source: Iterable[int] | int | None = None,
    mode: MigrateMode = MigrateMode.SYNC,
    threads: int | str = "auto",
    partial: str = "touched",
    survey: str | None = None,
    kind: str | Iterable[str] | None = None,
    only_page_size: str | None = None,
    hot: float | Activity | None = None,
    idle: float | Activity | None = None,
) -> Plan:
    """Return the plan of the move that ``move`` with the same arguments would make.

    It can be looked at, kept as JSON (``as_dict``, ``from_dict``) and run by ``move(plan=…)``.
    Asks the kernel where every page is now, so that only pages that have to move are planned for.
    Nothing moves. Raises what ``move`` raises.
    """
    return outlook(
        target,
        node,
        pid=pid,
        source=source,
        mode=mode,
        threads=threads,
        partial=partial,
        survey=survey,
        kind=kind,
        only_page_size=only_page_size,
        hot=hot,
        idle=idle,
    ).plan

# SPDX-License-Identifier: Apache-2.0
"""locate(): where the pages of a target are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from .activity import Activity, selection
from .engine import locate_extents
from .filters import Filter
from .nodes import machine
from .pages import BASE, HUGETLB, KINDS, THP, extents_by_size
from .plan import make_plan
from .refusal import explain_nothing, refusal
from .report import STATUS, Placement
from .survey import Survey
from .target import resolve

if TYPE_CHECKING:
    import numpy.typing as npt

    from .target import Movable


def locate(
    target: Movable = None,
    *,
    pid: int | None = None,
    partial: str = "touched",
    threads: int | str = "auto",
    statuses: bool = False,
    survey: str | None = None,
    kind: str | Iterable[str] | None = None,
    only_page_size: str | None = None,
    hot: float | Activity | None = None,
    idle: float | Activity | None = None,
) -> Placement:
    """Say where the pages of ``target`` are: bytes by node and kind of page.

    Arguments as in ``move``. With ``statuses`` the placement has a table with the node of every
    page. Raises ``RangeError`` for unmapped addresses, ``ProcessGoneError`` and
    ``NotPermittedError``. Rests on move_pages(2) without nodes.
    """
    part = Filter.of(kind, only_page_size)
    what = part.narrowed(resolve(target, pid, partial))
    chosen = selection(what, hot, idle)
    pages = Survey(what, method=survey, partial=partial, only=part.page_size, selection=chosen)
    nodes: dict[int, dict[str, int]] = {}
    counts: dict[int, Counter[int]] = {}
    tables: list[npt.NDArray[np.void]] = []
    unknown = 0
    seen = False
    for extents in pages.windows():
        seen = True
        plan = make_plan(machine(), -1, extents_by_size(extents), threads=threads)
        for page_kind in (BASE, THP, HUGETLB):
            for shift in np.unique(extents["shift"][extents["kind"] == page_kind]):
                chosen = extents[(extents["kind"] == page_kind) & (extents["shift"] == shift)]
                error, found, gone, failed, table = locate_extents(
                    chosen, what.pid, threads=plan.threads, statuses=statuses
                )
                if error:
                    raise refusal(error, what, -1)
                unknown += (gone + failed) << int(shift)
                for node in np.flatnonzero(found[:, page_kind]):
                    sizes = nodes.setdefault(int(node), dict.fromkeys(KINDS, 0))
                    sizes[KINDS[page_kind]] += int(found[node, page_kind]) << int(shift)
                    counts.setdefault(int(node), Counter())[1 << int(shift)] += int(
                        found[node, page_kind]
                    )
                if table is not None:
                    tables.append(table)
    if not seen:
        explain_nothing(what)
    return Placement(
        pid=pid,
        nodes=dict(sorted(nodes.items())),
        pages=dict(sorted(counts.items())),
        bytes_swapped=pages.bytes_swapped,
        bytes_zero=pages.bytes_zero,
        bytes_not_present=pages.bytes_absent,
        bytes_unknown=unknown,
        survey=pages.method,
        statuses=np.sort(np.concatenate(tables), order="address")
        if tables
        else (np.zeros(0, STATUS) if statuses else None),
    )

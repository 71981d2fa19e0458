# SPDX-License-Identifier: Apache-2.0
"""The cost model against this machine: calibrated here, then moves of many sizes expected."""

from __future__ import annotations

import errno
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arrays import empty
from ..calibration import Calibration
from ..errors import NodeError
from ..page_size import thp_available
from ..pages import PAGE_SIZE
from ..plan import Plan, make_plan
from ..survey import thp_shift
from ..sweep import thread_numbers
from ..topology import Topology, topology
from .costs import measure, moved
from .machine import machine_facts
from .model_check import summarized

SIZES = tuple(mib << 20 for mib in (1, 2, 4, 8, 16, 32, 64, 128))
REPEATS = 5

Say = Callable[[str], None]


@dataclass
class _Case:
    """What is moved to the second node and back, the plans of both ways, and what that took."""

    size: int
    page_size: int
    plans: dict[int, Plan]
    seconds: list[float] = field(default_factory=list)


def check_here(
    *,
    repeats: int = REPEATS,
    sizes: tuple[int, ...] = SIZES,
    known: Calibration | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Calibrate, unless it is ``known``; then compare what moves take with what plans expect.

    Each size moves as base pages and as THPs, by one thread, two, four … and all cores, in an order
    of its own in each repeat. Measured is the median of ``MoveResult.seconds``, expected the plan's
    ``expected_seconds``. The calibration is kept nowhere. Raises ``NodeError`` (ENODEV) with fewer
    than two nodes, ``NodeFullError`` without the memory, 256 MiB on one and 128 MiB on the other.
    """
    here = topology()
    if len(here.target_nodes) < 2:
        raise NodeError(
            errno.ENODEV,
            "moves need two nodes with memory",
            "run it in a guest: pageferry bench model --own --lab always",
        )
    known = known or measure(say=say)
    first, second = here.target_nodes[:2]
    kinds = {PAGE_SIZE: "4K"} | ({1 << thp_shift(): "2M"} if thp_available() else {})
    rows = []
    for page_size, name in kinds.items():
        array = empty(max(sizes), np.uint8, node=first, page_size=name)
        cases = [
            case for size in sizes for case in _cases(here, known, (first, second), page_size, size)
        ]
        chance = random.Random(repeats)
        for repeat in range(-1, repeats):
            say(f"{name} pages: {'warm-up' if repeat < 0 else f'{repeat + 1}/{repeats}'}")
            for case in chance.sample(cases, len(cases)):
                part = array[: case.size]
                took = [moved(part, to, plan=case.plans[to]).seconds for to in (second, first)]
                case.seconds += took if repeat >= 0 else []
        rows += [_row(case, second) for case in cases]
    return {
        "source": "moves here, expected from pageferry calibrate",
        "machine": machine_facts(),
        "free": [],
        "costs": known.costs.as_dict(),
        "repeats": repeats,
        "rows": rows,
        "summary": summarized(rows),
    }


def _cases(
    here: Topology, known: Calibration, pair: tuple[int, int], page_size: int, size: int
) -> list[_Case]:
    """Return the moves of ``size`` bytes, by each number of threads that makes a difference."""
    pages = {page_size: size // page_size}
    found = []
    cores = len({cpu.core for cpu in here.cpus if cpu.id in here.allowed_cpus})
    for threads in thread_numbers(cores, cores):
        plans = {
            to: make_plan(here, to, pages, threads=threads, source=from_, calibration=known)
            for from_, to in (pair, pair[::-1])
        }
        if pages[page_size] >= threads:
            found.append(_Case(size, page_size, plans))
    return found


def _row(case: _Case, to: int) -> dict[str, Any]:
    plan, seconds = case.plans[to], statistics.median(case.seconds)
    expected = statistics.mean(plan.expected_seconds for plan in case.plans.values())
    return {
        "engine": "pageferry",
        "page_size": case.page_size,
        "pages": case.size // case.page_size,
        "threads": plan.threads,
        "seconds": seconds,
        "samples": case.seconds,
        "expected_seconds": expected,
        "published": case.size / seconds / 1e9,
        "predicted": case.size / expected / 1e9,
        "error": seconds / expected - 1,
        "fitted": False,
        "left_out": None,
    }

# SPDX-License-Identifier: Apache-2.0
"""What pageferry did in this process: counted always, shown to Prometheus when asked.

``register()`` adds the counters to a program's own Prometheus registry; ``totals()`` needs no
package.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import extras
from .errors import errno_name

if TYPE_CHECKING:
    from .report import MoveResult, Stalls


@dataclass(frozen=True)
class Totals:
    """Sums over the moves of this process. Sizes are bytes, times seconds.

    ``moves`` counts by outcome: ``complete``, ``incomplete`` (something did not move) and
    ``cancelled``. ``moved`` is bytes by target node, ``failed`` pages by errno name.
    """

    moves: dict[str, int] = field(default_factory=dict)
    moved: dict[int, int] = field(default_factory=dict)
    bytes_failed: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    longest_call: float = 0.0
    stalls: Stalls | None = None
    """Of the last move in which the user engine took part."""


_lock = threading.Lock()
_moves: Counter[str] = Counter()
_moved: Counter[int] = Counter()
_failed: Counter[str] = Counter()
_stalls: Stalls | None = None
_sums = {"bytes_failed": 0, "seconds": 0.0, "longest_call": 0.0}


def count(result: MoveResult) -> None:
    """Add a move; ``move()`` does it for each."""
    global _stalls
    outcome = "complete" if result.complete else "cancelled" if result.cancelled else "incomplete"
    with _lock:
        _moves[outcome] += 1
        _moved[result.node] += result.bytes_moved
        for number, pages in result.failed.items():
            _failed[errno_name(number)] += pages
        _stalls = result.stalls or _stalls
        _sums["bytes_failed"] += result.bytes_failed
        _sums["seconds"] += result.seconds
        _sums["longest_call"] = max(_sums["longest_call"], result.longest_call_ms / 1000)


def totals() -> Totals:
    """Return the sums so far."""
    with _lock:
        return Totals(
            dict(_moves), dict(_moved), int(_sums["bytes_failed"]), dict(_failed),
            _sums["seconds"], _sums["longest_call"], _stalls,
        )  # fmt: skip


class MoveCollector:
    """The counters of this process's moves, for a Prometheus registry."""

    def collect(self) -> Iterator[Any]:
        """Yield the metrics."""
        core = extras.require("prometheus_client.core", "export", "showing metrics to Prometheus")
        now = totals()
        moves = core.CounterMetricFamily("pageferry_moves", "Moves, by outcome", labels=["outcome"])
        for outcome in ("complete", "incomplete", "cancelled"):
            moves.add_metric([outcome], now.moves.get(outcome, 0))
        yield moves
        moved = core.CounterMetricFamily(
            "pageferry_moved_bytes", "Bytes that moved, by target node", labels=["node"]
        )
        for node, size in sorted(now.moved.items()):
            moved.add_metric([str(node)], size)
        yield moved
        failed = core.CounterMetricFamily(
            "pageferry_failed_pages", "Pages that did not move, by errno", labels=["errno"]
        )
        for name, pages in sorted(now.failed.items()):
            failed.add_metric([name], pages)
        yield failed
        yield core.CounterMetricFamily(
            "pageferry_failed_bytes", "Bytes in pages that did not move", value=now.bytes_failed
        )
        yield core.CounterMetricFamily(
            "pageferry_move_seconds", "Seconds spent in moves", value=now.seconds
        )
        yield core.GaugeMetricFamily(
            "pageferry_longest_call_seconds",
            "The longest system call of a move so far",
            value=now.longest_call,
        )
        stalls = core.GaugeMetricFamily(
            "pageferry_stall_seconds",
            "How long accesses may have waited for a page in the last move by the user engine",
            labels=["quantile"],
        )
        if now.stalls is not None:
            told = {"0.5": now.stalls.p50_ms, "0.99": now.stalls.p99_ms, "1": now.stalls.max_ms}
            for quantile, milliseconds in told.items():
                stalls.add_metric([quantile], milliseconds / 1000)
        yield stalls


def register(registry: Any = None) -> MoveCollector:
    """Add the counters to ``registry``, by default prometheus_client's own.

    Raises ``PageferryError`` (ENOPKG) without prometheus-client.
    """
    client = extras.require("prometheus_client", "export", "showing metrics to Prometheus")
    collector = MoveCollector()
    (client.REGISTRY if registry is None else registry).register(collector)
    return collector

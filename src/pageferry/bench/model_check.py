# SPDX-License-Identifier: Apache-2.0
"""The cost model against measurements: fitted on a stated few rows, predicting all others."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..described import load_machine
from ..fit import Measured, fit
from ..model import Costs, predict
from ..seats import Seats
from .published import SERIES, Row, published

EXPERIMENT = "model"
#: What every fit begins with; a fit of few rows stays near it in what they do not tell.
START = Costs(
    call_us=10.0,
    page_us=((4096, 1.5), (65536, 6.0), (2 << 20, 25.0)),
    smt_gain=0.3,
    thread_gbps=4.0,
    cache_gbps=100.0,
    link_gbps=15.0,
    sharpness=2.0,
    handover_us=20.0,
    handover_thread_us=1.0,
)
_ALWAYS = ("page_us.4096", "page_us.2097152", "thread_gbps", "handover_us", "link_gbps")


@dataclass(frozen=True)
class Source:
    """How one source was measured, and which of its rows (from 0, in the table's order) are fitted.

    ``splits_thp``: its unmodified kernel moves a THP as base pages. ``batch_once``: its batching
    kernel hands all pages of a call to the threads at once, not 2 MiB at a time.
    """

    machine: str
    fitted: tuple[int, ...]
    free: tuple[str, ...]
    splits_thp: bool = False
    batch_once: bool = False


#: For each source: rows by one thread for each size of page, and the fewest needed with more.
SOURCES = {
    SERIES: Source("e5-2650", (0, 6, 8, 10), (*_ALWAYS, "handover_thread_us"), splits_thp=True),
    "lkml-2019-04-04-yan": Source(
        "e5-2650v3", (0, 1, 2, 6, 7, 14), (*_ALWAYS, "call_us"), batch_once=True
    ),
    "lkml-2025-09-23-garg": Source("zen3", (0, 1, 2, 14, 17), (*_ALWAYS, "page_us.65536")),
}


def check_published() -> dict[str, Any]:
    """Fit each source and predict the rest of its rows; return all figures, ready for JSON."""
    sources = [_check_source(name, source) for name, source in SOURCES.items()]
    return {
        "experiment": EXPERIMENT,
        "sources": sources,
        "rows": len(published()),
        "summary": summarized([row for source in sources for row in source["rows"]]),
    }


def fitted_costs(name: str) -> Costs:
    """Return the costs fitted to the stated rows of a source."""
    source = SOURCES[name]
    seats = load_machine(source.machine).seats(0, 1)
    rows = published(name)
    measured = [_measured(rows[i], source, seats) for i in source.fitted]
    return fit(measured, START, source.free)


def _check_source(name: str, source: Source) -> dict[str, Any]:
    machine = load_machine(source.machine)
    seats = machine.seats(0, 1)
    costs = fitted_costs(name)
    rows = []
    for number, row in enumerate(published(name)):
        measured = _measured(row, source, seats)
        found = predict(
            costs,
            seats,
            measured.pages,
            row.threads,
            engine=measured.engine,
            handovers=measured.handovers,
        )
        entry = {
            "engine": row.engine,
            "page_size": row.page_size,
            "pages": row.pages,
            "threads": row.threads,
            "published": row.gbps,
            "predicted": found.gbps,
            "error": found.gbps / row.gbps - 1,
            "fitted": number in source.fitted,
            "dominant": found.dominant,
        }
        if row.copy_gbps:
            copying = found.seconds - found.terms["bookkeeping"] - costs.call_us / 1e6
            entry["published_copy"] = row.copy_gbps
            entry["predicted_copy"] = row.bytes / copying / 1e9
        rows.append(entry)
    return {
        "source": name,
        "machine": machine.name,
        "free": list(source.free),
        "costs": costs.as_dict(),
        "rows": rows,
        "summary": summarized(rows),
    }


def check_runs(figures: Mapping[str, Any], costs: Costs | None = None) -> dict[str, Any]:
    """Predict the rows of ``bench series`` from ``costs``, or from its rows by one thread.

    ``figures`` are what ``bench series --output`` wrote, ``costs`` those of a calibration of the
    same machine; without them the model is fitted to the one-thread rows. A row that is no work of
    the model's kind has a ``left_out`` that says why.
    """
    cpus = int(figures["machine"]["cpus"])
    seats = Seats(tuple(range(cpus)), tuple(range(cpus)), (False,) * cpus)
    rows: list[dict[str, Any]] = []
    measured: list[Measured] = []
    for case in figures["cases"]:
        for way in case["ways"]:
            number = re.search(r"(?<=× )\d+|\d+(?= thread)", way["name"])
            threads = int(number[0]) if number else 1
            pages = {int(case["page_size"]): int(case["pages"])}
            rows.append(
                {
                    "engine": way["name"],
                    "page_size": int(case["page_size"]),
                    "pages": int(case["pages"]),
                    "threads": threads,
                    "published": float(way["gbps"]),
                    "fitted": costs is None and way["name"] == "pageferry, 1 thread",
                    "left_out": _why_not(way["name"]),
                }
            )
            seconds = float(case["bytes"]) / float(way["gbps"]) / 1e9
            measured.append(Measured(pages, threads, seconds, seats))
    free: tuple[str, ...] = ()
    if costs is None:
        sizes = sorted({row["page_size"] for row in rows if row["fitted"]})
        free = (*(f"page_us.{size}" for size in sizes), "thread_gbps")
        fitted = [run for run, row in zip(measured, rows, strict=True) if row["fitted"]]
        costs = fit(fitted, START, free)
    for row, run in zip(rows, measured, strict=True):
        if row["left_out"] is None:
            found = predict(costs, seats, run.pages, run.threads)
            row["predicted"], row["dominant"] = found.gbps, found.dominant
            row["error"] = found.gbps / row["published"] - 1
    return {
        "source": "bench series",
        "machine": figures["machine"],
        "free": list(free),
        "costs": costs.as_dict(),
        "rows": rows,
        "summary": summarized([row for row in rows if row["left_out"] is None]),
    }


def _why_not(way: str) -> str | None:
    if way == "migratepages":
        return "it is another program, and its start counts"
    if way.endswith("that process"):
        return "all memory of a process moves, more than the pages that are counted"
    if "MPOL_MF_MOVE_MT" in way or way.endswith("user engine"):
        return "it copies in another way"
    return None


def _measured(row: Row, source: Source, seats: Seats) -> Measured:
    pages = {row.page_size: row.pages}
    if source.splits_thp and row.engine == "vanilla" and row.page_size > 4096:
        pages = {4096: row.bytes // 4096}
    batch = "batch" in row.engine
    return Measured(
        pages,
        row.threads,
        row.seconds,
        seats,
        engine="split-batch" if batch else "split",
        handovers=1 if batch and source.batch_once else None,
    )


def summarized(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the median and the worst error of the rows that were not fitted."""
    errors = [abs(row["error"]) for row in rows if not row["fitted"]]
    return {
        "fitted": len(rows) - len(errors),
        "predicted": len(errors),
        "median_error": statistics.median(errors) if errors else None,
        "worst_error": max(errors) if errors else None,
    }

# SPDX-License-Identifier: Apache-2.0
"""The table and the plot of the copy experiment."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .copy import MANY, MEMCPY, ONE
from .machine import describe

#: What one thread of ``copy_pages`` is to reach, in memcpy's speed at the largest size.
AIM = 1.3


def print_table(figures: dict[str, Any], out: Console) -> None:
    """Print GB/s by way and size, each with its ratio to memcpy, and what follows from them."""
    cases = figures["cases"]
    out.print(f"[bold]{describe(figures['machine'])}[/bold]")
    where = "repeated in one place" if figures["cached"] else "on through memory: in no cache"
    out.print(
        f"GB/s, each byte counted once: median of {figures['repeats']} repeats, alternated; and "
        f"times memcpy, inside a repeat. {_size(figures['page_size'])} pages, {where}."
    )
    if figures["other_load"] > 0.2:
        out.print(
            f"[bold]The machine was busy[/bold]: other processes used {figures['other_load']:.1f} "
            "CPUs. Repeat on an idle one."
        )
    table = Table(box=None, padding=(0, 1))
    table.add_column("")
    for case in cases:
        table.add_column(_size(case["bytes"]), justify="right", no_wrap=True)
    best = [max(way["gbps"] for way in case["ways"]) for case in cases]
    for row, name in enumerate(way["name"] for way in cases[0]["ways"]):
        cells = []
        for column, case in enumerate(cases):
            way = case["ways"][row]
            text = f"{way['gbps']:.1f} {way['ratio']:.2f}×"
            cells.append(f"[bold]{text}[/bold]" if way["gbps"] == best[column] else text)
        table.add_row(name, *cells)
    out.print(table)
    spreads = [
        (way["gbps_high"] - way["gbps_low"]) / way["gbps"] for case in cases for way in case["ways"]
    ]
    out.print(
        f"Spread, highest less lowest: {statistics.median(spreads):.0%} of the median for half "
        f"of the figures, {max(spreads):.0%} at most."
    )
    tuning = figures["tuning"]
    out.print(
        f"Measured for auto: {tuning['large_method']} from {_size(tuning['large_bytes'])} on, a "
        f"thread for each {_size(tuning['thread_bytes'])}."
    )
    for line in conclusions(figures):
        out.print(line)


def conclusions(figures: dict[str, Any]) -> list[str]:
    """Return in words how far the aims were met: one thread, and many against one."""
    largest = max(figures["cases"], key=lambda case: case["bytes"])
    one = next(way for way in largest["ways"] if way["name"] == f"{ONE} auto")
    lines = [
        f"{ONE}, 1 thread, {_size(largest['bytes'])}: {one['ratio']:.2f}× memcpy "
        f"({one['ratio_low']:.2f}–{one['ratio_high']:.2f}); the aim is {AIM}×."
    ]
    many = [
        (way["ratio_to_one"], way, case)
        for case in figures["cases"]
        for way in case["ways"]
        if way["name"].startswith(MANY)
    ]
    if many:
        ratio, way, case = min(many, key=lambda entry: entry[0])
        lines.append(
            f"{MANY} against {ONE}, both auto: {ratio:.2f}× at the least "
            f"({way['ratio_to_one_low']:.2f}–{way['ratio_to_one_high']:.2f}; "
            f"{_size(case['bytes'])}, {way['name'].rpartition(', ')[2]}); the aim is 1×."
        )
    return lines


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw GB/s by size into a PNG, a panel for each number of threads. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = figures["cases"]
    names = [way["name"] for way in cases[0]["ways"]]
    panels = [("1 thread", [name for name in names if "threads" not in name])]
    for count in figures["threads"]:
        title = f"{count} threads"
        panels.append((title, [name for name in names if name.endswith(f", {title}")]))
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4.8 * len(panels) + 2.4, 4.8), sharey=True, squeeze=False
    )
    sizes = [case["bytes"] for case in cases]
    lines = {}
    for axis, (title, shown) in zip(axes[0], panels, strict=True):
        for name in shown:
            ways = [case["ways"][names.index(name)] for case in cases]
            label = name.removesuffix(f", {title}").replace(MANY, ONE)
            style = _style(label)
            (lines[label],) = axis.plot(sizes, [way["gbps"] for way in ways], **style)
            axis.fill_between(
                sizes,
                [way["gbps_low"] for way in ways],
                [way["gbps_high"] for way in ways],
                color=style["color"],
                alpha=0.12,
                linewidth=0,
            )
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [_size(size) for size in sizes], rotation=45, ha="right")
        axis.minorticks_off()
        axis.set_title(title, loc="left")
        axis.grid(axis="y", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylim(0, 1.05 * max(way["gbps_high"] for case in cases for way in case["ways"]))
    axes[0][0].set_ylabel("GB/s copied")
    where = "repeated in one place" if figures["cached"] else "memory in no cache"
    figure.suptitle(
        f"Copying by size, {where}, {_size(figures['page_size'])} pages; bands: lowest to highest\n"
        + describe(figures["machine"]),
        fontsize=10,
        x=0.02,
        ha="left",
    )
    figure.tight_layout()
    figure.legend(
        lines.values(), lines.keys(), loc="center left", bbox_to_anchor=(1, 0.5), frameon=False
    )
    figure.savefig(path, dpi=130, bbox_inches="tight")
    pyplot.close(figure)


_COLOURS = {
    "avx512": "#1769aa",
    "avx2": "#2e9e6b",
    "sse2": "#e08e0b",
    "neon": "#1769aa",
    "vsx": "#1769aa",
    "rep_movsb": "#8e44ad",
    "words": "#8a8f98",
}


def _style(label: str) -> dict[str, Any]:
    if label.endswith("auto"):
        return {"color": "#c0392b", "linewidth": 2.6, "linestyle": (0, (4, 1.5)), "zorder": 5}
    if label.startswith(MEMCPY):
        return {"color": "black", "linewidth": 2.0}
    if label in _COLOURS:
        return {"color": _COLOURS[label], "linewidth": 1.6, "marker": ".", "markersize": 5}
    dashes = ":" if label.startswith("STREAM") else "--"
    return {"color": "#555555", "linewidth": 1.4, "linestyle": dashes}


def _size(size: int) -> str:
    for unit, word in ((10**6, "MB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit} {word}"
    return f"{size} B"

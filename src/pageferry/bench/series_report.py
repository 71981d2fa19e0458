# SPDX-License-Identifier: Apache-2.0
"""The table and the plot of the series' experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from ..pictures import canvas
from .machine import describe
from .published import SERIES, published
from .series import CASES, HUGETLB, MTHP

MEASURED = {case.word: case.pages for case in CASES}


def published_figures(page_size: int) -> dict[str, float]:
    """Return the series' own GB/s for one page size, the better of its two runs, by kernel."""
    found: dict[str, list[float]] = {}
    for row in published(SERIES):
        if row.page_size == page_size:
            found.setdefault(row.engine, []).append(row.gbps)
    return {engine: max(values) for engine, values in found.items()}


def _published(case: dict[str, Any]) -> dict[str, float]:
    """Return what the series has for a case; nothing for kinds of pages that it did not measure."""
    return published_figures(case["page_size"]) if case["word"] in MEASURED else {}


def print_table(figures: dict[str, Any], out: Console) -> None:
    """Print the figures in the shape of the series, with ratios and the published ones."""
    facts = figures["machine"]
    mark = " (emulated)" if facts["emulated"] else ""
    out.print(f"[bold]{describe(facts)}[/bold]")
    out.print(
        f"Median of {figures['repeats']} repeats, alternated, node {figures['nodes'][0]} to "
        f"{figures['nodes'][1]} and back. Ratio: median (lowest–highest) inside a repeat."
    )
    if facts["emulated"]:
        out.print(
            "Under emulation only ratios mean anything; a gain above the number of threads at "
            "2 MiB is an artefact of the emulator's TLB."
        )
    host_cpus = facts.get("host_cpus", 1 << 20)
    if facts["cpus"] > host_cpus:
        out.print(
            f"The guest has {facts['cpus']} CPUs and the host {host_cpus}: no number of threads "
            f"can gain more than {host_cpus} do."
        )
    if facts.get("host_other_load", 0) + min(facts["cpus"], host_cpus) > host_cpus + 0.2:
        out.print(
            f"[bold]The host was busy[/bold]: other processes used {facts['host_other_load']:.1f} "
            f"of its {facts['host_cpus']} CPUs, so the guest's {facts['cpus']} had to share. "
            "Several threads cannot gain then; repeat on an idle machine."
        )
    if facts["numa_balancing"]:
        out.print("NUMA balancing is on: the kernel may have moved pages as well.")
    for name, each in list(figures.get("kernels", {}).items())[1:]:
        out.print(f"{name}: Linux {each['kernel']}, a guest of its own, with its own plain call")
    for case in figures["cases"]:
        out.print()
        for way in case["ways"]:
            out.print(
                f"Moved {case['pages']:>6} {case['word']} pages in {way['milliseconds']:8.2f} "
                f"msecs {way['gbps']:6.3f} GB/s{mark}  {way['ratio']:5.2f}× "
                f"({way['ratio_low']:.2f}–{way['ratio_high']:.2f}) of "
                f"{way['baseline']:<16}  {way['name']}"
            )
        old = _published(case)
        for engine, gbps in old.items():
            out.print(
                f"  2017: {MEASURED[case['word']]:>6} {case['word']} pages {'':17}{gbps:6.3f} GB/s"
                f"{' ' * len(mark)}  {gbps / old['thp']:5.2f}× {'of thp':<31} {engine} "
                f"({'8 threads' if engine == 'thp+mt' else '1 thread'}, 2-socket E5-2650)"
            )


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw throughput and ratio by page size and way into a PNG. Needs matplotlib."""
    cases = figures["cases"]
    heights = [1.0 + 0.25 * len(case["ways"]) for case in cases]
    figure = canvas.figure(11, sum(heights) + 0.6)
    axes = figure.subplots(
        len(cases),
        2,
        squeeze=False,
        gridspec_kw={
            "width_ratios": [1, 1],
            "height_ratios": heights,
            "hspace": 1.2 / (sum(heights) / len(heights)),
            "wspace": 0.08,
        },
    )
    for (left, right), case in zip(axes, cases, strict=True):
        ways = case["ways"]
        labels = [way["name"] for way in ways]
        rows = range(len(ways))
        colours = [_colour(way["name"]) for way in ways]
        speed = [way["gbps"] for way in ways]
        spread = [
            [w["gbps"] - w["gbps_low"] for w in ways],
            [w["gbps_high"] - w["gbps"] for w in ways],
        ]
        left.barh(rows, speed, xerr=spread, color=colours, capsize=3, height=0.65)
        left.set_yticks(rows, labels)
        left.invert_yaxis()
        left.set_xlabel("GB/s" + (" (emulated)" if figures["machine"]["emulated"] else ""))
        left.set_title(_title(case), loc="left")
        ratios = [way["ratio"] for way in ways]
        reach = [
            [w["ratio"] - w["ratio_low"] for w in ways],
            [w["ratio_high"] - w["ratio"] for w in ways],
        ]
        right.barh(rows, ratios, xerr=reach, color=colours, capsize=3, height=0.65)
        for row, ratio in zip(rows, ratios, strict=True):
            inside = ratio > 0.5
            right.text(
                0.05 if inside else max(ratios) / 2, row, f"{ratio:.2f}×", va="center",
                color="white" if inside else "black", fontweight="bold",
            )  # fmt: skip
        right.set_xlim(0, max(2.5, *(way["ratio_high"] * 1.05 for way in ways)))
        right.set_yticks(rows, [""] * len(ways))
        right.invert_yaxis()
        right.set_xlabel("times as fast as its baseline (plain call, or migratepages)")
        if old := _published(case):
            ratio_2017 = old["thp+mt"] / old["thp"]
            right.axvline(ratio_2017, color="#c0392b", linestyle="--", linewidth=1.5)
            right.annotate(
                f"2017 series, 8 threads: {ratio_2017:.2f}×",
                (ratio_2017, -0.62),
                ha="center",
                va="bottom",
                color="#c0392b",
                annotation_clip=False,
                fontsize=9,
            )
        right.axvline(1, color="black", linewidth=0.8)
        for axis in (left, right):
            axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "Moving pages between two NUMA nodes\n" + describe(figures["machine"]),
        fontsize=10,
        x=0.02,
        ha="left",
    )
    canvas.save(figure, path)


def _colour(way: str) -> str:
    """Blue is pageferry, orange a kernel that copies with several threads, grey the rest."""
    if "pageferry" in way:
        return "#1769aa"
    return "#c77700" if "MT, " in way or "mt_page_copy 1" in way else "#8a8f98"


def _title(case: dict[str, Any]) -> str:
    kind = {MTHP: "folios", HUGETLB: "hugetlb pages"}.get(case["word"], "pages")
    return f"{case['pages']} {kind} of {_size(case['page_size'])}"


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"

# SPDX-License-Identifier: Apache-2.0
"""The table and the plot of the engines' experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .engines import COPY, FILL, KERNEL
from .machine import describe


def winner(case: dict[str, Any]) -> str:
    """Say which engine is the fastest for a page size; the copies beside them are no engines."""
    engines = [way for way in case["ways"] if way["name"] not in (COPY, FILL)]
    if not engines:
        return f"{case['page_size']} pages: no engine to compare"
    best = max(engines, key=lambda way: float(way["gbps"]))
    kernel = next((way for way in engines if way["name"] == KERNEL), None)
    text = f"{case['page_size']} pages: the fastest is {best['name']}, {best['gbps']:.2f} GB/s"
    if kernel is None:
        return text + " (one node: no kernel engine to compare)"
    if best is kernel:
        others = [way for way in engines if way is not kernel]
        second = max((float(way["gbps"]) for way in others), default=0.0)
        return text + (f", {best['gbps'] / second:.2f}× the user engine's best" if second else "")
    return text + f", {best['gbps'] / kernel['gbps']:.2f}× the kernel engine"


def print_table(figures: dict[str, Any], out: Console) -> None:
    """Print GB/s, ratios and stalls by way, then what was to be reached and the winners."""
    facts = figures["machine"]
    out.print(f"[bold]{describe(facts)}[/bold]")
    between = "between two nodes" if len(figures["nodes"]) > 1 else "to new pages of the one node"
    out.print(
        f"{figures['bytes'] >> 20} MiB {between}, {figures['threads']} threads: median (lowest–"
        f"highest) of {figures['repeats']} repeats, alternated; ratios inside a repeat."
    )
    if facts["emulated"]:
        out.print("Under emulation only ratios mean anything, and copies of 2 MiB pages little.")
    if figures["other_load"] > 0.2:
        out.print(
            f"[bold]The machine was busy[/bold]: other processes used {figures['other_load']:.1f} "
            "CPUs. Repeat on an idle one."
        )
    for case in figures["cases"]:
        table = Table(
            box=None, padding=(0, 1), title=f"{case['page_size']} pages", title_justify="left"
        )
        for column in ("", "GB/s", f"of {COPY}", "pooled", "stall p50", "p99", "max ms"):
            table.add_column(column, justify="right" if column else "left", no_wrap=True)
        for way in case["ways"]:
            stalls = [way[f"stall_{name}_ms"] for name in ("p50", "p99", "max")]
            table.add_row(
                way["name"],
                f"{way['gbps']:.2f} ({way['gbps_low']:.2f}–{way['gbps_high']:.2f})",
                f"{way['ratio']:.2f}×",
                "" if way["pooled"] is None else f"{way['pooled']:.0%}",
                *("" if stall is None else f"{stall:.2f}" for stall in stalls),
            )
        out.print(table)
        for name, reason in case["left_out"].items():
            out.print(f"  left out: {name}: {reason}")
    for case in figures["cases"]:
        for target in case["targets"]:
            out.print(
                f"{case['page_size']} {target['way']}: {target['reached']:.2f} of "
                f"{target['baseline']}, wanted {target['wanted']:.2f}: "
                f"{'met' if target['met'] else '[bold]not met[/bold]'}"
            )
    for case in figures["cases"]:
        out.print(winner(case))


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw throughput by way, one panel for each page size, into a PNG. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = figures["cases"]
    figure, axes = pyplot.subplots(1, len(cases), figsize=(6 * len(cases) + 2, 4.2), squeeze=False)
    for axis, case in zip(axes[0], cases, strict=True):
        ways = case["ways"]
        rows = range(len(ways))
        spread = [
            [way["gbps"] - way["gbps_low"] for way in ways],
            [way["gbps_high"] - way["gbps"] for way in ways],
        ]
        colours = ["#1769aa" if way["name"].startswith("user") else "#8a8f98" for way in ways]
        axis.barh(rows, [way["gbps"] for way in ways], xerr=spread, color=colours, capsize=3)
        axis.set_yticks(rows, [way["name"] for way in ways])
        axis.invert_yaxis()
        axis.set_xlabel("GB/s" + (" (emulated)" if figures["machine"]["emulated"] else ""))
        axis.set_title(f"{case['page_size']} pages", loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(describe(figures["machine"]), fontsize=9, x=0.02, ha="left")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)

# SPDX-License-Identifier: Apache-2.0
"""The table and the plot of what the preload library brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from ..pictures import canvas
from .machine import describe


def print_table(figures: dict[str, Any], out: Console) -> None:
    """Print times with and without the library, their ratios, and what an idle program pays."""
    facts = figures["machine"]
    out.print(f"[bold]{describe(facts)}[/bold]")
    out.print(
        f"Unmodified programs, without and with the library ({figures['threads']} threads), "
        f"median of {figures['repeats']} repeats, alternated, there and back."
    )
    if facts["emulated"]:
        out.print("Under emulation only ratios mean anything.")
    for case in figures["cases"]:
        out.print(
            f"{case['bytes'] >> 20} MiB in {_size(case['page_size'])} pages, {case['name']:<12}  "
            f"{case['plain_ms']:8.1f} ms  {case['preload_ms']:8.1f} ms  {case['ratio']:5.2f}× "
            f"({case['ratio_low']:.2f}–{case['ratio_high']:.2f})"
        )
    out.print(
        f"A call that is passed on: {figures['passed_plain_us']:.2f} µs without, "
        f"{figures['passed_preload_us']:.2f} µs with it, "
        f"{figures['passed_overhead_us']:+.2f} µs (median of differences)"
    )
    idle = figures["idle"]
    out.print(
        f"A program that never moves: {idle['threads']} thread, "
        f"{idle['bytes'] >> 10} KiB of the library in memory"
    )


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw the ratios into a PNG. Needs matplotlib."""
    cases = figures["cases"]
    figure = canvas.figure(9, 0.5 * len(cases) + 1.6)
    axis = figure.subplots()
    rows = range(len(cases))
    ratios = [case["ratio"] for case in cases]
    reach = [
        [case["ratio"] - case["ratio_low"] for case in cases],
        [case["ratio_high"] - case["ratio"] for case in cases],
    ]
    axis.barh(rows, ratios, xerr=reach, color="#1769aa", capsize=3, height=0.65)
    axis.set_yticks(rows, [f"{case['name']}, {_size(case['page_size'])}" for case in cases])
    axis.invert_yaxis()
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xlabel(f"times as fast with the library, {figures['threads']} threads")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(describe(figures["machine"]), loc="left", fontsize=9)
    canvas.save(figure, path)


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"

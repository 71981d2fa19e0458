# SPDX-License-Identifier: Apache-2.0
"""The table and the plot of moves on a busy machine."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..console import size
from ..pictures import canvas
from .load import AUTO
from .machine import describe

_WORDS = {
    "idle": "Idle machine",
    "half": "Half the CPUs busy",
    "all": "All CPUs busy",
    "twice": "Twice as many busy processes as CPUs",
}


def print_table(figures: dict[str, Any], out: Console) -> None:
    """Print a table for each load, and the targets with their worst cells."""
    facts = figures["machine"]
    out.print(f"[bold]{describe(facts)}[/bold]")
    out.print(
        f"Milliseconds of one move of {size(figures['page_size'])} pages by the "
        f"{figures['engine']} engine, {_where(figures['nodes'])}: median (lowest–highest) of "
        f"{figures['repeats']} repeats, alternated. Ratios above 1: the first named is quicker. "
        "others: speed of the busy processes while a move runs, 100 % without moves; their ratio "
        "is of what they get done in windows as long as the longer of both moves. Beyond doubt is "
        "what the median is with a probability of 95 %, by the ranks of five repeats or more."
    )
    for note in notes(figures):
        out.print(note)
    ways = figures["ways"]
    for load in dict.fromkeys(cell["load"] for cell in figures["cells"]):
        cells = [cell for cell in figures["cells"] if cell["load"] == load]
        out.print(f"\n[bold]{_WORDS[load]}[/bold] ({cells[0]['busy']} busy processes)")
        headings = [*(_way(name) for name in ways), "auto/best", "auto/one", "all/one"]
        out.print(_table(headings, [_row(cell, ways) for cell in cells]))
        told = [cell for cell in cells if cell["ratios"]["others"]]  # not where these never ran
        if told:
            shown = (ways[0], ways[-2], AUTO)
            headings = [f"others, {_way(name)}" for name in shown] + ["all/one", "auto/one"]
            out.print(_table(headings, [_row_of_others(cell, shown) for cell in told]))
    out.print()
    for target in figures["targets"]:
        at = target["worst_at"]
        missed = len(target["missed"])
        out.print(
            f"{target['words']}: at least {target['least']:.2f} in "
            f"{target['cells'] - missed} of {target['cells']} cells{_doubt(target)}; "
            f"worst {target['worst']:.2f} "
            f"({size(at['bytes'])}, {_WORDS[at['load']].lower()})"
        )


def _doubt(target: dict[str, Any]) -> str:
    if "beyond_doubt" not in target:  # figures of an earlier version
        return ""
    return f", less beyond doubt in {len(target['beyond_doubt'])}"


def _table(headings: list[str], rows: list[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ["size", *headings]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _row(cell: dict[str, Any], ways: list[str]) -> list[str]:
    row = [size(cell["bytes"])]
    for name in ways:
        seconds = cell["ways"][name]["seconds"]
        low, middle, high = (f"{seconds[k] * 1e3:.3g}" for k in ("low", "median", "high"))
        row.append(f"{middle} ({low}–{high})")
    return row + [_with_spread(cell["ratios"][n]) for n in ("auto_best", "auto_one", "many_one")]


def _row_of_others(cell: dict[str, Any], ways: tuple[str, ...]) -> list[str]:
    speeds = [cell["ways"][name]["others"] for name in ways]
    return [
        size(cell["bytes"]),
        *(f"{s['median']:.0%} ({s['low']:.0%}–{s['high']:.0%})" for s in speeds),
        *(_with_spread(cell["ratios"][name]) for name in ("others", "others_auto")),
    ]


def _with_spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"


def _where(nodes: list[int]) -> str:
    if len(nodes) == 1:
        return f"to new places on node {nodes[0]}"
    return f"node {nodes[0]} and {nodes[1]} in turn"


def _way(name: str) -> str:
    if name == AUTO:
        return name
    return "1 thread" if name == "1" else f"{name} threads"


def notes(figures: dict[str, Any]) -> list[str]:
    """Return what a reader has to know to judge the figures."""
    facts = figures["machine"]
    found = []
    if facts["emulated"]:
        found.append("Emulated: only ratios mean anything.")
    if facts.get("host_other_load", 0) + facts["cpus"] > facts.get("host_cpus", 1 << 20) + 0.2:
        found.append(
            f"The host was busy: other processes used {facts['host_other_load']:.1f} of its "
            f"{facts['host_cpus']} CPUs. Repeat on an idle machine."
        )
    if figures["left_out"]:
        left = ", ".join(size(each) for each in figures["left_out"])
        found.append(f"Left out, for want of memory on the nodes: {left}.")
    return found


def _gain(cell: dict[str, Any], name: str, one: str) -> float:
    """Return the median of the ratios inside a repeat, as the table has it."""
    samples = (cell["ways"][way]["samples"] for way in (one, name))
    return float(statistics.median(a / b for a, b in zip(*samples, strict=True)))


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw, for each load, the gain over one thread by size, and the others' speed below it."""
    loads = list(dict.fromkeys(cell["load"] for cell in figures["cells"]))
    ways = figures["ways"]
    drawn = canvas.figure(3.2 * len(loads) + 1.2, 6.2)
    axes = drawn.subplots(2, len(loads), squeeze=False, sharex=True, sharey="row")
    for column, load in enumerate(loads):
        cells = [cell for cell in figures["cells"] if cell["load"] == load]
        sizes = [cell["bytes"] for cell in cells]
        above, below = axes[0][column], axes[1][column]
        for place, name in enumerate(ways):
            style = {
                "color": canvas.INK if name == AUTO else canvas.node_colour(place),
                "marker": "o",
                "markersize": 4,
                "linewidth": 2 if name == AUTO else 1.4,
                "linestyle": "--" if name == AUTO else "-",
                "label": _way(name),
            }
            above.plot(sizes, [_gain(cell, name, ways[0]) for cell in cells], **style)
            told = [cell for cell in cells if cell["ratios"]["others"]]
            if told:
                speed = [cell["ways"][name]["others"]["median"] * 100 for cell in told]
                below.plot([cell["bytes"] for cell in told], speed, **style)
        above.axhline(1, color=canvas.FAINT, zorder=0)
        above.set_title(f"{_WORDS[load]}\n({cells[0]['busy']} processes)", fontsize=10)
        if not cells[0]["busy"]:
            below.text(
                0.5, 0.5, "no others", ha="center", va="center", transform=below.transAxes,
                color="#777777",
            )  # fmt: skip
        below.set_xscale("log", base=2)
        below.set_xticks(sizes, [size(each) for each in sizes], rotation=45, ha="right", fontsize=8)
        below.set_xlabel("size of one move")
        for each in (above, below):
            each.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("speed of a move,\none thread = 1")
    axes[1][0].set_ylabel("speed of other work,\n% of undisturbed")
    axes[0][0].set_ylim(bottom=0)
    axes[1][0].set_ylim(0, 115)
    axes[0][-1].legend(frameon=False, fontsize=8)
    drawn.suptitle(
        f"Moves of {size(figures['page_size'])} pages by the {figures['engine']} engine on a busy "
        "machine\n" + describe(figures["machine"]),
        fontsize=10,
        x=0.02,
        ha="left",
    )
    drawn.tight_layout(rect=(0, 0, 1, 0.97))
    canvas.save(drawn, path)

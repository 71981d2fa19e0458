# SPDX-License-Identifier: Apache-2.0
"""The table and the plot of moves on a busy machine."""

from __future__ import annotations

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
        f"Milliseconds of one move of {size(figures['page_size'])} pages, node "
        f"{figures['nodes'][0]} and {figures['nodes'][1]} in turn: median (lowest–highest) of "
        f"{figures['repeats']} repeats, alternated. others: speed of the busy processes "
        "meanwhile, 100 % without moves. Ratios above 1: the first named is quicker."
    )
    for note in notes(figures):
        out.print(note)
    ways = figures["ways"]
    for load in dict.fromkeys(cell["load"] for cell in figures["cells"]):
        cells = [cell for cell in figures["cells"] if cell["load"] == load]
        out.print(f"\n[bold]{_WORDS[load]}[/bold] ({cells[0]['busy']} busy processes)")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        headings = [
            "size",
            *(_way(name) for name in ways),
            "auto/best",
            "auto/one",
            "all/one",
            *(f"others, {_way(name)}" for name in (ways[0], ways[-2], AUTO) if cells[0]["busy"]),
        ]
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        for cell in cells:
            table.add_row(*_row(cell, ways))
        out.print(table)
    out.print()
    for target in figures["targets"]:
        at = target["worst_at"]
        missed = len(target["missed"])
        out.print(
            f"{target['words']}: at least {target['least']:.2f} in "
            f"{target['cells'] - missed} of {target['cells']} cells; worst {target['worst']:.2f} "
            f"({size(at['bytes'])}, {_WORDS[at['load']].lower()})"
        )


def _row(cell: dict[str, Any], ways: list[str]) -> list[str]:
    row = [size(cell["bytes"])]
    for name in ways:
        seconds = cell["ways"][name]["seconds"]
        low, middle, high = (f"{seconds[k] * 1e3:.3g}" for k in ("low", "median", "high"))
        row.append(f"{middle} ({low}–{high})")
    row += [
        f"{cell['ratios'][name]['median']:.2f}" for name in ("auto_best", "auto_one", "many_one")
    ]
    if cell["busy"]:
        row += [f"{cell['ways'][n]['others']['median']:.0%}" for n in (ways[0], ways[-2], AUTO)]
    return row


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
            ones = [cell["ways"][ways[0]]["seconds"]["median"] for cell in cells]
            gains = [
                one / cell["ways"][name]["seconds"]["median"]
                for one, cell in zip(ones, cells, strict=True)
            ]
            above.plot(sizes, gains, **style)
            if cells[0]["busy"]:
                speed = [cell["ways"][name]["others"]["median"] * 100 for cell in cells]
                below.plot(sizes, speed, **style)
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
    axes[0][0].set_ylabel("speed of a move, one thread = 1")
    axes[1][0].set_ylabel("speed of other work, % of undisturbed")
    axes[0][0].set_ylim(bottom=0)
    axes[1][0].set_ylim(0, 115)
    axes[0][-1].legend(frameon=False, fontsize=8)
    drawn.suptitle(
        f"Moves of {size(figures['page_size'])} pages on a busy machine\n"
        + describe(figures["machine"]),
        fontsize=10,
        x=0.02,
        ha="left",
    )
    drawn.tight_layout(rect=(0, 0, 1, 0.97))
    canvas.save(drawn, path)

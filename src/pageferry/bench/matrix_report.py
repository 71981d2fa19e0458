# SPDX-License-Identifier: Apache-2.0
"""The matrices of nodes as table, CSV and heat map."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..console import size
from ..pictures import canvas
from .machine import describe

_COLUMNS = ("matrix", "unit", "page_size", "from", "to", "median", "low", "high")


def print_table(figures: dict[str, Any], out: Console) -> None:
    """Print a table for each matrix."""
    out.print(f"[bold]{describe(figures['machine'])}[/bold]")
    out.print(
        f"Median (lowest–highest) of {figures['repeats']} repeats of {size(figures['bytes'])}."
    )
    for note in notes(figures):
        out.print(note)
    for matrix in figures["matrices"]:
        out.print()
        threads = matrix["threads"]
        out.print(f"[bold]{matrix['title']}[/bold], {matrix['unit']}, {_threads(threads)}")
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
        table.add_column(f"{matrix['rows']} \\ {matrix['columns']}", justify="right")
        for node in figures["nodes"]:
            table.add_column(str(node), justify="right", no_wrap=True)
        for node, row in zip(figures["nodes"], matrix["cells"], strict=True):
            table.add_row(str(node), *(_text(cell) for cell in row))
        out.print(table)


def notes(figures: dict[str, Any]) -> list[str]:
    """Return what a reader has to know to judge the figures."""
    found = []
    if figures["machine"]["emulated"]:
        found.append(
            "Emulated: one node's memory is as near as another's, and no figure is a machine's."
        )
    if figures["bytes"] < figures["last_level_cache"]:
        found.append(
            f"The last-level cache ({size(figures['last_level_cache'])}) is larger than what was "
            "measured: part of it came from there. Take a larger --size."
        )
    if len(figures["nodes"]) == 1:
        found.append("One node: nothing to migrate between.")
    return found


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _text(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "–"
    digits = 1 if cell["median"] >= 10 else 2
    low, high = (f"{cell[end]:.{digits}f}" for end in ("low", "high"))
    return f"{cell['median']:.{digits}f} ({low}–{high})"


def write_csv(figures: dict[str, Any], path: Path) -> None:
    """Write a row for each cell, with node ids as in the table."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for matrix in figures["matrices"]:
            for source, row in zip(figures["nodes"], matrix["cells"], strict=True):
                for target, cell in zip(figures["nodes"], row, strict=True):
                    if cell is not None:
                        writer.writerow(
                            (matrix["name"], matrix["unit"], matrix.get("page_size", ""), source,
                             target, *(f"{cell[key]:.4g}" for key in ("median", "low", "high")))
                        )  # fmt: skip


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw a heat map for each matrix. Needs matplotlib."""
    matrices = figures["matrices"]
    nodes = figures["nodes"]
    side = max(0.75 * len(nodes) + 0.4, 2.6)
    columns = min(len(matrices), 2)
    rows = -(-len(matrices) // columns)
    width, height = columns * (side + 1.4) + 0.3, rows * (side + 1.25) + 0.9
    figure = canvas.figure(width, height)
    figure.text(0.25 / width, 1 - 0.2 / height, "Between the nodes", fontsize=13, va="top")
    lines = [describe(figures["machine"]), *notes(figures)]
    figure.text(
        0.25 / width, 1 - 0.5 / height, "\n".join(lines), fontsize=7.5, va="top", color="#555555",
        wrap=True,
    )  # fmt: skip
    for number, matrix in enumerate(matrices):
        line, column = divmod(number, columns)
        left = 0.95 + column * (side + 1.4)
        bottom = height - 0.9 - (line + 1) * (side + 1.25) + 0.45
        axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
        _heat(axes, matrix, nodes)
    canvas.save(figure, path)


def _heat(axes: Any, matrix: dict[str, Any], nodes: list[int]) -> None:
    known = [cell["median"] for row in matrix["cells"] for cell in row if cell]
    least, most = min(known), max(known)
    canvas.plain(axes)
    axes.set_xlim(0, len(nodes))
    axes.set_ylim(len(nodes), 0)
    for row, cells in enumerate(matrix["cells"]):
        for column, cell in enumerate(cells):
            middle = (column + 0.5, row + 0.5)
            if cell is None:
                canvas.rectangle(axes, column, row, 1, 1, "#f3f4f6", edgecolor="white")
                axes.text(*middle, "–", ha="center", va="center", color="#888888")
                continue
            # Dark is good for bandwidth, and bad for latency: it is simply "much".
            heat = (cell["median"] - least) / (most - least) if most > least else 0.4
            low, high = ((0.93, 0.96, 0.99), (0.03, 0.25, 0.48))
            if matrix["better"] == "lower":
                low, high = ((1.0, 0.95, 0.90), (0.65, 0.21, 0.01))
            shade = tuple(a + (b - a) * heat for a, b in zip(low, high, strict=True))
            canvas.rectangle(axes, column, row, 1, 1, shade, edgecolor="white", linewidth=1.5)
            ink = "white" if heat > 0.45 else canvas.INK
            digits = 1 if cell["median"] >= 10 else 2
            axes.text(
                middle[0], middle[1] - 0.1, f"{cell['median']:.{digits}f}", ha="center",
                va="center", fontsize=11, color=ink,
            )  # fmt: skip
            axes.text(
                middle[0], middle[1] + 0.25, f"{cell['low']:.{digits}f}–{cell['high']:.{digits}f}",
                ha="center", va="center", fontsize=6.5, color=ink,
            )  # fmt: skip
    places = [at + 0.5 for at in range(len(nodes))]
    axes.set_xticks(places, [str(node) for node in nodes])
    axes.set_yticks(places, [str(node) for node in nodes])
    axes.tick_params(length=0)
    axes.set_xlabel(matrix["columns"], fontsize=9)
    axes.set_ylabel(matrix["rows"], fontsize=9)
    axes.set_title(
        f"{matrix['title']}\n{matrix['unit']}, {_threads(matrix['threads'])}", fontsize=9.5,
        loc="left",
    )  # fmt: skip

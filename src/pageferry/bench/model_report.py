# SPDX-License-Identifier: Apache-2.0
"""The table and the plot of the model's check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import extras
from .machine import describe

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def print_table(figures: dict[str, Any], out: Console) -> None:
    """Print predicted beside published for every row, and how far the model is off."""
    for source in figures["sources"]:
        _print_source(source, out)
    whole = figures["summary"]
    out.print(
        f"[bold]All {figures['rows']} published rows[/bold]: {whole['fitted']} fitted, "
        f"{whole['predicted']} predicted, median error {whole['median_error']:.1%}, worst "
        f"{whole['worst_error']:.1%}."
    )
    for name in ("runs", "own"):
        if name in figures:
            out.print()
            _print_source(figures[name], out)


def _print_source(source: dict[str, Any], out: Console) -> None:
    machine = source["machine"]
    title = f"{source['source']}: {machine if isinstance(machine, str) else describe(machine)}"
    table = Table(title=title, title_justify="left", box=None)
    for name in ("engine", "page", "pages", "threads", "GB/s", "predicted", "error", "held up by"):
        table.add_column(name, justify="left" if name in ("engine", "held up by") else "right")
    left_out = []
    for row in source["rows"]:
        if row.get("left_out"):
            left_out.append(f"{row['engine']}, {_size(row['page_size'])}: {row['left_out']}")
            continue
        table.add_row(
            row["engine"],
            _size(row["page_size"]),
            str(row["pages"]),
            str(row["threads"]),
            f"{row['published']:.3f}",
            f"{row['predicted']:.3f}",
            "fitted" if row["fitted"] else f"{row['error']:+.1%}",
            row.get("dominant", ""),
        )
    out.print(table)
    for text in left_out:
        out.print(f"Not modelled: {text}")
    copies = [
        abs(row["predicted_copy"] / row["published_copy"] - 1)
        for row in source["rows"]
        if "published_copy" in row
    ]
    if copies:
        out.print(
            f"Of the copying alone, given for {len(copies)} rows and never fitted: error up to "
            f"{max(copies):.1%}, median {sorted(copies)[len(copies) // 2]:.1%}"
        )
    costs = source["costs"]
    fitted = ", ".join(f"{name} {_cost(costs, name):.4g}" for name in source["free"])
    out.print(f"Fitted: {fitted}" if fitted else "Nothing fitted: the costs are a calibration's")
    found = source["summary"]
    if found["predicted"]:
        out.print(
            f"{found['fitted']} rows fitted, {found['predicted']} predicted: median error "
            f"{found['median_error']:.1%}, worst {found['worst_error']:.1%}"
        )
    out.print()


def _cost(costs: dict[str, Any], name: str) -> float:
    field, _, size = name.partition(".")
    return float(costs[field][size] if size else costs[field])


def _size(size: int) -> str:
    return next(f"{size // unit} {name}" for unit, name in _UNITS if size >= unit)


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw predicted against published throughput into a PNG. Needs matplotlib."""
    extras.require("matplotlib", "plot", "a plot").use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 6.4))
    sources = [*figures["sources"], *(figures[name] for name in ("runs", "own") if name in figures)]
    colours = ("#1769aa", "#c0392b", "#2e8b57", "#8a5fbf", "#e08a1e")
    for source, colour in zip(sources, colours, strict=False):
        for fitted in (False, True):
            rows = [
                row for row in source["rows"] if row["fitted"] == fitted and not row.get("left_out")
            ]
            axes.scatter(
                [row["published"] for row in rows],
                [row["predicted"] for row in rows],
                s=34,
                facecolors="none" if fitted else colour,
                edgecolors=colour,
                label=f"{source['source']}, {'fitted' if fitted else 'predicted'}",
            )
    low, high = 0.1, 60.0
    axes.plot([low, high], [low, high], color="black", linewidth=0.8)
    axes.fill_between(
        [low, high], [low / 1.15, high / 1.15], [low * 1.15, high * 1.15],
        color="#8a8f98", alpha=0.2, label="within 15 %",
    )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    axes.set_xlabel("measured GB/s")
    axes.set_ylabel("GB/s of the model")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    whole = figures["summary"]
    axes.set_title(
        f"{whole['predicted']} published rows predicted from {whole['fitted']}: median error "
        f"{whole['median_error']:.1%}, worst {whole['worst_error']:.1%}",
        fontsize=10,
        loc="left",
    )
    figure.savefig(path, dpi=130, bbox_inches="tight")
    pyplot.close(figure)

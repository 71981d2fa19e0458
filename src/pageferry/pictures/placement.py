# SPDX-License-Identifier: Apache-2.0
"""Where a process's memory is: by node and kind of page, and along its address space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import console
from ..areas import Area
from ..pages import KINDS
from ..report import Placement
from . import canvas, text

_NAME_WIDTH = 28
_STRIP_ROWS = 24


@dataclass(frozen=True)
class View:
    """What there is to draw of a process.

    ``nodes`` are all nodes of the machine with memory, in order: a node without a page of the
    process is shown too. ``others`` are the bytes in areas that are not among ``areas``.
    """

    title: str
    placement: Placement
    areas: Sequence[Area]
    others: int
    nodes: tuple[int, ...]

    @property
    def places(self) -> dict[int, int]:
        """The place of each node in the list, which decides its colour."""
        every = sorted({*self.nodes, *self.placement.nodes})
        return {node: place for place, node in enumerate(every)}


def draw(view: View, path: Path) -> None:
    """Write the picture. Needs matplotlib; see ``canvas.check``."""
    places = view.places
    rows = max(len(view.areas), 1)
    top, below = 0.42 * len(places) + 0.5, 0.3 * rows + 0.5
    height = top + below + 1.5
    figure = canvas.figure(11, height)
    axes, strips = figure.subplots(2, 1, gridspec_kw={"height_ratios": [top, below]})
    figure.subplots_adjust(top=1 - 0.75 / height, bottom=0.2 / height, hspace=1.3 / (top + below))
    figure.suptitle(
        f"{view.title}: {console.size(view.placement.bytes_present)} on "
        f"{len(view.placement.nodes)} of {len(places)} nodes",
        x=0.125,
        y=0.99,
        ha="left",
        fontsize=13,
        color=canvas.INK,
    )
    _by_node(axes, view, places)
    _by_address(strips, view, places)
    canvas.save(figure, path)


def _by_node(axes: Any, view: View, places: dict[int, int]) -> None:
    placement = view.placement
    whole = placement.bytes_present or 1
    unit, name = _unit(max((placement.on(node) for node in places), default=0))
    axes.set_title(f"By node and kind of page, {name}", loc="left", fontsize=10)
    for node, place in places.items():
        left = 0.0
        for kind in KINDS:
            size = placement.nodes.get(node, {}).get(kind, 0) / unit
            axes.barh(place, size, left=left, height=0.62, color=canvas.KIND_COLOURS[kind])
            left += size
        axes.text(
            left, place, f"  {console.size(placement.on(node))}, {placement.on(node) / whole:.0%}",
            va="center", fontsize=9, color=canvas.INK,
        )  # fmt: skip
    axes.set_yticks(range(len(places)), [f"node {node}" for node in places])
    for label, place in zip(axes.get_yticklabels(), places.values(), strict=True):
        label.set_color(canvas.node_colour(place))
        label.set_fontweight("bold")
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.margins(x=0.16)
    axes.set_xlim(left=0)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    patches = [canvas.swatch(canvas.KIND_COLOURS[kind]) for kind in KINDS]
    axes.legend(
        patches, ["base pages", "transparent huge", "hugetlb"], loc="lower right",
        bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=9,
    )  # fmt: skip


def _by_address(axes: Any, view: View, places: dict[int, int]) -> None:
    axes.set_title(
        "Along the address space: the node of each part (white: no page)", loc="left", fontsize=10
    )
    canvas.plain(axes)
    axes.set_xlim(0, 1)
    axes.set_ylim(max(len(view.areas), 1) - 0.5, -0.5)
    for row, area in enumerate(view.areas):
        image = _stacked(area, places)
        axes.imshow(
            image, extent=(0, 1, row + 0.36, row - 0.36), aspect="auto", interpolation="nearest"
        )
        canvas.rectangle(axes, 0, row - 0.36, 1, 0.72, "none", edgecolor=canvas.FAINT)
        name = area.name if len(area.name) <= _NAME_WIDTH else f"{area.name[: _NAME_WIDTH - 1]}…"
        axes.text(-0.008, row, name, ha="right", va="center", fontsize=8.5, color=canvas.INK)
        axes.text(
            1.008, row, f"{console.size(area.present)}  {area.start:x}", va="center", fontsize=8.5,
            color=canvas.INK, family="monospace",
        )  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_ylim(max(len(view.areas), 1) - 0.5, -0.5)
    patches = [canvas.swatch(canvas.node_colour(place)) for place in places.values()]
    axes.legend(
        patches, [f"node {node}" for node in places], loc="upper left", bbox_to_anchor=(0, 0),
        ncols=min(len(places), 8), frameon=False, fontsize=9,
    )  # fmt: skip
    if view.others:
        axes.text(
            1, -0.02, f"and {console.size(view.others)} in smaller areas", ha="right", va="top",
            fontsize=8.5, color=canvas.INK, transform=axes.transAxes,
        )  # fmt: skip


def _stacked(area: Area, places: dict[int, int]) -> npt.NDArray[np.float64]:
    """Return an image of the strip: each column is split as its pages are over the nodes."""
    shares = np.array(list(area.nodes.values()))
    image = np.ones((_STRIP_ROWS, shares.shape[1] if len(shares) else 1, 3))
    if not len(shares):
        return image
    total = shares.sum(axis=0)
    here = total > 0
    below = np.zeros(shares.shape[1])
    heights = (np.arange(_STRIP_ROWS) + 0.5) / _STRIP_ROWS
    for node, share in zip(area.nodes, shares, strict=True):
        above = below + np.divide(share, total, out=np.zeros_like(share), where=here)
        inside = (heights[:, None] >= below) & (heights[:, None] < above) & here
        image[inside] = canvas.rgb(canvas.node_colour(places[node]))
        below = above
    return image


def _unit(most: float) -> tuple[float, str]:
    for shift, name in ((40, "TiB"), (30, "GiB"), (20, "MiB")):
        if most >= 1 << shift:
            return float(1 << shift), name
    return 1024.0, "KiB"


def show(view: View, screen: Console) -> None:
    """Print the picture as text."""
    places = view.places
    width = max(min(screen.width, 120) - 48, 16)
    whole = view.placement.bytes_present
    screen.print(f"[bold]{view.title}[/bold]: {console.size(whole)}", soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for node, place in places.items():
        here = view.placement.on(node)
        table.add_row(
            Text(f"node {node}", text.style(place)),
            text.bar([text.Part(here, text.style(place))], whole, width),
            f"{console.size(here):>10}",
            f"{here / (whole or 1):4.0%}",
            ", ".join(
                f"{size / (here or 1):.0%} {kind}"
                for kind, size in view.placement.nodes.get(node, {}).items()
                if size
            ),
        )
    screen.print(table)
    screen.print()
    screen.print("Along the address space: the node of each part, · where no page is")
    strips = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    strips.add_column(no_wrap=True, overflow="ellipsis", max_width=18)
    for column in ("strip", "size", "start"):
        strips.add_column(column, no_wrap=True)
    for area in view.areas:
        strips.add_row(
            Text(area.name),
            text.strip(area.nodes, places, width),
            f"{console.size(area.present):>10}",
            f"{area.start:x}",
        )
    screen.print(strips)
    if view.others:
        screen.print(f"and {console.size(view.others)} in smaller areas")

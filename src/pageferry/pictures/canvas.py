# SPDX-License-Identifier: Apache-2.0
"""What all pictures share: matplotlib when it is there, colours, and writing the file."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from .. import extras
from ..errors import PageferryError, RangeError

#: What a picture can be written as; the name's end decides.
FORMATS = (".png", ".svg", ".pdf")

# Okabe and Ito's colours: told apart by people who see fewer colours, and in grey.
NODE_COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#555555",
)
KIND_COLOURS = {"base": "#9ecae1", "thp": "#3182bd", "hugetlb": "#08306b"}
INK = "#222222"
FAINT = "#d9dce1"


def node_colour(place: int) -> str:
    """Return the colour of the node at this place in the list of nodes."""
    return NODE_COLOURS[place % len(NODE_COLOURS)]


def check(path: Path) -> None:
    """Find out before the work whether a picture can be written to ``path`` after it.

    Raises ``PageferryError`` (ENOPKG) without matplotlib, ``RangeError`` for a name that says no
    format, ``PageferryError`` for a directory that is not there.
    """
    extras.require("matplotlib.figure", "plot", "drawing a picture")
    if path.suffix.lower() not in FORMATS:
        raise RangeError(
            errno.EINVAL,
            f"{str(path)!r} does not say what to draw",
            f"end the name in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}",
        )
    if not path.parent.is_dir():
        raise PageferryError(errno.ENOENT, f"there is no directory {path.parent} to draw into")


def figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure, sizes in inches. No display is needed."""
    module = extras.require("matplotlib.figure", "plot", "drawing a picture")
    return module.Figure(figsize=(width, height), facecolor="white")


def save(drawn: Any, path: Path) -> None:
    """Write a figure. Raises ``PageferryError`` when the file cannot be written."""
    matplotlib = extras.require("matplotlib", "plot", "drawing a picture")
    try:
        with matplotlib.rc_context({"svg.fonttype": "none"}):  # text that can be searched
            drawn.savefig(path, dpi=130, bbox_inches="tight", pad_inches=0.2)
    except OSError as error:
        raise PageferryError(error.errno or errno.EIO, f"cannot write {path}") from None


def plain(axes: Any) -> None:
    """Take the frame and the ticks away: for drawings that are no plots."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def rectangle(
    axes: Any, x: float, y: float, width: float, height: float, colour: object, **more: Any
) -> None:
    """Draw a filled rectangle with its lower left corner at x, y."""
    patches = extras.require("matplotlib.patches", "plot", "drawing a picture")
    options = {"facecolor": colour, "edgecolor": "none", "linewidth": 0.8} | more
    axes.add_patch(patches.Rectangle((x, y), width, height, **options))


def swatch(colour: str) -> Any:
    """Return a patch for a legend."""
    patches = extras.require("matplotlib.patches", "plot", "drawing a picture")
    return patches.Patch(facecolor=colour, edgecolor="none")


def rgb(colour: str) -> tuple[float, float, float]:
    """Return red, green and blue of a ``#rrggbb``, from 0 to 1."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue

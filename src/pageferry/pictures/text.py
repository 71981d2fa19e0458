# SPDX-License-Identifier: Apache-2.0
"""Pictures of characters: bars and strips for a terminal, or a file, without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich.text import Text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: As ``canvas.NODE_COLOURS``, in the colours that every terminal has.
STYLES = ("blue", "yellow", "green", "magenta", "cyan", "red", "bright_yellow", "white")
_EIGHTHS = " ▏▎▍▌▋▊▉"


def style(place: int) -> str:
    """Return the style of the node at this place in the list of nodes."""
    return STYLES[place % len(STYLES)]


class Part(NamedTuple):
    """A part of a bar: how much, and its style and character."""

    value: float
    style: str
    sign: str = "█"


def bar(parts: Sequence[Part], whole: float, width: int) -> Text:
    """Return a bar of ``width`` characters, filled with ``parts`` out of ``whole``.

    A bar of one part ends on an eighth of a character.
    """
    text = Text()
    done = 0.0
    for value, name, sign in parts:
        done += value
        end = min(done / whole, 1.0) * width if whole > 0 else 0.0
        cells = int(end) if len(parts) == 1 else round(end)
        text.append(sign * max(cells - len(text), 0), name)
        if len(parts) == 1 and end - cells >= 1 / 8:
            text.append(_EIGHTHS[int((end - cells) * 8)], name)
    text.append("·" * (width - len(text)), "dim")
    return text


def strip(
    nodes: Mapping[int, npt.NDArray[np.float64]], places: Mapping[int, int], width: int
) -> Text:
    """Return a strip of ``width`` characters: for each part, the node that has most of it.

    The character is the last digit of the node's number, ``·`` where no page is. ``places``
    gives each node's place in the list of nodes, for its colour.
    """
    text = Text()
    for column in range(width):
        best, most = -1, 0.0
        for node, slots in nodes.items():
            first = column * len(slots) // width
            last = max((column + 1) * len(slots) // width, first + 1)
            size = float(slots[first:last].sum())
            if size > most:
                best, most = node, size
        if best < 0:
            text.append("·", "dim")
        else:
            text.append(str(best % 10), f"{style(places.get(best, best))} reverse")
    return text

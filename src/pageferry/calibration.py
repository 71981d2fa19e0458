# SPDX-License-Identifier: Apache-2.0
"""What moving costs on this machine: measured once, kept for this machine and kernel.

The file is in the user's cache directory, named after a hash of the machine's identity. It is
advice for the planner and no more: one that is damaged, somebody else's or another machine's is
ignored with a warning.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import sysfs
from .cache import cache_home, write_atomically
from .model import BOUNDS, DEFAULT_COSTS, WORTH_SEVERAL, WORTH_SEVERAL_GUESSED, Costs
from .nodes import machine
from .strict import Fields, whole
from .topology import Topology
from .trusted import read_trusted

FORMAT = 1
_DMI = "sys/devices/virtual/dmi/id/product_name"
SIDES = ("target", "source")


class CalibrationWarning(UserWarning):
    """A calibration was found and is not used; the text says why."""


@dataclass(frozen=True)
class Calibration:
    """Costs for the planner. ``measured`` names the fields of ``Costs`` that are no guesses.

    ``cpus_near`` says whose CPUs go first, those of the ``target`` node or of the ``source``.
    ``links`` are (source node, target node, GB/s). ``when`` is a date, empty for the defaults;
    ``note`` says in words what a plan that rests on this has to tell.
    """

    costs: Costs = DEFAULT_COSTS
    cpus_near: str = "target"
    links: tuple[tuple[int, int, float], ...] = ()
    measured: tuple[str, ...] = ()
    when: str = ""
    note: str = ""

    @property
    def worth(self) -> float:
        """The share of the time that several threads must save: more where costs are guesses."""
        return WORTH_SEVERAL if "page_us" in self.measured else WORTH_SEVERAL_GUESSED

    def link(self, source: int | None, target: int) -> float | None:
        """Return the GB/s between two nodes, None when they are not known."""
        for known_source, known_target, gbps in self.links:
            if known_target == target and source in (None, known_source):
                return gbps
        return None

    def as_dict(self) -> dict[str, Any]:
        """Return the calibration as its file has it, without the machine's identity."""
        return {
            "costs": self.costs.as_dict(),
            "cpus_near": self.cpus_near,
            "links": [list(link) for link in self.links],
            "measured": list(self.measured),
            "when": self.when,
            "note": self.note,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Calibration:
        """Read what ``as_dict`` wrote. Raises ``ValueError`` that names the field."""
        costs = Costs.from_fields(fields.table("costs"))
        near = fields.choice("cpus_near", SIDES)
        links = []
        for name, entry in fields.items("links", 1 << 14):
            if not isinstance(entry, (list, tuple)) or len(entry) != 3:
                raise ValueError(f"{name} must be source, target and GB/s")
            link = Fields({"source": entry[0], "target": entry[1], "gbps": entry[2]}, name)
            links.append(
                (
                    link.integer("source", 0, 1 << 16),
                    link.integer("target", 0, 1 << 16),
                    link.number("gbps", *BOUNDS["link_gbps"]),
                )
            )
        measured = []
        for name, entry in fields.items("measured", 100):
            if not isinstance(entry, str) or entry not in {*BOUNDS, "page_us"}:
                raise ValueError(f"{name} is no field of the costs")
            measured.append(entry)
        when, note = fields.text("when", 40), fields.text("note", 300)
        fields.end()
        return cls(costs, near, tuple(links), tuple(measured), when, note)


NOT_CALIBRATED = "not calibrated: costs are guesses; pageferry calibrate measures them"


def identity(here: Topology | None = None) -> dict[str, str]:
    """Return what makes this machine and kernel another one than the next."""
    here = here or machine()
    return {
        "cpu": sysfs.cpu_model(),
        "nodes": " ".join(f"{node.id}:{len(node.cpus)}" for node in here.nodes),
        "product": (sysfs.text(Path("/") / _DMI) or "unknown")[:200],
        "kernel": platform.release(),
    }


def path(of: dict[str, str] | None = None) -> Path:
    """Return where the calibration of this machine is kept; see ``cache_home``."""
    text = json.dumps(of or identity(), sort_keys=True)
    return cache_home() / f"calibration-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def save(calibration: Calibration) -> Path:
    """Keep ``calibration`` for this machine, readable by the user alone. Raises ``OSError``."""
    of = identity()
    where = path(of)
    value = {"format": FORMAT, "machine": of, **calibration.as_dict()}
    write_atomically(where, (json.dumps(value, indent=1) + "\n").encode(), 0o600)
    current.cache_clear()
    return where


def load(where: Path) -> Calibration | None:
    """Return the calibration in a file, None if there is no file.

    Raises ``ValueError`` with the reason when it is not to be trusted: a symbolic link, another
    user's, writable by others, too long, damaged, or of another machine; ``OSError`` when it
    cannot be read.
    """
    try:
        data = read_trusted(where, owners=(os.geteuid(),))
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    fields = Fields(value)
    whole(fields.integer("format", 0, 1 << 30), "format", FORMAT, FORMAT)
    of = fields.table("machine")
    for key, ours in identity().items():
        if of.text(key) != ours:
            raise ValueError(f"it is another machine's: {key} is not {ours!r}")
    of.end()
    return Calibration.from_fields(fields)


@lru_cache(maxsize=1)
def current() -> Calibration:
    """Return what is known of this machine, defaults if it was never calibrated. Never fails.

    Read once in a process; a file that cannot be used gives a ``CalibrationWarning``.
    """
    try:
        where = path()
        found = load(where)
    except (OSError, ValueError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        text = f"the calibration of this machine is ignored: {why}"
        if not isinstance(error, RuntimeError):  # no home directory, no calibration
            warnings.warn(f"{text} ({where})", CalibrationWarning, stacklevel=2)
        return Calibration(note=f"{text}; pageferry calibrate makes a new one")
    if found is None:
        return Calibration(note=NOT_CALIBRATED)
    return found

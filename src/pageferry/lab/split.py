# SPDX-License-Identifier: Apache-2.0
"""How long something takes in a guest in instructions, its CPUs working side by side.

Under emulation, time says little about what several CPUs gain, as they share fewer of the host's,
and copies collide in the emulator. ``split_plugin.c``, a plugin of QEMU, keeps the guest's CPUs at
one pace, so that the instructions from a mark to the next are those of the critical path. Wake-up
latencies, caches and memory bandwidth have no part in it.
The marks are made by the program in the guest, with ``marks.py``.
"""

from __future__ import annotations

import errno
import hashlib
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import programs
from .cache import cache_dir, locked, scratch_dir
from .errors import LabError

_SOURCE = Path(__file__).with_name("split_plugin.c")


@dataclass(frozen=True)
class Span:
    """From a begin mark to its end: what the marking CPU's clock, and each CPU, went on by.

    ``number`` is what the program called it, ``instructions`` the length of the critical path,
    ``ran`` the instructions of each CPU, and ``gave_up`` how often a CPU went on without waiting
    any longer for one that was held up: more than a few make the figure doubtful.
    """

    number: int
    instructions: int
    gave_up: int
    ran: tuple[int, ...]


def plugin() -> Path:
    """Return QEMU's plugin, compiled when it is not in the cache.

    Raises LabError when there is no compiler, or it fails.
    """
    key = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]
    path = cache_dir() / f"split-{key}.so"
    with locked("split"):
        if path.exists():
            return path
        with scratch_dir() as scratch:
            made = scratch / path.name
            command = [programs.find("cc"), "-O2", "-shared", "-fPIC", "-o", str(made)]
            done = subprocess.run([*command, str(_SOURCE)], capture_output=True, text=True)
            if done.returncode:
                raise LabError(errno.EIO, f"cannot compile {_SOURCE.name}: {done.stderr.strip()}")
            made.rename(path)
    return path


def read_spans(path: Path) -> tuple[Span, ...]:
    """Return what the plugin wrote while the guest ran."""
    spans = []
    for line in path.read_text().splitlines():
        number, instructions, gave_up, *ran = map(int, line.split())
        spans.append(Span(number, instructions, gave_up, tuple(ran)))
    return tuple(spans)


def describe(spans: tuple[Span, ...]) -> str:
    """Return a line for each number: medians over its spans."""
    lines = []
    for number in dict.fromkeys(span.number for span in spans):
        same = [span for span in spans if span.number == number]
        lengths = [span.instructions for span in same]
        ran = [round(statistics.median(each)) for each in zip(*(s.ran for s in same), strict=True)]
        lines.append(
            f"span {number}: {statistics.median(lengths):.0f} instructions "
            f"({min(lengths)}–{max(lengths)}, {len(same)} times); "
            f"by CPU: {' '.join(map(str, ran))}; "
            f"went on without waiting: {sum(span.gave_up for span in same)}"
        )
    return "\n".join(lines)

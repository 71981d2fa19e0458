# SPDX-License-Identifier: Apache-2.0
"""How a run in a guest ended, and how to tell a person."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from pathlib import Path

from .split import Span

LAB_FAILED = 125
_TAIL = 20


class Verdict(enum.StrEnum):
    """How a guest ended. Only ``FINISHED`` carries the command's own exit code."""

    FINISHED = "finished"
    PANIC = "kernel panic"
    TIMEOUT = "time limit"
    SETUP_FAILED = "guest setup failed"
    NO_EXIT_CODE = "no exit code"
    QEMU_FAILED = "QEMU failed"
    DETACHED = "ended from the terminal"


@dataclass(frozen=True)
class GuestResult:
    """What a command did in a guest, or what became of the guest.

    ``returncode`` is the command's own (128+n when signal n ended it) if ``verdict`` is
    FINISHED, else 125. ``stdout`` and ``stderr`` are what was captured, empty when streamed.
    ``seconds`` is from the start of QEMU to the end, ``boot_seconds`` to the start of the
    command (None when it never started). ``accel`` is ``kvm``, ``tcg``, ``count`` or ``split``.
    ``console`` is the guest's console; when the lab failed it is also in the file
    ``console_path``. ``detail`` is what is known about a failure. ``spans`` is what the command
    marked, with ``accel="split"``.
    """

    verdict: Verdict
    returncode: int
    stdout: bytes
    stderr: bytes
    seconds: float
    boot_seconds: float | None
    accel: str
    kernel: str
    topology: str
    console: str
    console_path: Path | None = None
    detail: str = ""
    spans: tuple[Span, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the command ran to its end and returned 0."""
        return self.verdict is Verdict.FINISHED and self.returncode == 0

    def explain(self) -> str:
        """Return what happened to the guest, in lines for a person; empty when nothing did."""
        if self.verdict in (Verdict.FINISHED, Verdict.DETACHED):
            return ""
        lines = [f"lab: {self._headline()}"]
        tail = self.console.strip().splitlines()[-_TAIL:]
        if tail:
            lines.append(f"last {len(tail)} lines of the guest's console:")
            lines += [f"  {line.rstrip()}" for line in tail]
        if self.console_path:
            lines.append(f"whole console: {self.console_path}")
        return "\n".join(lines)

    def _headline(self) -> str:
        where = "while the command ran" if self.boot_seconds is not None else "during boot"
        match self.verdict:
            case Verdict.PANIC:
                found = re.findall(r"Kernel panic - not syncing: (.*)", self.console)
                why = found[0].strip() if found else "see its console"
                return f"the guest's kernel, {self.kernel}, panicked {where}: {why}"
            case Verdict.TIMEOUT if self.boot_seconds is None:
                return (
                    f"the guest hung: after {self.seconds:.0f} s, the time limit, it had not "
                    "got as far as the command"
                )
            case Verdict.TIMEOUT:
                return (
                    f"the command, or the guest, hung: it had not ended after "
                    f"{self.seconds:.0f} s, the time limit (--timeout)"
                )
            case Verdict.SETUP_FAILED:
                return f"the guest could not set itself up: {self.detail}"
            case Verdict.QEMU_FAILED:
                return f"QEMU failed: {self.detail}"
            case _:
                return f"the guest ended {where} without an exit code {self.detail}".rstrip()

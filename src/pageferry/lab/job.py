# SPDX-License-Identifier: Apache-2.0
"""What the host hands to a guest's ``init.sh``: the command, its environment and directory."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

# Carried into the guest when they are set on the host, besides PYTHON*, LC_* and PAGEFERRY_*.
_KEPT = (
    "PATH",
    "HOME",
    "SHELL",
    "VIRTUAL_ENV",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TERM",
    "COLORTERM",
    "NO_COLOR",
)
_KEPT_PREFIXES = ("PYTHON", "LC_", "PAGEFERRY_")


def guest_environment(added: Mapping[str, str], accel: str) -> dict[str, str]:
    """Return the environment of a command in the guest: part of the host's, and ``added``.

    ``PAGEFERRY_LAB=1`` and ``PAGEFERRY_LAB_ACCEL`` (kvm or tcg) tell a program where it runs.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or name.startswith(_KEPT_PREFIXES)
    }
    environment |= {"USER": "root", "LOGNAME": "root"}
    environment.update(added)
    return environment | {"PAGEFERRY_LAB": "1", "PAGEFERRY_LAB_ACCEL": accel}


def job_script(
    command: Sequence[str | bytes | os.PathLike[str]], environment: Mapping[str, str], cwd: Path
) -> bytes:
    """Return a script for the host's ``/bin/sh`` that becomes ``command``.

    Arguments may hold any bytes but NUL.
    """
    assignments = [f"{name}={value}" for name, value in environment.items()]
    # env would take a program with "=" in its name for an assignment, hence the inner shell.
    words = ["/usr/bin/env", "-i", *assignments, "/bin/sh", "-c", 'exec "$@"', "sh"]
    words += [os.fsdecode(word) for word in command]
    script = f"cd -- {_quoted(cwd)} || exit 125\nexec {' '.join(map(shlex.quote, words))}\n"
    return os.fsencode(script)


def message(
    job: bytes, *, token: str, writable: Iterable[Path], terminal: os.terminal_size | None
) -> bytes:
    """Return what is sent to the guest: the length, and the settings that ``init.sh`` sources."""
    lines = [f"token={token}", f"job={shlex.quote(os.fsdecode(job))}"]
    if terminal is None:
        lines.append("mode=run")
    else:
        lines += ["mode=shell", f"rows={terminal.lines}", f"columns={terminal.columns}"]
    for number, directory in enumerate(writable):
        lines.append(f"share{number}={_quoted(directory)}")
        lines.append(f'share {share_tag(number)} "$share{number}"')
    body = os.fsencode("\n".join(lines) + "\n")
    return b"job %d\n" % len(body) + body


def share_tag(number: int) -> str:
    """Return the 9p mount tag of the writable directory with that number."""
    return f"share{number}"


def _quoted(path: Path) -> str:
    return shlex.quote(os.fspath(path))

# SPDX-License-Identifier: Apache-2.0
"""Small reads from /sys and /proc that answer None instead of failing.

A container, an old kernel or a damaged tree lacks files that another machine has. Whoever reads
them needs "not there" as a value, not as an exception.
"""

from __future__ import annotations

import re
from pathlib import Path

from .flags import parse_cpu_list


def text(path: Path) -> str | None:
    """Return the content of ``path`` without white space around it; None if unreadable."""
    try:
        return path.read_bytes().decode(errors="replace").strip()
    except OSError:
        return None


def number(path: Path) -> int | None:
    """Return the decimal number in ``path``; None if there is none."""
    content = text(path) or ""
    return int(content) if re.fullmatch("-?[0-9]{1,19}", content) else None


def numbers(path: Path) -> frozenset[int] | None:
    """Return the CPUs or nodes of a kernel list such as ``0-3,8``; None if it is not one."""
    return as_numbers(text(path))


def as_numbers(content: str | None) -> frozenset[int] | None:
    """Return the CPUs or nodes of a kernel list; None if ``content`` is None or not a list."""
    if content is None:
        return None
    try:
        return parse_cpu_list(content)
    except ValueError:
        return None


def numbered(folder: Path, prefix: str, suffix: str = "") -> dict[int, Path]:
    """Return the entries of ``folder`` named prefix, number, suffix: by number, in order."""
    try:
        entries = list(folder.iterdir())
    except OSError:
        return {}
    pattern = re.compile(f"{re.escape(prefix)}([0-9]{{1,9}}){re.escape(suffix)}")
    found = ((pattern.fullmatch(entry.name), entry) for entry in entries)
    return dict(sorted((int(match[1]), entry) for match, entry in found if match))


def meminfo(path: Path) -> dict[str, int]:
    """Return the byte counts of a ``meminfo`` file, of a node or of the machine; {} if none."""
    found = re.findall(r"^(?:Node\s+\d+\s+)?(\w+):\s+(\d{1,15}) kB", text(path) or "", re.M)
    return {name: int(kilobytes) * 1024 for name, kilobytes in found}


def hugepages(folder: Path) -> dict[int, tuple[int, int]]:
    """Return the hugetlb pools below ``folder``: page size in bytes to (pages, pages free)."""
    pools = {}
    for kilobytes, path in numbered(folder, "hugepages-", "kB").items():
        total, free = number(path / "nr_hugepages"), number(path / "free_hugepages")
        if total is not None and free is not None:
            pools[kilobytes * 1024] = (total, free)
    return pools


def choice(path: Path) -> str | None:
    """Return the value in force of a file like ``always [madvise] never``; None if none."""
    match = re.search(r"\[([^]]+)\]", text(path) or "")
    return match[1] if match else None


def status(path: Path) -> dict[str, str]:
    """Return the fields of a ``/proc/PID/status`` file; {} if unreadable."""
    pairs = (line.partition(":") for line in (text(path) or "").splitlines())
    return {key: value.strip() for key, colon, value in pairs if colon}


def cpu_model(root: Path = Path("/")) -> str:
    """Return the name of the CPUs from ``/proc/cpuinfo``, ``"unknown"`` if it has none."""
    for line in (text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "cpu", "CPU part"):
            return value.strip()[:200]
    return "unknown"

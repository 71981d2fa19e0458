# SPDX-License-Identifier: Apache-2.0
"""Which processes a request names: by id, by cgroup, by systemd unit, by command name."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import procfs, sysfs
from .errors import NotPermittedError, ProcessGoneError, TargetError

_KERNEL_THREAD = 0x00200000  # PF_KTHREAD
_FLAGS, _STARTED, _VIRTUAL = 6, 19, 20  # fields of /proc/PID/stat after the name
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}")
_SUFFIXES = (".service", ".scope", ".slice", ".socket", ".mount", ".swap")


@dataclass(frozen=True)
class Process:
    """A process that was found: its id, its command name, and when it was started (in ticks).

    ``started`` tells it from a later process with the same id; None where it is not known.
    """

    pid: int
    name: str = ""
    started: int | None = None

    def __str__(self) -> str:
        return f"process {self.pid}" + (f" ({self.name})" if self.name else "")


def find_processes(
    pids: Iterable[int] = (),
    *,
    cgroups: Iterable[str] = (),
    units: Iterable[str] = (),
    names: Iterable[str] = (),
    proc: str | os.PathLike[str] = "/proc",
) -> list[Process]:
    """Return the processes that are named, each once: ``pids`` in their order, then by id.

    ``pids`` are taken as they are. ``cgroups`` (a folder, or a path below the cgroup mount, with
    all that is below it), ``units`` (of the system's systemd, by their cgroups) and ``names``
    (shell patterns for the command name, as ``ps -o comm=`` has it, at most 15 characters) leave
    out this process, kernel threads and what has ended. Raises ``ProcessGoneError`` (ESRCH) for
    one of these that finds no process, ``TargetError`` (EINVAL) for what cannot be a cgroup, a
    unit or a pattern, and ``NotPermittedError`` for a cgroup that may not be read.
    """
    root = Path(proc)
    found: dict[int, Process] = {}
    for pid in pids:
        found.setdefault(pid, _named(root, pid))
    listed: dict[int, Process] = {}
    for path in cgroups:
        listed |= _some(_members(root, cgroup_folder(path)), f"cgroup {path}")
    for unit in units:
        listed |= _some(_members(root, unit_folder(unit)), f"unit {unit}")
    for pattern in names:
        if not pattern:
            raise TargetError(errno.EINVAL, "the name pattern is empty", "'*' is any name")
        all_of_them = (int(entry.name) for entry in root.iterdir() if entry.name.isdecimal())
        matching = (
            process
            for process in _users(root, all_of_them)
            if fnmatch.fnmatchcase(process.name, pattern)
        )
        listed |= _some(matching, f"name {pattern}")
    for pid in sorted(listed):
        found.setdefault(pid, listed[pid])
    return list(found.values())


def started(pid: int, *, proc: str | os.PathLike[str] = "/proc") -> int | None:
    """Return when a process was started, in ticks since boot; None when there is none."""
    try:
        return int(procfs.stat(Path(proc, str(pid), "stat"))[1][_STARTED])
    except (OSError, ValueError, IndexError):
        return None


def cgroup_mounts(*, proc: str | os.PathLike[str] = "/proc") -> list[Path]:
    """Return where cgroup file systems are mounted: version 2 first, then systemd's own."""
    mounts: list[tuple[int, Path]] = []
    for line in (sysfs.text(Path(proc, "self/mountinfo")) or "").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.partition(" ")
        if kind in ("cgroup", "cgroup2"):
            rank = 0 if kind == "cgroup2" else 1 if "name=systemd" in options else 2
            mounts.append((rank, Path(before.split()[4])))
    return [path for _, path in sorted(mounts, key=lambda mount: mount[0])]


def cgroup_folder(path: str) -> Path:
    """Return the folder of a cgroup: of a path as it is, or of one below the cgroup mount.

    Raises ``ProcessGoneError`` where there is none, ``TargetError`` for another folder.
    """
    if not path or "\0" in path:
        raise TargetError(errno.EINVAL, f"{path!r} is no path of a cgroup", _CGROUP_HINT)
    below = path.lstrip("/")
    candidates = [Path(path)] if path.startswith("/") else []
    candidates += [mount / below for mount in cgroup_mounts()]
    folders = [folder for folder in candidates if _is_folder(folder)]
    for folder in folders:
        if (folder / "cgroup.procs").exists():
            return folder
    if folders:
        raise TargetError(errno.EINVAL, f"{folders[0]} is no cgroup", _CGROUP_HINT)
    raise ProcessGoneError(errno.ESRCH, f"there is no cgroup {path[:200]}", _CGROUP_HINT)


def unit_folder(unit: str) -> Path:
    """Return the cgroup of a unit of the system's systemd, found without asking it.

    Such a unit is below nothing but slices; what containers and users' own systemd have is not
    meant. Without a suffix a service is. Raises as ``cgroup_folder``.
    """
    if not _UNIT.fullmatch(unit):
        raise TargetError(
            errno.EINVAL, f"{unit[:200]!r} is no name of a unit", "systemctl list-units has them"
        )
    name = unit if unit.endswith(_SUFFIXES) else f"{unit}.service"
    mounts = cgroup_mounts()
    for mount in mounts:
        # systemd puts an underscore before names that could be files of the kernel's.
        for folder in _below_slices(mount, (name, f"_{name}")):
            return folder
    raise ProcessGoneError(
        errno.ESRCH,
        f"there is no cgroup of a unit {name}",
        "is it running? systemctl status says so; for units of users and containers give --cgroup"
        if mounts
        else "no cgroup file system is mounted here",
    )


_CGROUP_HINT = "give a folder such as /sys/fs/cgroup/system.slice, or what /proc/PID/cgroup has"


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, a loop of links
        return False


def _below_slices(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    try:
        below = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return
    for name in below:
        if name in names and (folder / name / "cgroup.procs").exists():
            yield folder / name
        elif name.endswith(".slice"):
            yield from _below_slices(folder / name, names)


def _members(root: Path, cgroup: Path) -> Iterator[Process]:
    """Yield the processes of a cgroup and of those below it."""
    for folder, _, files in os.walk(cgroup):
        if "cgroup.procs" not in files:
            continue
        path = Path(folder, "cgroup.procs")
        try:
            text = path.read_text()
        except PermissionError as error:
            raise NotPermittedError(
                error.errno or errno.EACCES, f"may not read {path}", "run as root"
            ) from None
        except OSError:
            continue  # removed meanwhile; or a cgroup of threads, whose parent has them all
        yield from _users(root, map(int, re.findall(r"^[0-9]{1,9}$", text, re.M)))


def _users(root: Path, pids: Iterable[int]) -> Iterator[Process]:
    """Yield those that are processes of users, but for this one."""
    for pid in pids:
        if pid == os.getpid():
            continue
        try:
            name, fields = procfs.stat(root / str(pid) / "stat")
            kernel = int(fields[_FLAGS]) & _KERNEL_THREAD or not int(fields[_VIRTUAL])
            process = Process(pid, name, int(fields[_STARTED]))
        except (OSError, ValueError, IndexError):
            continue  # it has ended
        if not kernel:
            yield process


def _named(root: Path, pid: int) -> Process:
    try:
        name, fields = procfs.stat(root / str(pid) / "stat")
        return Process(pid, name, int(fields[_STARTED]))
    except (OSError, ValueError, IndexError):
        return Process(pid)


def _some(found: Iterable[Process], what: str) -> dict[int, Process]:
    by_pid = {process.pid: process for process in found}
    if not by_pid:
        raise ProcessGoneError(
            errno.ESRCH,
            f"no process is of {what}",
            "this process, kernel threads and ended ones do not count; ps -eo pid,comm,cgroup",
        )
    return by_pid

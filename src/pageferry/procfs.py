# SPDX-License-Identifier: Apache-2.0
"""What /proc tells about a process's mappings and rights, and the migration counters."""

from __future__ import annotations

import errno
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Final

from . import sysfs
from .errors import NotPermittedError, ProcessGoneError, UnsupportedError

# Pages of these belong to the kernel or are shared by everybody: nothing to move.
_SPECIAL: Final = frozenset(
    {"[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]", "[uprobes]", "[sigpage]", "[vectors]"}
)
_DELETED: Final = b" (deleted)"
_COUNTER: Final = re.compile(
    r"^((?:pgmigrate|thp_migration|numa|pgdemote|pgpromote)_\w+) (\d{1,20})$", re.MULTILINE
)
_MAPPING_LINE: Final = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) [^\n]*", re.MULTILINE)
# Start, end and name of a line of maps. Only newlines end a line.
_RANGE: Final = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *([^\n]*)$", re.MULTILINE)

# Names in the order of their bits, from include/uapi/linux/capability.h.
_CAPABILITIES: Final = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO "
    "SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME "
    "SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG "
    "WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
_PF_KTHREAD = 0x00200000  # of the flags in /proc/PID/stat


@dataclass(frozen=True)
class Mapping:
    """One line of ``/proc/PID/maps``: addresses and file offset in bytes."""

    start: int
    end: int
    perms: str
    """Such as ``rw-p``; the last letter is ``p`` for private, ``s`` for shared."""
    offset: int
    device: str
    """Major and minor number in hexadecimal, ``00:00`` without a file."""
    inode: int
    name: str
    """Path, or a name such as ``[heap]`` or ``[anon:arena]``, or empty."""
    deleted: bool = False
    """The file has been unlinked (the kernel's " (deleted)" is not part of ``name``)."""

    @property
    def size(self) -> int:
        """Bytes from start to end."""
        return self.end - self.start

    @property
    def special(self) -> bool:
        """The kernel's own pages, such as ``[vdso]``: they cannot be moved."""
        return self.name in _SPECIAL

    @property
    def private(self) -> bool:
        """Writes stay in this process (MAP_PRIVATE)."""
        return self.perms.endswith("p")

    @property
    def anonymous(self) -> bool:
        """Private memory without a file: heap, stack, MAP_ANONYMOUS."""
        return self.private and self.inode == 0 and self.device == "00:00" and not self.special


@dataclass(frozen=True)
class MappingUse:
    """A mapping with what ``/proc/PID/smaps`` adds; sizes are bytes."""

    mapping: Mapping
    kernel_page_size: int
    """Page size of the mapping: 4096, or that of its hugetlb pool. A THP does not show here."""
    rss: int
    """Resident pages; hugetlb pages are not among them, see ``hugetlb``."""
    anon_huge: int
    """The part of ``rss`` that is in anonymous THPs mapped by a PMD."""
    hugetlb: int
    """Resident hugetlb pages, private and shared."""
    referenced: int | None
    """The part of ``rss`` touched since ``clear_refs``; None where the kernel does not tell."""
    flags: frozenset[str]
    """VmFlags, such as ``ht`` (hugetlb), ``hg`` (MADV_HUGEPAGE), ``lo`` (mlock), ``io``."""


def mappings(
    pid: int | None = None,
    *,
    within: Sequence[range] | None = None,
    proc: str | os.PathLike[str] = "/proc",
) -> list[Mapping]:
    """Return the mappings of a process (None: this one) from ``/proc/PID/maps``, by address.

    With ``within`` (in order, none overlapping another), only those that have a part of it. A
    kernel thread has none. Raises ``ProcessGoneError`` (ESRCH) and ``NotPermittedError``.
    """
    content = _read(pid, "maps", Path(proc))
    # Only newlines end a line: a file name may hold any other control character.
    headers = _MAPPING_LINE.finditer(content)
    return [_mapping(header[0]) for header in headers if _has_part(header, within)]


def _has_part(header: re.Match[bytes], within: Sequence[range] | None) -> bool:
    """Say whether the mapping of a line has a part of the ranges; all have of None."""
    if within is None:
        return True
    start, end = int(header[1], 16), int(header[2], 16)
    after_start = bisect_right(within, start, key=lambda part: part.stop)
    return after_start < len(within) and within[after_start].start < end


def ranges(pid: int | None = None, *, proc: str | os.PathLike[str] = "/proc") -> list[range]:
    """Return the addresses of all mappings but the kernel's own, one range for those that touch.

    As ``mappings``, but several times faster. [] for a kernel thread.
    """
    found: list[range] = []
    for start, end, name in _RANGE.findall(_read(pid, "maps", Path(proc))):
        first, stop = int(start, 16), int(end, 16)
        if name.startswith(b"[") and os.fsdecode(name) in _SPECIAL:
            continue
        if found and found[-1].stop == first:
            found[-1] = range(found[-1].start, stop)
        else:
            found.append(range(first, stop))
    return found


def smaps(
    pid: int | None = None,
    *,
    within: Sequence[range] | None = None,
    proc: str | os.PathLike[str] = "/proc",
) -> list[MappingUse]:
    """Return the mappings of a process with their sizes and flags, from ``/proc/PID/smaps``.

    With ``within`` (in order, none overlapping another), only those that have a part of it. The
    kernel walks all page tables all the same: about as slow as a survey of all memory. Raises
    ``ProcessGoneError`` (ESRCH), ``NotPermittedError``, and ``UnsupportedError`` (ENOSYS) when the
    kernel has no ``smaps``.
    """
    content = _read(pid, "smaps", Path(proc))
    uses: list[MappingUse] = []
    # A field starts with a capital, a mapping with a lower-case hexadecimal address.
    headers = list(_MAPPING_LINE.finditer(content))
    for header, after in zip_longest(headers, headers[1:]):
        if not _has_part(header, within):
            continue
        lines = content[header.end() : after.start() if after else len(content)].split(b"\n")
        parts = (line.partition(b":") for line in lines)
        uses.append(_mapping_use(_mapping(header[0]), {key: value for key, _, value in parts}))
    return uses


def kernel_page_sizes(pid: int | None = None) -> dict[int, int]:
    """Return the page size in bytes of each mapping, by its start. Errors as ``smaps``."""
    return {use.mapping.start: use.kernel_page_size for use in smaps(pid)}


def anon_huge(pid: int | None = None) -> dict[int, tuple[int, int]]:
    """Return (resident bytes, bytes in anonymous THPs) by mapping start. Errors as ``smaps``."""
    return {use.mapping.start: (use.rss, use.anon_huge) for use in smaps(pid)}


def stat(path: Path) -> tuple[str, list[bytes]]:
    """Return the name in a ``stat`` file, and the fields after it, the state being the first.

    Raises ``OSError`` as reading it does, and ``ValueError`` for another file.
    """
    content = path.read_bytes()
    # A name may hold spaces and parentheses; the fields after it hold none.
    start, end = content.index(b"("), content.rindex(b")")
    return os.fsdecode(content[start + 1 : end]), content[end + 1 :].split()


def is_kernel_thread(pid: int, *, proc: str | os.PathLike[str] = "/proc") -> bool:
    """Say whether that is a thread of the kernel's own; False where nobody can tell any more."""
    try:
        _, fields = stat(Path(proc, str(pid), "stat"))
        return bool(int(fields[6]) & _PF_KTHREAD)
    except (OSError, ValueError, IndexError):
        return False


def vmstat(*, proc: str | os.PathLike[str] = "/proc") -> dict[str, int]:
    """Return the kernel's migration and NUMA counters from ``/proc/vmstat``.

    They count for the whole system, not for a process: ``pgmigrate_*`` and ``numa_*`` in base
    pages, ``thp_migration_*`` in huge pages. {} when the kernel has none.
    """
    found = _COUNTER.findall(sysfs.text(Path(proc, "vmstat")) or "")
    return {name: int(value) for name, value in found}


def migration_counters() -> dict[str, int]:
    """Return ``pgmigrate_*`` and ``thp_migration_*`` of ``vmstat``, read as fast as can be.

    They stand together in the file, so only that part of it is looked at.
    """
    try:
        fd = os.open("/proc/vmstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        content = os.read(fd, 1 << 16)
    finally:
        os.close(fd)
    start = content.find(b"\npgmigrate_")
    if start < 0:
        return {}
    pairs = (line.split() for line in content[start + 1 : start + 512].split(b"\n")[:8])
    return {
        pair[0].decode(): int(pair[1])
        for pair in pairs
        if len(pair) == 2 and pair[0].startswith((b"pgmigrate_", b"thp_migration_"))
    }


def hugetlbfs_devices(
    pid: int | None = None, *, proc: str | os.PathLike[str] = "/proc"
) -> frozenset[str]:
    """Return the devices of hugetlbfs in a process's mounts, as ``Mapping.device`` has them."""
    lines = (sysfs.text(_folder(pid, Path(proc)) / "mountinfo") or "").splitlines()
    devices = [line.split()[2] for line in lines if " - hugetlbfs " in line]
    pairs = (device.split(":") for device in devices)
    return frozenset(f"{int(major):02x}:{int(minor):02x}" for major, minor in pairs)


def numa_balancing_on(*, proc: str | os.PathLike[str] = "/proc") -> bool:
    """Say whether the kernel moves pages by itself (``kernel.numa_balancing``).

    It then may move back what pageferry moved. Also True for mode 2 (memory tiering).
    """
    return bool(sysfs.number(Path(proc, "sys/kernel/numa_balancing")))


def seccomp_mode(pid: int | None = None, *, proc: str | os.PathLike[str] = "/proc") -> int | None:
    """Return 0 (none), 1 (strict), 2 (filter), or None without seccomp in the kernel."""
    value = _status(pid, Path(proc)).get("Seccomp", "")
    return int(value) if value.isdecimal() else None


def capabilities(
    pid: int | None = None, *, proc: str | os.PathLike[str] = "/proc"
) -> frozenset[str]:
    """Return the effective capabilities of a process as names such as ``CAP_SYS_NICE``.

    From ``CapEff`` in ``/proc/PID/status``; bits without a name yet are ``CAP_41`` and so on.
    """
    names = _CAPABILITIES.split()
    try:
        bits = int(_status(pid, Path(proc)).get("CapEff", "0"), 16)
    except ValueError:
        return frozenset()
    return frozenset(
        "CAP_" + (names[bit] if bit < len(names) else str(bit))
        for bit in range(bits.bit_length())
        if bits >> bit & 1
    )


def yama_scope(*, proc: str | os.PathLike[str] = "/proc") -> int | None:
    """Return ``kernel.yama.ptrace_scope`` (0 to 3), or None when Yama is not active.

    It restricts who may attach to a process; reading its mappings and ``move_pages(2)`` ask for
    read access only, which Yama leaves alone.
    """
    return sysfs.number(Path(proc, "sys/kernel/yama/ptrace_scope"))


def _mapping(line: bytes) -> Mapping:
    fields = line.split(None, 5)
    if len(fields) < 5:
        raise ValueError(f"{line[:80]!r} is no mapping")
    start, _, end = fields[0].partition(b"-")
    name = fields[5] if len(fields) > 5 else b""
    deleted = name.endswith(_DELETED)
    # The kernel escapes a newline in a name and nothing else.
    name = name.removesuffix(_DELETED).replace(b"\\012", b"\n")
    return Mapping(
        start=int(start, 16),
        end=int(end, 16),
        perms=fields[1].decode(),
        offset=int(fields[2], 16),
        device=fields[3].decode(),
        inode=int(fields[4]),
        name=os.fsdecode(name),
        deleted=deleted,
    )


def _mapping_use(mapping: Mapping, fields: dict[bytes, bytes]) -> MappingUse:
    def kilobytes(key: bytes) -> int:
        value = fields.get(key, b"").removesuffix(b"kB").strip()
        return int(value) * 1024 if value.isdigit() else 0

    return MappingUse(
        mapping=mapping,
        kernel_page_size=kilobytes(b"KernelPageSize"),
        rss=kilobytes(b"Rss"),
        anon_huge=kilobytes(b"AnonHugePages"),
        referenced=kilobytes(b"Referenced") if b"Referenced" in fields else None,
        hugetlb=kilobytes(b"Private_Hugetlb") + kilobytes(b"Shared_Hugetlb"),
        flags=frozenset(fields.get(b"VmFlags", b"").decode().split()),
    )


def _read(pid: int | None, name: str, proc: Path) -> bytes:
    folder = _folder(pid, proc)
    with _explained(pid, f"{folder}/{name}"):
        try:
            content = (folder / name).read_bytes()
        except FileNotFoundError:
            if not folder.is_dir():
                raise
            raise UnsupportedError(
                errno.ENOSYS,
                f"this kernel has no {folder}/{name}",
                "it was built without CONFIG_PROC_PAGE_MONITOR",
            ) from None
        # The files of a zombie are there and empty, as those of a kernel thread.
        if not content and _status(pid, proc).get("State", "X")[:1] in ("Z", "X"):
            raise ProcessLookupError
    return content


def _status(pid: int | None, proc: Path) -> dict[str, str]:
    return sysfs.status(_folder(pid, proc) / "status")


def _folder(pid: int | None, proc: Path) -> Path:
    return proc / ("self" if pid is None else str(int(pid)))


@contextmanager
def _explained(pid: int | None, path: str) -> Iterator[None]:
    """Turn what the kernel answers about ``path`` into errors that say what to try."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGoneError(
            errno.ESRCH,
            f"process {'self' if pid is None else pid} does not exist, or has ended",
            "with hidepid, or in another PID namespace, it is invisible rather than gone",
        ) from None
    except PermissionError as error:
        # Yama is no cause: it restricts attaching to a process, not PTRACE_MODE_READ.
        raise NotPermittedError(
            error.errno or errno.EACCES,
            f"may not read {path}",
            "run as the user of that process, or with CAP_SYS_PTRACE (a process that is not "
            "dumpable, or has more capabilities, needs it in any case)",
        ) from None

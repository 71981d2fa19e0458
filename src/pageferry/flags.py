# SPDX-License-Identifier: Apache-2.0
"""The words a caller uses: migration modes, memory-policy numbers, node sets, sizes, ranges."""

from __future__ import annotations

import enum
import errno
import re
from collections.abc import Iterable
from typing import Final

from .errors import NodeError, RangeError

# Memory policies, from include/uapi/linux/mempolicy.h (see mbind(2)).
MPOL_DEFAULT: Final = 0
MPOL_PREFERRED: Final = 1
MPOL_BIND: Final = 2
MPOL_INTERLEAVE: Final = 3
MPOL_LOCAL: Final = 4
MPOL_PREFERRED_MANY: Final = 5
MPOL_WEIGHTED_INTERLEAVE: Final = 6

# Bits that go with a policy in its mode argument.
MPOL_F_NUMA_BALANCING: Final = 1 << 13
MPOL_F_RELATIVE_NODES: Final = 1 << 14
MPOL_F_STATIC_NODES: Final = 1 << 15

# Bits of get_mempolicy(2).
MPOL_F_NODE: Final = 1 << 0
MPOL_F_ADDR: Final = 1 << 1
MPOL_F_MEMS_ALLOWED: Final = 1 << 2

# Bits of mbind(2), move_pages(2) and migrate_pages(2).
MPOL_MF_STRICT: Final = 1 << 0
MPOL_MF_MOVE: Final = 1 << 1
MPOL_MF_MOVE_ALL: Final = 1 << 2
# Ours, as in the 2017 series; bit 7 because 3 (LAZY) and 4 to 6 (internal) are taken in 6.12.
# A stock kernel answers EINVAL to it.
MPOL_MF_MOVE_MT: Final = 1 << 7

# No kernel is built for more (NR_CPUS and MAX_NUMNODES are far below), so a longer list is a
# mistake and must not cost memory.
_MAX_LIST_NUMBER: Final = (1 << 16) - 1
_ADDRESS_LIMIT: Final = 1 << 64
_SIZE_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


class MigrateMode(enum.IntFlag, boundary=enum.STRICT):
    """How a move may block, combined with how many threads copy: ``SYNC | MT``.

    At most one of the blocking kinds ``ASYNC``, ``SYNC_LIGHT``, ``SYNC`` and at most one of
    ``ST``, ``MT``; ``check`` says whether that holds. The kinds carry the names of the kernel's
    ``enum migrate_mode`` and describe what pageferry does around ``move_pages(2)``, which
    itself always migrates with MIGRATE_SYNC.
    """

    ASYNC = 1
    """One attempt: a busy page is reported EBUSY at once, and there is no sleep between tries."""
    SYNC_LIGHT = 2
    """Busy pages are tried again, twice at once and then for about 4 ms for a batch."""
    SYNC = 4
    """Busy pages are tried again with growing pauses, about 0.13 s for a batch. The default."""
    ST = 8
    """Single-threaded: the calling thread does all the work (MIGRATE_ST of the 2017 series)."""
    MT = 16
    """Multi-threaded: the crew shares the work with the caller (MIGRATE_MT of the series)."""

    @classmethod
    def check(cls, mode: int) -> MigrateMode:
        """Return ``mode`` with its blocking kind filled in (``SYNC`` when it names none).

        Without ``ST`` and ``MT`` the planner decides on the number of threads. Raises
        ``ValueError`` for unknown bits, two blocking kinds, or ``ST | MT``.
        """
        try:
            value = cls(mode)
        except ValueError:
            raise ValueError(f"{mode!r} is not a combination of MigrateMode bits") from None
        kinds = value & _BLOCKING
        if kinds not in (cls(0), cls.ASYNC, cls.SYNC_LIGHT, cls.SYNC):
            raise ValueError(f"{value!r} names two ways to block; take one of {_names(kinds)}")
        if value & _THREADING == _THREADING:
            raise ValueError(f"{value!r} is single- and multi-threaded at once; take ST or MT")
        return value if kinds else value | cls.SYNC

    @property
    def blocking(self) -> MigrateMode:
        """The blocking kind alone: ``ASYNC``, ``SYNC_LIGHT`` or ``SYNC`` (0 when none is set)."""
        return self & _BLOCKING

    @property
    def threading(self) -> MigrateMode:
        """``ST``, ``MT``, or 0 when the planner is to decide."""
        return self & _THREADING


_BLOCKING: Final = MigrateMode.ASYNC | MigrateMode.SYNC_LIGHT | MigrateMode.SYNC
_THREADING: Final = MigrateMode.ST | MigrateMode.MT


def _names(mode: MigrateMode) -> str:
    return ", ".join(flag.name or "" for flag in mode)


def parse_nodes(
    text: str, available: Iterable[int], allowed: Iterable[int] | None = None
) -> frozenset[int]:
    """Return the nodes that ``text`` names in numactl's syntax.

    ``0``, ``0-3``, ``0,2,5-7``; ``all``; ``!2`` is all but node 2; ``+0-1`` counts within the
    allowed nodes (``+0`` is the first of them); ``!+0`` combines both. As in numactl, the ends
    of a range must exist, the ids between them need not.

    ``available`` are the nodes that exist. ``allowed`` are those this process may use (its
    cpuset's ``Mems_allowed``; default: all that exist): ``all``, ``!`` and ``+`` go by them.
    Raises ``NodeError`` (EINVAL) naming the part that is wrong and the nodes that exist.
    """
    existing = frozenset(available)
    usable = sorted(existing if allowed is None else existing & frozenset(allowed))

    def wrong(why: str) -> NodeError:
        have = format_nodes(existing) or "none"
        return NodeError(errno.EINVAL, f"node set {_shown(text)}: {why} (nodes here: {have})")

    def number(digits: str) -> int:
        if not re.fullmatch("[0-9]+", digits):
            raise wrong(f"{_shown(digits)} is not a node number")
        # A node number of more digits exists nowhere; int() of megabytes of digits is slow.
        value = int(digits) if len(digits) < 10 else _MAX_LIST_NUMBER + 1
        if relative and value >= len(usable):
            end = f", they end at +{len(usable) - 1}" if usable else ""
            raise wrong(f"there is no allowed node +{digits[:10]}{end}")
        if relative:
            return usable[value]
        if value not in existing:
            raise wrong(f"node {digits[:10]} does not exist")
        return value

    body = text
    if re.search(r"\s", text):
        raise wrong("white space is not part of the syntax")
    inverted = body.startswith("!")
    body = body.removeprefix("!")
    relative = body.startswith("+")
    body = body.removeprefix("+")
    if not body:
        raise wrong("it is empty")

    named: set[int] = set()
    if body == "all" and not relative:
        named.update(usable)
    else:
        for part in body.split(","):
            if not part:
                raise wrong("a comma without a node beside it")
            first, dash, last = part.partition("-")
            if dash and not (first and last):
                raise wrong(f"{_shown(part)} lacks one end of a range")
            low, high = number(first), number(last if dash else first)
            if low > high:
                raise wrong(f"the range {_shown(part)} is reversed")
            # Walks the nodes, not the range: a range may be as long as it likes.
            named.update(node for node in (usable if relative else existing) if low <= node <= high)
    result = frozenset(usable) - named if inverted else frozenset(named)
    if not result:
        raise wrong("it leaves no node")
    return result


def format_nodes(nodes: Iterable[int]) -> str:
    """Return a set of node or CPU numbers as the kernel prints lists: ``0-3,5``."""
    parts: list[str] = []
    run: list[int] = []
    for node in [*sorted(set(nodes)), None]:
        if run and (node is None or node != run[-1] + 1):
            parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
            run = []
        if node is not None:
            run.append(node)
    return ",".join(parts)


def parse_cpu_list(text: str) -> frozenset[int]:
    """Return the numbers in a kernel list such as ``0-3,8-11`` (CPUs or nodes; may be empty).

    Also the grouped form that the kernel accepts on its command line: ``0-31:2/4`` is the first
    2 of every 4 in 0 to 31. Raises ``ValueError`` for anything else, and for numbers above
    65535. The syntax is that of cpuset(7), "List format".
    """
    numbers: set[int] = set()
    stripped = text.strip()
    for part in stripped.split(",") if stripped else ():
        match = re.fullmatch(
            "([0-9]{1,9})(?:-([0-9]{1,9})(?::([0-9]{1,9})/([0-9]{1,9}))?)?", part.strip()
        )
        if match is None:
            raise ValueError(f"{_shown(part)} is not part of a kernel list such as 0-3,8-11")
        low = int(match[1])
        high = int(match[2] or match[1])
        used, group = int(match[3] or 1), int(match[4] or 1)
        if low > high or not 0 < used <= group:
            raise ValueError(f"{_shown(part)} is not a range that goes up")
        if high > _MAX_LIST_NUMBER:
            raise ValueError(f"{_shown(part)} goes beyond {_MAX_LIST_NUMBER}")
        numbers.update(n for n in range(low, high + 1) if (n - low) % group < used)
    return frozenset(numbers)


def parse_size(text: str) -> int:
    """Return a number of bytes: ``4096``, ``0x1000``, ``2M``, ``2MiB`` (K, M, G, T: binary).

    Raises ``RangeError`` (EINVAL) for anything else, and from 2^64 on.
    """
    match = re.fullmatch(
        "(0[xX][0-9a-fA-F]{1,32}|[0-9]{1,32})(?:([KMGTkmgt])(?:[iI][bB])?)?", text.strip()
    )
    if match is None:
        raise RangeError(
            errno.EINVAL,
            f"{_shown(text)} is not a size",
            "write bytes, or a number with K, M, G or T, such as 2M",
        )
    value = _address(match[1]) << _SIZE_UNITS[(match[2] or "").upper()]
    if value >= _ADDRESS_LIMIT:
        raise RangeError(errno.EINVAL, f"the size {_shown(text)} is beyond 64 bits")
    return value


def parse_range(text: str) -> range:
    """Return the addresses of ``START-END`` (END not included) or ``START+SIZE``.

    Addresses are decimal, or hexadecimal after ``0x``; SIZE is read by ``parse_size``. Raises
    ``RangeError`` (EINVAL) when the text is malformed, empty, reversed, or beyond 64 bits.
    """
    match = re.fullmatch(r"([^-+]+)([-+])([^-+]+)", text.strip())
    if match is None:
        raise RangeError(
            errno.EINVAL,
            f"{_shown(text)} is not an address range",
            "write START-END or START+SIZE, such as 0x7f0000000000+2M",
        )
    start = _address(match[1])
    end = _address(match[3]) if match[2] == "-" else start + parse_size(match[3])
    if end > _ADDRESS_LIMIT:
        raise RangeError(errno.EINVAL, f"the range {_shown(text)} goes beyond 64 bits")
    if end < start:
        raise RangeError(errno.EINVAL, f"the range {_shown(text)} is reversed")
    if end == start:
        raise RangeError(errno.EINVAL, f"the range {_shown(text)} is empty")
    return range(start, end)


def _address(text: str) -> int:
    text = text.strip()
    if re.fullmatch("0[xX][0-9a-fA-F]{1,32}", text):
        return int(text, 16)
    if re.fullmatch("[0-9]{1,32}", text):
        return int(text)
    # What /proc/PID/maps prints has no 0x: guessing would read some of it as decimal.
    hexadecimal = re.fullmatch("[0-9a-fA-F]{1,16}", text) is not None
    raise RangeError(
        errno.EINVAL,
        f"{_shown(text)} is not an address",
        f"hexadecimal needs 0x: 0x{text}" if hexadecimal else "write decimal, or hex after 0x",
    )


def _shown(text: str) -> str:
    """Return ``text`` quoted, and cut, so that an error stays one readable line."""
    return repr(text if len(text) <= 40 else text[:37] + "...")

# SPDX-License-Identifier: Apache-2.0
"""Memory policies with a move: bind(), interleave(), migrate_pages().

A policy says where pages go that are touched later; what is there already is moved, with many
threads, and both are looked at afterwards.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import flags, syscalls, sysfs
from .engine import KernelRun, status_table
from .errors import (
    NodeError,
    NotPermittedError,
    PageferryError,
    ProcessGoneError,
    RangeError,
    UnsupportedError,
)
from .locate import locate
from .migrate import move as move_pages
from .nodes import check_node, machine
from .pages import EXTENT, extents_by_size
from .plan import make_plan
from .process import HeldProcess
from .report import Placement
from .survey import Survey
from .target import Target, resolve

if TYPE_CHECKING:
    import numpy.typing as npt

    from .target import Movable

#: The policies of mbind(2), by the names of set_mempolicy(2).
POLICIES = {
    "default": flags.MPOL_DEFAULT,
    "preferred": flags.MPOL_PREFERRED,
    "bind": flags.MPOL_BIND,
    "interleave": flags.MPOL_INTERLEAVE,
    "local": flags.MPOL_LOCAL,
    "preferred-many": flags.MPOL_PREFERRED_MANY,
    "weighted-interleave": flags.MPOL_WEIGHTED_INTERLEAVE,
}
_SPREAD = ("interleave", "weighted-interleave")
_WEIGHTS = "sys/kernel/mm/mempolicy/weighted_interleave"


@dataclass(frozen=True)
class Bound:
    """A policy in force, and where the memory is now. Sizes are bytes."""

    policy: str
    nodes: tuple[int, ...]
    seconds: float
    """For policy and move together."""
    bytes_moved: int
    """By threads of ours; 0 when the kernel moved (several nodes, no interleaving)."""
    bytes_failed: int
    placement: Placement
    """Of what the target covers now."""

    @property
    def bytes_elsewhere(self) -> int:
        """Bytes on none of the nodes; without nodes there is no elsewhere."""
        if not self.nodes:
            return 0
        on = sum(self.placement.on(node) for node in self.nodes)
        return self.placement.bytes_present - on

    @property
    def complete(self) -> bool:
        """Whether every present page is on one of the nodes, and no move failed."""
        return not self.bytes_elsewhere and not self.bytes_failed


@dataclass(frozen=True)
class Migrated:
    """A process after ``migrate_pages``."""

    pid: int
    pairs: tuple[tuple[int, int], ...]
    """Which old node's pages went to which new one, in the kernel's order."""
    not_moved: int
    """Pages that the kernel says would not move (shared ones, without CAP_SYS_NICE)."""
    seconds: float
    placement: Placement


def bind(
    target: Movable,
    nodes: Iterable[int] | int = (),
    *,
    policy: str = "bind",
    move: bool = True,
    threads: int | str = "auto",
    shared: bool = False,
) -> Bound:
    """Set the memory policy of an array, buffer or address range, and move what is there.

    ``policy`` is a name of ``POLICIES``; ``nodes`` the node or nodes that it names (none for
    ``default`` and ``local``). With ``move``, pages that are elsewhere are moved: by many threads
    where the policy names one node or interleaves, else by the kernel, which knows where each
    belongs. ``shared`` as in ``move``. Every page that the target has a byte in is meant.

    Raises ``NodeError``, ``RangeError`` (not all of it is mapped, or it cuts a hugetlb page),
    ``UnsupportedError`` (a policy that this kernel does not have), ``NotPermittedError``. A page
    that will not move raises nothing: see ``Bound.complete``. Rests on mbind(2).
    """
    if policy not in POLICIES:
        raise ValueError(f"policy is one of {', '.join(POLICIES)}, not {policy!r}")
    wanted = _checked_nodes(nodes, policy)
    what = resolve(target)
    begun = time.perf_counter()
    by_kernel = move and len(wanted) > 1 and policy not in _SPREAD
    moving = (flags.MPOL_MF_MOVE_ALL if shared else flags.MPOL_MF_MOVE) if by_kernel else 0
    _set_policy(what, policy, wanted, moving)
    moved, failed = 0, 0
    if move and policy in _SPREAD:
        moved, failed = _spread(what, _pattern(policy, wanted), threads, shared)
    elif move and len(wanted) == 1:
        moved, failed = _gather(what, wanted[0], threads, shared)
    seconds = time.perf_counter() - begun
    placement = locate(target) if what.ranges else Placement(pid=None, nodes={})
    return Bound(policy, wanted, seconds, moved, failed, placement)


def interleave(
    target: Movable,
    nodes: Iterable[int] | int,
    *,
    weighted: bool = False,
    move: bool = True,
    threads: int | str = "auto",
    shared: bool = False,
) -> Bound:
    """Spread an array, buffer or address range over nodes, page by page, now and in future.

    With ``weighted``, in the proportions that the administrator has set
    (/sys/kernel/mm/mempolicy/weighted_interleave, Linux 6.9). mbind(2) moves no page that is on
    one of the nodes already; this puts each page where the policy would have put it. Otherwise
    as ``bind``.
    """
    policy = "weighted-interleave" if weighted else "interleave"
    return bind(target, nodes, policy=policy, move=move, threads=threads, shared=shared)


def migrate_pages(
    pid: int,
    old: Iterable[int] | int,
    new: Iterable[int] | int,
    *,
    threads: int | str = "auto",
) -> Migrated:
    """Move a process's pages from the old nodes to the new ones, mapped as the kernel maps them.

    The first old node goes to the first new one, the second to the second, and so on, round; when
    the sets are not of one size, old nodes that are new ones as well stay (migrate_pages(2)).
    Raises ``NodeError``, ``ProcessGoneError`` and ``NotPermittedError``.
    """
    sources, targets = _node_list(old), _node_list(new)
    for node in targets:
        check_node(node, pid)
    plan = make_plan(machine(), targets[0], {4096: 1 << 30}, threads=threads)
    begun = time.perf_counter()
    try:
        not_moved = syscalls.migrate_pages(
            pid, sources, targets, flags.MPOL_MF_MOVE_MT, threads=plan.threads
        )
    except OSError as error:
        raise _migrate_refusal(error.errno or errno.EIO, pid) from None
    seconds = time.perf_counter() - begun
    where = locate(pid=pid)
    return Migrated(pid, node_pairs(sources, targets), not_moved, seconds, where)


def node_pairs(old: Iterable[int], new: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Return which old node goes to which new one, in the order in which the kernel takes them.

    A pair whose new node is none of the old ones still to be emptied comes first
    (do_migrate_pages in mm/mempolicy.c).
    """
    sources, targets = sorted(set(old)), sorted(set(new))
    mapped = {node: targets[at % len(targets)] for at, node in enumerate(sources)}
    left = [node for node in sources if mapped[node] != node]
    if len(sources) != len(targets):
        left = [node for node in left if node not in targets]
    waiting = set(sources)
    pairs = []
    while left:
        free = [node for node in left if mapped[node] not in waiting]
        node = free[0] if free else left[-1]
        pairs.append((node, mapped[node]))
        left.remove(node)
        waiting.discard(node)
    return tuple(pairs)


def _node_list(nodes: Iterable[int] | int) -> tuple[int, ...]:
    named = [nodes] if isinstance(nodes, (int, np.integer)) else list(nodes)
    for node in named:
        if isinstance(node, bool) or not isinstance(node, (int, np.integer)):
            raise TypeError(f"a node is a number, not {node!r}")
    if not named:
        raise NodeError(errno.EINVAL, "the set of nodes is empty", "name at least one node")
    return tuple(sorted({int(node) for node in named}))


def _checked_nodes(nodes: Iterable[int] | int, policy: str) -> tuple[int, ...]:
    if policy in ("default", "local"):
        if not isinstance(nodes, int) and not list(nodes):
            return ()
        raise NodeError(errno.EINVAL, f"the policy {policy} takes no nodes", "leave them out")
    named = _node_list(nodes)
    for node in named:
        check_node(node, None)
    if policy == "preferred" and len(named) > 1:
        raise NodeError(
            errno.EINVAL, "the policy preferred takes one node", "preferred-many takes several"
        )
    return named


def _set_policy(what: Target, policy: str, nodes: Sequence[int], moving: int) -> None:
    for part in what.ranges:
        try:
            syscalls.mbind(part.start, len(part), POLICIES[policy], nodes, moving)
        except OSError as error:
            raise _refusal(error.errno or errno.EIO, policy, part) from None


def _gather(what: Target, node: int, threads: int | str, shared: bool) -> tuple[int, int]:
    moved = failed = 0
    for part in what.ranges:
        result = move_pages(part, node, threads=threads, shared=shared)
        moved += result.bytes_moved
        failed += result.bytes_failed + result.bytes_skipped
    return moved, failed


def _pattern(policy: str, nodes: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return the nodes that pages go to, one after the other and round."""
    weights = [1] * len(nodes)
    if policy == "weighted-interleave":
        folder = Path("/") / _WEIGHTS
        weights = [sysfs.number(folder / f"node{node}") or 1 for node in nodes]
    return np.repeat(np.array(nodes, np.int64), weights)


def _spread(
    what: Target, pattern: npt.NDArray[np.int64], threads: int | str, shared: bool
) -> tuple[int, int]:
    """Move each page where its index has it: the kernel counts from address 0, in pages."""
    moved = failed = 0
    with HeldProcess(None) as process:
        for window in Survey(what).windows():
            table = status_table(window)
            target = pattern[(table["address"] // table["size"]).astype(np.int64) % len(pattern)]
            single = np.zeros(len(table), EXTENT)
            single["start"], single["pages"] = table["address"], 1
            single["shift"] = np.log2(table["size"]).astype(np.uint32)
            single["kind"] = np.repeat(window["kind"], window["pages"].astype(np.int64))
            for node in np.unique(target).tolist():
                extents = single[target == node]
                run = KernelRun(
                    0, node, total=what.bytes, process=process, shared=shared, exact=True
                )
                sizes = extents_by_size(extents)
                run.follow(make_plan(machine(), node, sizes, threads=threads))
                run.run(extents)
                counts = run.counts()
                moved += counts["bytes_moved"]
                failed += counts["bytes_failed"] + counts["bytes_skipped"]
    return moved, failed


def _refusal(number: int, policy: str, part: range) -> PageferryError:
    where = f"{part.start:#x}-{part.stop:#x}"
    if number == errno.EFAULT:
        hint = "/proc/self/maps lists what is"
        return RangeError(number, f"not all of {where} is mapped", hint)
    if number == errno.EPERM:
        return NotPermittedError(number, "pages of several processes", "shared takes CAP_SYS_NICE")
    if number == errno.EINVAL:
        return UnsupportedError(
            number,
            f"the kernel refuses the policy {policy} for {where}",
            "weighted-interleave is in Linux 6.9, preferred-many in 5.15; a range in hugetlb "
            "pages must begin and end with one",
        )
    return PageferryError(number, f"mbind failed for {where}", "see pageferry doctor")


def _migrate_refusal(number: int, pid: int) -> PageferryError:
    details: dict[int, tuple[type[PageferryError], str, str]] = {
        errno.ESRCH: (ProcessGoneError, "does not exist or has ended", "check the id"),
        errno.EPERM: (NotPermittedError, "may not be moved", "take root, or CAP_SYS_PTRACE"),
        errno.EINVAL: (NodeError, "cannot use those nodes, or has no memory", "see its cpuset"),
    }
    kind, what, hint = details.get(
        number, (PageferryError, "could not be migrated", "see pageferry doctor")
    )
    return kind(number, f"process {pid} {what}", hint)

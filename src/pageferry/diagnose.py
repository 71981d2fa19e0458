# SPDX-License-Identifier: Apache-2.0
"""The checks behind ``pageferry doctor``: what here helps or stops a move, and the cure."""

from __future__ import annotations

import errno
import importlib
import os
import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from . import preload, probe, procfs, switch, syscalls, sysfs
from .console import size
from .errors import PageferryError, errno_name
from .flags import format_nodes
from .switch import read_switch
from .topology import Topology, topology

Verdict = Literal["ok", "info", "warn", "fail"]
_Answer = tuple[Verdict, str, str]  # verdict, finding, cure

_LAB: Final = "`pageferry lab run -- COMMAND` runs it on a two-node machine in QEMU"
_QEMU: Final = {  # machine: (QEMU's name for it, Debian's package)
    "x86_64": ("x86_64", "qemu-system-x86"),
    "aarch64": ("aarch64", "qemu-system-arm"),
    "ppc64le": ("ppc64", "qemu-system-ppc"),
    "riscv64": ("riscv64", "qemu-system-misc"),
    "s390x": ("s390x", "qemu-system-misc"),
}
_TIGHT: Final = 0.05  # share of a node's memory; below it a move soon runs into reclaim
_PRESSED: Final = 10.0  # percent of the last 10 s in which some task waited for memory


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    """``fail`` is only what stops pageferry from moving memory here."""
    finding: str
    cure: str = ""
    """What to do about it, in one sentence; empty when nothing is wrong."""


def diagnose(root: str | os.PathLike[str] = "/", *, fast: bool = False) -> list[Check]:
    """Run all checks, in the order in which a person should read them.

    Files are read below ``root``; system calls are tried on the running kernel. ``fast`` leaves
    out the boot of a guest. A check that cannot be made is a ``warn`` that says so.
    """
    base = Path(root)
    here = topology(base)
    checks: dict[str, Callable[[], _Answer]] = {
        "kernel": partial(_kernel, base),
        "NUMA nodes": partial(_nodes, here),
        "cpuset": partial(_cpuset, here),
        "move_pages": partial(_move_pages, here, base),
        "capabilities": partial(_capabilities, base),
        "seccomp": partial(_seccomp, base),
        "PAGEMAP_SCAN": _pagemap_scan,
        "userfaultfd": partial(_userfaultfd, base),
        "MPOL_MF_MOVE_MT": partial(_switch, base),
        "THP": partial(_thp, base),
        "hugetlb": partial(_hugetlb, here),
        "NUMA balancing": partial(_balancing, base),
        "demotion": partial(_demotion, base),
        "zone reclaim": partial(_zone_reclaim, base),
        "memory": partial(_memory, here, base),
        "QEMU": _qemu,
        "KVM": partial(_kvm, fast),
    }
    return [_made(name, check) for name, check in checks.items()]


def _made(name: str, check: Callable[[], _Answer]) -> Check:
    try:
        return Check(name, *check())
    except Exception as error:  # one broken check must not hide the others
        what = f"{type(error).__name__}: {error}"
        return Check(name, "warn", f"could not be checked: {what}", "please report this")


def _kernel(base: Path) -> _Answer:
    release = sysfs.text(base / "proc/sys/kernel/osrelease") or platform.release()
    return "ok", f"Linux {release} on {platform.machine()}", ""


def _nodes(here: Topology) -> _Answer:
    if not here.numa:
        cure = f"boot a kernel with CONFIG_NUMA, or {_LAB}"
        return "fail", "this kernel has no NUMA: there are no nodes to move between", cure
    nodes = here.memory_nodes
    if len(nodes) < 2:
        return "warn", f"one node with memory ({format_nodes(nodes)}): nowhere to move to", _LAB
    bare = [n.id for n in here.nodes if not n.cpus]
    finding = f"{len(nodes)} nodes with memory: {format_nodes(nodes)}"
    return "ok", finding + (f" (without CPUs: {format_nodes(bare)})" if bare else ""), ""


def _cpuset(here: Topology) -> _Answer:
    finding = (
        f"memory of node {format_nodes(here.target_nodes) or 'none'} "
        f"(of {format_nodes(here.memory_nodes) or 'none'}) and "
        f"{len(here.allowed_cpus)} of {len(here.cpus)} CPUs may be used"
    )
    if len(here.target_nodes) < min(2, len(here.memory_nodes)):
        cure = "let the administrator add nodes to cpuset.mems (docker run --cpuset-mems)"
        return "warn", f"{finding}: own memory cannot leave its node", cure
    if set(here.target_nodes) != set(here.memory_nodes) or len(here.allowed_cpus) < len(here.cpus):
        return "info", finding, "cpuset.mems, cpuset.cpus and taskset decide on this"
    return "ok", "every node and every CPU may be used", ""


def _move_pages(here: Topology, base: Path) -> _Answer:
    answer = probe.move_pages()
    others = [node for node in here.target_nodes if node != answer.source]
    if answer.moved and others:
        answer = probe.move_pages(others[0])
    reason = answer.errno or (-answer.status if answer.status < 0 else 0)
    if reason == errno.ENOSYS:
        cure = f"boot a kernel with CONFIG_NUMA and CONFIG_MIGRATION, or {_LAB}"
        return "fail", "ENOSYS: the system call is not there", cure
    if reason == errno.EPERM:
        by = "a seccomp filter" if procfs.seccomp_mode(proc=base / "proc") else "the kernel"
        cure = "start the container with --cap-add SYS_NICE, or a profile that allows move_pages"
        return "fail", f"EPERM: {by} refuses the call", cure
    if not answer.moved:
        finding = f"a page of this process did not go to node {answer.target}"
        said = errno_name(reason) if reason else f"it is on node {answer.status}"
        return "warn", f"{finding}: {said}", "run it again; if it stays so, please report it"
    if answer.target == answer.source:
        return "ok", f"allowed (tried on a page of node {answer.source})", ""
    return "ok", f"a page went from node {answer.source} to node {answer.target}", ""


def _capabilities(base: Path) -> _Answer:
    held = procfs.capabilities(proc=base / "proc")
    # move_pages asks for PTRACE_MODE_READ, and opening another user's pagemap for DAC_READ_SEARCH;
    # SYS_NICE is for MPOL_MF_MOVE_ALL and migrate_pages.
    wanted = {
        "CAP_SYS_PTRACE": "processes of other users",
        "CAP_DAC_READ_SEARCH": "processes of other users",
        "CAP_SYS_NICE": "pages that processes share",
    }
    missing = [name for name in wanted if name not in held]
    if not missing:
        return "ok", f"{', '.join(wanted)}: also other users' and shared pages", ""
    finding = "; ".join(f"no {name}: cannot move {wanted[name]}" for name in missing)
    flags = " ".join(f"--cap-add {name.removeprefix('CAP_')}" for name in missing)
    return "info", finding, f"use sudo, or {flags} for a container, if you need that"


def _seccomp(base: Path) -> _Answer:
    mode = procfs.seccomp_mode(proc=base / "proc")
    if mode is None:
        return "info", "not known: /proc/self/status does not tell", ""
    if mode == 0:
        return "ok", "no filter", ""
    return "info", "a filter is in force; what it refuses shows in the other checks", ""


def _pagemap_scan() -> _Answer:
    answer = probe.pagemap_scan()
    if answer == 0:
        return "ok", "works: huge pages are told apart quickly", ""
    if answer in (errno.ENOTTY, errno.EINVAL):
        finding = f"{errno_name(answer)}: not in this kernel, surveys take slower ways"
        return "info", finding, "Linux 6.7 has it"
    if answer in (errno.EPERM, errno.EACCES, errno.ENOENT):
        finding = f"{errno_name(answer)}: /proc/self/pagemap is closed, surveys take slower ways"
        return "warn", finding, "let the container or the security module allow it"
    cure = "surveys take other ways; please report this"
    return "warn", f"{errno_name(answer)}: does not answer as documented", cure


def _userfaultfd(base: Path) -> _Answer:
    answer = probe.userfaultfd()
    kernel_faults = answer.kernel_faults or answer.device
    if not kernel_faults and not answer.user_faults:
        finding = f"{errno_name(answer.errno)}: not available, only the kernel engine works"
        if answer.errno == errno.ENOSYS:
            return "info", finding, "a kernel with CONFIG_USERFAULTFD has it"
        return "info", finding, "allow userfaultfd in the container's seccomp profile"
    if not kernel_faults:
        setting = sysfs.number(base / "proc/sys/vm/unprivileged_userfaultfd")
        finding = f"only faults of user code (vm.unprivileged_userfaultfd={setting})"
        cure = "CAP_SYS_PTRACE, access to /dev/userfaultfd, or that sysctl set to 1 opens it"
        return "info", f"{finding}: the user engine refuses", cure
    ways = {"system call": answer.kernel_faults, "/dev/userfaultfd": answer.device}
    finding = "by " + " and ".join(way for way, is_open in ways.items() if is_open)
    features = {"MOVE": probe.UFFD_FEATURE_MOVE, "WP": probe.UFFD_FEATURE_PAGEFAULT_FLAG_WP}
    lacking = [name for name, bit in features.items() if not answer.features & bit]
    if lacking:
        return "info", f"{finding}, without {', '.join(lacking)}", "Linux 6.8 has MOVE and WP"
    return "ok", f"{finding}, with {', '.join(features)}", ""


def _switch(base: Path) -> _Answer:
    """Which calls of programs use several threads: the kernel's doing, or our library's."""
    here = "not known to this kernel"
    if syscalls.kernel_has_mt():
        setting = sysfs.text(base / "proc/sys/vm/mt_page_copy")
        here = f"known to this kernel (vm.mt_page_copy={setting or 'unknown'})"
    try:
        setup = read_switch(base)
        preload.library()
    except PageferryError as error:
        cure = "mend it: programs that `pageferry run` starts go without"
        return "warn", f"{here}; {error.strerror}", cure
    meaning = {
        "never": "0: no call uses several threads",
        "always": "1: every call uses several threads",
        "flag": '"flag": calls that ask for it use several threads',
    }[setup.mode]
    origin = f"/{switch.FILE}" if setup.path else "pageferry run"
    threads = f", {setup.threads}" if setup.threads else ""
    return "ok", f"{here}; {origin}: {meaning}{threads}", ""


def _thp(base: Path) -> _Answer:
    folder = base / "sys/kernel/mm/transparent_hugepage"
    enabled = sysfs.choice(folder / "enabled")
    if enabled is None:
        cure = "a kernel with CONFIG_TRANSPARENT_HUGEPAGE moves large memory faster"
        return "info", "not in this kernel: memory is in base pages", cure
    sizes = sysfs.numbered(folder, "hugepages-", "kB")
    on = {kb: sysfs.choice(path / "enabled") for kb, path in sizes.items()}
    # "inherit" is what the whole says.
    effective = {kb: enabled if value == "inherit" else value for kb, value in on.items()}
    open_sizes = [
        size(kb * 1024) for kb, value in effective.items() if value not in (None, "never")
    ]
    finding = f"{enabled}, defrag {sysfs.choice(folder / 'defrag') or 'unknown'}"
    if sizes:
        finding += f", sizes: {', '.join(open_sizes) or 'none'}"
    if enabled == "never" and not open_sizes:
        cure = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        return "warn", f"{finding}: memory is in base pages, which move slowly", cure
    return "ok", finding, ""


def _hugetlb(here: Topology) -> _Answer:
    pools = []
    short = []
    total = {kb for node in here.nodes for kb, (pages, _) in node.hugepages.items() if pages}
    for node in here.nodes:
        for bytes_each in sorted(total):
            pages, free = node.hugepages.get(bytes_each, (0, 0))
            pools.append(f"node {node.id}: {free} of {pages} × {size(bytes_each)} free")
            if node.has_memory and not free:
                short.append(node.id)
    if not pools:
        return "ok", "no pools", ""
    if short and len(here.memory_nodes) > 1:
        cure = "raise nr_hugepages of the target node: hugetlb pages need a free one there"
        return "info", "; ".join(pools), cure
    return "ok", "; ".join(pools), ""


def _balancing(base: Path) -> _Answer:
    if not procfs.numa_balancing_on(proc=base / "proc"):
        return "ok", "off", ""
    cure = "sysctl kernel.numa_balancing=0, or bind the memory to its node"
    return "warn", "on: the kernel may move pages back", cure


def _demotion(base: Path) -> _Answer:
    if sysfs.text(base / "sys/kernel/mm/numa/demotion_enabled") not in ("true", "1"):
        return "ok", "off", ""
    cure = "echo false > /sys/kernel/mm/numa/demotion_enabled stops that"
    return "info", "on: under pressure the kernel moves cold pages to a slower tier", cure


def _zone_reclaim(base: Path) -> _Answer:
    if not sysfs.number(base / "proc/sys/vm/zone_reclaim_mode"):
        return "ok", "off", ""
    cure = "sysctl vm.zone_reclaim_mode=0"
    return "warn", "on: a node that fills up drops its page cache first, which is slow", cure


def _memory(here: Topology, base: Path) -> _Answer:
    nodes = [node for node in here.nodes if node.has_memory]
    tight = [n.id for n in nodes if n.memory_free < n.memory_total * _TIGHT]
    finding = ", ".join(f"node {n.id}: {size(n.memory_free)} free" for n in nodes)
    pressure = re.search(
        r"^some avg10=(\d+\.\d+)", sysfs.text(base / "proc/pressure/memory") or "", re.M
    )
    if pressure and float(pressure[1]) >= _PRESSED:
        finding += f"; tasks waited for memory in {pressure[1]} % of the last 10 s"
        return "warn", finding, "free memory first: a move needs it on the target node"
    if tight:
        cure = f"free memory on node {format_nodes(tight)} before moving pages there"
        return "warn", finding, cure
    return "ok", finding, ""


def _qemu() -> _Answer:
    name, package = _QEMU.get(platform.machine(), (platform.machine(), "qemu-system"))
    path = shutil.which(f"qemu-system-{name}")
    if path is None:
        cure = f"apt-get install {package}"
        return "warn", f"qemu-system-{name} is not installed: no `pageferry lab`", cure
    return "ok", path, ""


def _kvm(fast: bool) -> _Answer:
    if fast:
        return "info", "not tried (--fast)", ""
    # By name, and late: the lab costs imports that no other check needs.
    answer = importlib.import_module("pageferry.lab").kvm_boots()
    if answer.ok:
        return "ok", "a guest boots", ""
    cure = "enable nested virtualisation, or join the group kvm; the lab emulates until then"
    return "warn", f"no guest boots: {answer.reason}", cure

# SPDX-License-Identifier: Apache-2.0
"""Whether a guest really boots under KVM here; that ``/dev/kvm`` opens does not tell."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from ..cache import write_atomically
from . import programs
from .cache import cache_dir, locked
from .conversation import Conversation
from .errors import LabError
from .kernel import Kernel, cached
from .qemu import Machine, start
from .topology import TOPOLOGIES

_LIMIT = 15.0  # seconds; a guest that boots under KVM takes one or two
_MARK = b"pageferry: the guest is up"
_DEVICE = Path("/dev/kvm")


class KvmVerdict(NamedTuple):
    """Whether guests boot under KVM, and why not (or how that was seen)."""

    ok: bool
    reason: str


def kvm_boots(kernel: Kernel | None = None) -> KvmVerdict:
    """Say whether a guest boots under KVM, by booting one (at most 15 s, remembered).

    Without ``kernel``, the fetched stock kernel or the host's own is booted; nothing is
    downloaded. The answer is kept until the host reboots or QEMU or the kernel changes.
    """
    if not _DEVICE.exists():
        return KvmVerdict(False, "there is no /dev/kvm; load kvm_amd or kvm_intel, or allow "
                          "nested virtualisation")  # fmt: skip
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return KvmVerdict(False, "/dev/kvm may not be opened; join the group kvm")
    kernel = kernel or cached("stock") or _host_kernel()
    if kernel is None:
        return KvmVerdict(False, "not tried: no kernel to boot; run 'pageferry lab fetch'")
    try:
        key = _key(kernel)
        with locked("kvm"):
            verdict = _remembered(key)
            if verdict is None:
                verdict = _boot(kernel)
                text = json.dumps({"key": key, "ok": verdict.ok, "reason": verdict.reason})
                write_atomically(cache_dir() / "kvm.json", text.encode())
        return verdict
    except LabError as error:
        return KvmVerdict(False, f"not tried: {error}")


def _boot(kernel: Kernel) -> KvmVerdict:
    """Boot a small guest under KVM that says it is up and powers off."""
    machine = Machine(kernel, TOPOLOGIES["two-node"], "kvm", 256 << 20, append=["pageferry.probe"])
    begin = time.monotonic()
    with start(machine, ["control"]) as qemu:
        talk = Conversation(qemu, b"", b"\0", {}, lambda data: None)
        talk.run(_LIMIT)
    seconds = time.monotonic() - begin
    if _MARK in talk.console:
        return KvmVerdict(True, f"a guest booted in {seconds:.1f} s")
    if seconds >= _LIMIT:
        return KvmVerdict(False, f"/dev/kvm opens, but a guest hung for {_LIMIT:.0f} s")
    said = talk.failure or "the guest ended during boot"
    return KvmVerdict(False, f"/dev/kvm opens, but a guest does not boot: {said}")


def _host_kernel() -> Kernel | None:
    image = Path(f"/boot/vmlinuz-{platform.release()}")
    return Kernel(image, (), platform.release(), str(image)) if os.access(image, os.R_OK) else None


def _key(kernel: Kernel) -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    version = subprocess.run(
        [programs.find("qemu-system-x86_64"), "--version"], capture_output=True, check=False
    ).stdout
    return hashlib.sha256(boot.encode() + version + kernel.key.encode()).hexdigest()


def _remembered(key: str) -> KvmVerdict | None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        kept = json.loads((cache_dir() / "kvm.json").read_text())
        if kept["key"] == key:
            return KvmVerdict(bool(kept["ok"]), str(kept["reason"]))
    return None

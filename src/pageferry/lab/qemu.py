# SPDX-License-Identifier: Apache-2.0
"""The QEMU process of a guest: its command line, its sockets, its end."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import programs, split
from .initramfs import build_initramfs
from .job import share_tag
from .kernel import Kernel
from .topology import Topology, qemu_arguments

# With erms, an emulated "rep movsb" goes element by element, ten times slower than vectors.
CPU_MODELS = {"kvm": "host", **dict.fromkeys(("tcg", "count", "split"), "max,-erms")}
_ACCELERATORS = {
    "kvm": ["-accel", "kvm"],
    "tcg": ["-accel", "tcg,thread=multi"],
    # The guest's clock goes on by 1 ns with each instruction, of whichever CPU.
    "count": ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"],
    "split": ["-accel", "tcg,thread=multi"],
}
# "oops=panic" makes a bug of the kernel end the run instead of one thread of the command.
_KERNEL_ARGUMENTS = (
    "console=ttyS0",
    "quiet",
    "loglevel=5",
    "panic=-1",
    "oops=panic",
    "init_on_alloc=0",
)


@dataclass(frozen=True)
class Machine:
    """A guest to start. ``memory`` is in bytes per node, ``cpus`` None for the default.

    With ``spans``, a file, QEMU's plugin of ``split`` writes there.
    """

    kernel: Kernel
    topology: Topology
    accel: str
    memory: int = 2 << 30
    cpus: int | None = None
    append: Sequence[str] = ()
    writable: Sequence[Path] = ()
    spans: Path | None = None


@dataclass
class Qemu:
    """A running QEMU and the host's ends of its channels, by name. Use as a context manager:
    leaving it ends the guest at once."""

    process: subprocess.Popen[bytes]
    channels: dict[str, socket.socket] = field(default_factory=dict)

    def __enter__(self) -> Qemu:
        """Return this."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the guest and close its channels."""
        # Nothing in a guest outlives it, so there is nothing to shut down in order.
        self.process.kill()
        self.process.wait()
        for channel in self.channels.values():
            channel.close()
        if self.process.stderr:
            self.process.stderr.close()


def start(machine: Machine, ports: Iterable[str], *, terminal: bool = False) -> Qemu:
    """Start a guest with a virtio port for each name in ``ports``, and a console channel.

    With ``terminal``, a channel of that name is the guest's ``/dev/hvc0``. QEMU dies with
    this process, however that ends. Raises LabError when QEMU or busybox is missing.
    """
    names = ["console", *ports, *(["terminal"] if terminal else [])]
    # setpriv: the kernel kills QEMU when this process dies, also by kill -9.
    command = [programs.find("setpriv"), "--pdeathsig", "KILL", programs.find("qemu-system-x86_64")]
    command += _arguments(machine)
    with contextlib.ExitStack() as stack:
        ours: dict[str, socket.socket] = {}
        theirs: list[int] = []
        for name in names:
            near, far = socket.socketpair()
            stack.enter_context(far)
            ours[name] = near
            theirs.append(far.fileno())
            command += ["-chardev", f"socket,id={name},fd={far.fileno()}"]
            if name == "console":
                command += ["-serial", "chardev:console", "-device", "virtio-serial-pci"]
            elif name == "terminal":
                command += ["-device", f"virtconsole,chardev={name}"]
            else:
                command += ["-device", f"virtserialport,chardev={name},name=pageferry.{name}"]
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=theirs,
                # Ctrl-C is for this process, which then ends QEMU.
                start_new_session=True,
            )
        except BaseException:
            for channel in ours.values():
                channel.close()
            raise
    return Qemu(process, ours)


def _arguments(machine: Machine) -> list[str]:
    """Return QEMU's arguments but for the channels."""
    shape, needed = qemu_arguments(
        machine.topology,
        memory=machine.memory,
        cpus=machine.cpus,
        cpu_model=CPU_MODELS[machine.accel],
    )
    arguments = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    arguments += [*_ACCELERATORS[machine.accel], *shape]
    if machine.spans:
        output = os.fspath(machine.spans).replace(",", ",,")
        arguments += ["-plugin", f"file={split.plugin()},output={output}"]
    arguments += ["-kernel", str(machine.kernel.image)]
    arguments += ["-initrd", str(build_initramfs(machine.kernel))]
    arguments += ["-append", " ".join([*_KERNEL_ARGUMENTS, *needed, *machine.append])]
    arguments += _share("host", Path("/"), readonly=True)
    for number, directory in enumerate(machine.writable):
        arguments += _share(share_tag(number), directory, readonly=False)
    return arguments


def _share(tag: str, directory: Path, *, readonly: bool) -> list[str]:
    """Return the arguments for a directory shared over 9p."""
    path = os.fspath(directory).replace(",", ",,")
    backend = f"local,id={tag},path={path},security_model=none,multidevs=remap"
    if readonly:
        backend += ",readonly=on"
    return ["-fsdev", backend, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]

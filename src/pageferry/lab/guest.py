# SPDX-License-Identifier: Apache-2.0
"""Run a command in a guest, with its output captured or passed on, or open a shell in one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TypedDict, Unpack

from .cache import cache_dir, scratch_dir
from .conversation import Conversation, Sink
from .errors import LabError
from .job import guest_environment, job_script, message
from .kernel import Kernel, find_kernel
from .kvm import kvm_boots
from .qemu import CPU_MODELS, Machine, Qemu, start
from .result import LAB_FAILED, GuestResult, Verdict
from .split import read_spans
from .terminal import RawTerminal, detach_on
from .topology import TOPOLOGIES, Topology, deal_cpus, parse_size

_LOGS_KEPT = 20
Argument = str | bytes | os.PathLike[str]


class Options(TypedDict, total=False):
    """The keyword arguments that ``run`` and ``shell`` have in common; see ``run``."""

    topology: Topology
    memory: int | str
    cpus: int | None
    kernel: str | Kernel
    accel: str
    append: str | Sequence[str]
    env: Mapping[str, str]
    cwd: Path | None
    writable: Sequence[Path]
    console: Path | None
    notify: Callable[[str], None] | None


def run(
    command: Sequence[Argument],
    *,
    timeout: float | None = 600,
    stdout: BinaryIO | None = None,
    stderr: BinaryIO | None = None,
    **options: Unpack[Options],
) -> GuestResult:
    """Boot a guest, run ``command`` in it as root, and return how that ended.

    The guest sees the host's files as they are, writes to a layer of its own that vanishes with it,
    and has no network. Options: ``topology`` of the machine, ``memory`` of each node (bytes, or
    "2G"), ``cpus`` in all, ``kernel`` (a name or path for find_kernel, or a Kernel), ``accel``
    (auto, kvm, tcg; count: a guest whose clock counts instructions; split: see ``lab.split``),
    ``append`` to the kernel's command line, ``env`` in addition to what is carried over from the
    host, ``cwd``, ``writable`` host directories where what is written stays, ``console`` a file for
    the guest's console, ``notify`` for a line about what takes long.

    Output goes to ``stdout`` and ``stderr`` as it comes, or into the result without them.
    The guest is ended after ``timeout`` seconds. A guest that panics, hangs or ends early is
    not an exception but a verdict of the result. Raises LabError when no guest can be
    started: a program, kernel or directory is missing, or an option makes no sense.
    """
    captured = {"stdout": bytearray(), "stderr": bytearray()}
    sinks = {
        "stdout": _writer(stdout) if stdout else captured["stdout"].extend,
        "stderr": _writer(stderr) if stderr else captured["stderr"].extend,
    }
    prepared = _Prepared(command, options)
    with (
        _console_file(prepared.console_path) as console,
        prepared.spans(),
        prepared.start(["control", *sinks]) as qemu,
    ):
        return prepared.finish(
            Conversation(qemu, prepared.message(None), prepared.mark, sinks, console.hear),
            lambda talk: talk.run(timeout),
            captured,
        )


def shell(
    command: Sequence[Argument] = (),
    *,
    timeout: float | None = None,
    **options: Unpack[Options],
) -> GuestResult:
    """Boot a guest and connect this terminal to a shell, or ``command``, in it.

    Ctrl-] ends the guest. The rest is as for ``run``; nothing is captured.
    """
    command = command or [os.environ.get("SHELL") or "/bin/sh"]
    prepared = _Prepared(command, options)
    with (
        _console_file(prepared.console_path) as console,
        prepared.start(["control"], terminal=True) as qemu,
        RawTerminal() as terminal,
    ):
        talk = Conversation(
            qemu,
            prepared.message(terminal.size()),
            prepared.mark,
            {"terminal": terminal.write},
            console.hear,
        )
        terminal.on_resize(lambda size: talk.send("control", size))
        keys = detach_on(talk.stop, lambda data: talk.send("terminal", data))
        return prepared.finish(talk, lambda talk: talk.run(timeout, (terminal.stdin, keys)), {})


class _ConsoleFile:
    """The file that gets the console as it comes, if one was asked for."""

    def __init__(self, path: Path | None, file: BinaryIO | None) -> None:
        self.path = path
        self._file = file

    def hear(self, data: bytes) -> None:
        if self._file:
            self._file.write(data)

    def __enter__(self) -> _ConsoleFile:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file:
            self._file.close()


def _console_file(path: Path | None) -> _ConsoleFile:
    if path is None:
        return _ConsoleFile(None, None)
    try:
        return _ConsoleFile(path, open(path, "wb", buffering=0))
    except OSError as error:
        raise LabError(error.errno or errno.EIO, f"cannot write the console to {path}") from error


class _Prepared:
    """A command and its machine, checked and ready to start."""

    def __init__(self, command: Sequence[Argument], options: Options) -> None:
        if not command:
            raise LabError(errno.EINVAL, "no command to run in the guest")
        if any(b"\0" in os.fsencode(word) for word in command):
            raise LabError(errno.EINVAL, "an argument of the command holds a NUL byte")
        accel = options.get("accel", "auto")
        if accel not in ("auto", *CPU_MODELS):
            raise LabError(errno.EINVAL, f"no accelerator {accel!r}: auto, {', '.join(CPU_MODELS)}")
        memory = options.get("memory", "2G")
        topology = options.get("topology", TOPOLOGIES["two-node"])
        cpus = options.get("cpus")
        deal_cpus(topology, cpus)  # raises for a number that makes no sense
        writable = [_directory(path, "writable directory") for path in options.get("writable", ())]
        cwd = _directory(options.get("cwd") or Path.cwd(), "working directory")
        kernel = options.get("kernel", "stock")
        if isinstance(kernel, str):
            kernel = find_kernel(kernel, notify=options.get("notify"))
        if accel == "auto":
            accel = "kvm" if kvm_boots().ok else "tcg"
        append = options.get("append", ())
        self.machine = Machine(
            kernel,
            topology,
            accel,
            parse_size(memory) if isinstance(memory, str) else memory,
            cpus,
            [append] if isinstance(append, str) else append,
            writable,
        )
        self.console_path = options.get("console")
        self.mark = secrets.token_hex(16).encode()
        self._job = job_script(command, guest_environment(options.get("env", {}), accel), cwd)
        self._begin = 0.0

    def message(self, terminal: os.terminal_size | None) -> bytes:
        return message(
            self._job,
            token=self.mark.decode(),
            writable=self.machine.writable,
            terminal=terminal,
        )

    @contextlib.contextmanager
    def spans(self) -> Iterator[None]:
        """Have a file for the plugin's output, where it was asked for."""
        if self.machine.accel != "split":
            yield
            return
        with scratch_dir() as scratch:
            self.machine = replace(self.machine, spans=scratch / "spans")
            yield

    def start(self, ports: Sequence[str], *, terminal: bool = False) -> Qemu:
        self._begin = time.monotonic()
        return start(self.machine, ports, terminal=terminal)

    def finish(
        self,
        talk: Conversation,
        converse: Callable[[Conversation], Verdict],
        captured: Mapping[str, bytearray],
    ) -> GuestResult:
        verdict = converse(talk)
        end = time.monotonic()
        finished = verdict is Verdict.FINISHED and talk.exit_code is not None
        kernel = self.machine.kernel
        console = talk.console.decode(errors="replace").replace("\r\n", "\n")
        path = self.console_path
        if not finished and verdict is not Verdict.DETACHED and path is None:
            path = _keep_console(bytes(talk.console))
        return GuestResult(
            verdict=verdict,
            returncode=talk.exit_code if finished and talk.exit_code is not None else LAB_FAILED,
            stdout=bytes(captured.get("stdout", b"")),
            stderr=bytes(captured.get("stderr", b"")),
            seconds=end - self._begin,
            boot_seconds=talk.started_at - self._begin if talk.started_at else None,
            accel=self.machine.accel,
            kernel=kernel.release or kernel.source,
            topology=self.machine.topology.name,
            console=console,
            console_path=path,
            spans=read_spans(self.machine.spans) if self.machine.spans else (),
            detail=talk.failure,
        )


def _writer(stream: BinaryIO) -> Sink:
    def write(data: bytes) -> None:
        stream.write(data)
        stream.flush()

    return write


def _directory(path: Path, what: str) -> Path:
    path = Path(path).absolute()
    if not path.is_dir():
        raise LabError(errno.ENOTDIR, f"the {what} {path} is not a directory")
    return path


def _keep_console(text: bytes) -> Path | None:
    """Store a console that may explain a failure; keep the last few of them."""
    if not text:
        return None
    directory = cache_dir() / "logs"
    directory.mkdir(exist_ok=True)
    path = directory / f"console-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}.log"
    path.write_bytes(text)
    for old in sorted(directory.glob("console-*.log"))[:-_LOGS_KEPT]:
        old.unlink(missing_ok=True)
    return path

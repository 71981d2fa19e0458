# SPDX-License-Identifier: Apache-2.0
"""Host and guest talk: the job goes in, output comes out, until the guest has ended."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import IO

from .qemu import Qemu
from .result import Verdict

Sink = Callable[[bytes], object]

_PANIC = b"Kernel panic - not syncing"
_PANIC_GRACE = 3.0  # seconds that a panicking guest gets to print its trace and reboot
_CONSOLE_KEPT = 4 << 20  # bytes; a guest that prints without end must not fill our memory


class MarkedStream:
    """Passes a stream on up to the mark that ends it, without holding back what cannot be it."""

    def __init__(self, mark: bytes, sink: Sink) -> None:
        self._mark = mark
        self._sink = sink
        self._held = b""
        self.ended = False

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        if self.ended:
            return
        data = self._held + data
        before, mark, _ = data.partition(self._mark)
        keep = 0
        if mark:
            self.ended = True
        else:
            longest = min(len(data), len(self._mark) - 1)
            keep = next((n for n in range(longest, 0, -1) if self._mark.startswith(data[-n:])), 0)
            before = data[: len(data) - keep]
        self._held = data[len(data) - keep :]
        if before:
            self._sink(before)

    def give_up(self) -> None:
        """Pass on what was held back: no more will come."""
        if self._held and not self.ended:
            self._sink(self._held)
        self._held = b""


class Conversation:
    """Carries one job through a guest. After ``run`` the attributes say what happened."""

    def __init__(
        self, qemu: Qemu, message: bytes, mark: bytes, sinks: Mapping[str, Sink], console: Sink
    ) -> None:
        """``sinks`` has a consumer for the channel of each output stream, by name."""
        self.exit_code: int | None = None
        self.failure = ""
        self.console = bytearray()
        self.qemu_errors = bytearray()
        self.started_at: float | None = None
        self.panicked = False
        self._qemu = qemu
        self._console_sink = console
        self._control = b""
        self._streams = {name: MarkedStream(mark, sink) for name, sink in sinks.items()}
        self._outgoing: dict[str, bytearray] = {"control": bytearray(message)}
        self._selector = selectors.DefaultSelector()
        self._deadline: float | None = None
        self._stopped = False

    def send(self, channel: str, data: bytes) -> None:
        """Send bytes to the guest as soon as it takes them."""
        self._outgoing.setdefault(channel, bytearray()).extend(data)

    def stop(self) -> None:
        """Make ``run`` return, as if the guest had ended."""
        self._stopped = True

    def run(self, timeout: float | None, source: tuple[int, Sink] | None = None) -> Verdict:
        """Talk until the guest has ended or ``timeout`` seconds are over; return how it ended.

        ``source`` is a file descriptor to read from meanwhile, and what takes its bytes (an
        empty piece at its end).
        """
        self._deadline = None if timeout is None else time.monotonic() + timeout
        with self._selector as selector:
            for name, channel in self._qemu.channels.items():
                channel.setblocking(False)
                selector.register(channel, selectors.EVENT_READ, name)
            errors: IO[bytes] | None = self._qemu.process.stderr
            assert errors is not None
            os.set_blocking(errors.fileno(), False)
            selector.register(errors, selectors.EVENT_READ, "qemu")
            if source is not None:
                selector.register(source[0], selectors.EVENT_READ, "source")
            guest = len(self._qemu.channels) + 1
            while guest and not self._all_said():
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    break
                for key, events in selector.select(self._wait()):
                    if key.data == "source" and source is not None:
                        piece = os.read(source[0], 65536)
                        if not piece:
                            selector.unregister(source[0])
                        source[1](piece)
                    elif not self._serve(key, events):
                        selector.unregister(key.fileobj)
                        guest -= 1
                self._watch_for_room()
        for stream in self._streams.values():
            stream.give_up()
        return self._verdict(guest == 0)

    def _all_said(self) -> bool:
        if self.failure or self._stopped:
            return True
        return self.exit_code is not None and all(s.ended for s in self._streams.values())

    def _wait(self) -> float:
        left = 0.25 if self._deadline is None else self._deadline - time.monotonic()
        return max(0.0, min(0.25, left))

    def _watch_for_room(self) -> None:
        """Ask to be told when a channel with something to send can take it, and only then."""
        registered = {key.data: key for key in self._selector.get_map().values()}
        for name, pending in self._outgoing.items():
            if key := registered.get(name):
                writing = selectors.EVENT_WRITE if pending else 0
                wanted = selectors.EVENT_READ | writing
                if key.events != wanted:
                    self._selector.modify(key.fileobj, wanted, name)

    def _serve(self, key: selectors.SelectorKey, events: int) -> bool:
        """Read from or write to a channel of the guest; return False at its end."""
        name = key.data
        try:
            if events & selectors.EVENT_WRITE and isinstance(key.fileobj, socket.socket):
                pending = self._outgoing[name]
                del pending[: key.fileobj.send(pending)]
            if not events & selectors.EVENT_READ:
                return True
            data = os.read(key.fd, 65536)
        except BlockingIOError:
            return True
        except OSError:  # reset: QEMU went away with something unread
            return False
        if name == "console":
            self._hear_console(data)
        elif name == "qemu":
            self.qemu_errors += data
        elif name == "control":
            self._hear_control(data)
        else:
            self._streams[name].feed(data)
        return bool(data)

    def _hear_console(self, data: bytes) -> None:
        self._console_sink(data)
        self.console += data
        if not self.panicked and _PANIC in self.console[-len(data) - len(_PANIC) :]:
            self.panicked = True
            end = time.monotonic() + _PANIC_GRACE
            self._deadline = end if self._deadline is None else min(self._deadline, end)
        if len(self.console) > _CONSOLE_KEPT:
            del self.console[: _CONSOLE_KEPT // 2]

    def _hear_control(self, data: bytes) -> None:
        *lines, self._control = (self._control + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            if word == "started":
                self.started_at = time.monotonic()
            elif word == "failed":
                self.failure = rest
            elif word == "exit":
                self.exit_code = int(rest)

    def _verdict(self, guest_is_gone: bool) -> Verdict:
        if self.exit_code is not None and all(s.ended for s in self._streams.values()):
            return Verdict.FINISHED
        if self.panicked:
            return Verdict.PANIC
        if self.failure:
            return Verdict.SETUP_FAILED
        if not guest_is_gone:
            return Verdict.DETACHED if self._stopped else Verdict.TIMEOUT
        code = self._qemu.process.wait()
        if code:
            # What QEMU complained about comes last, after warnings.
            said = self.qemu_errors.decode(errors="replace").strip().splitlines()[-3:]
            how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            self.failure = " ".join([*said, f"({how})"])
            return Verdict.QEMU_FAILED
        return Verdict.NO_EXIT_CODE

# SPDX-License-Identifier: Apache-2.0
"""Moves seen and steered from outside: each ``pageferry move`` listens on a socket of its own.

The socket is in Linux's abstract namespace, ``@pageferry/move/PID``: it leaves no file behind,
also not when the move is killed, and is seen in the same network namespace. Root and the user of
the move may ask; both sides look at who the other is (SO_PEERCRED). A request and its answer are
one line of JSON each. See unix(7).
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import logs, sysfs
from .console import size
from .errors import NotPermittedError, PageferryError, ProcessGoneError

if TYPE_CHECKING:
    from .control import MoveControl
    from .engine import Progress

_logger = logging.getLogger(__name__)

_NAME = re.compile(r"@pageferry/move/(\d{1,10})$", re.MULTILINE)
_LONGEST = 1 << 16  # bytes of a line
_PATIENCE_S = 2.0
_AGAIN_S = 0.1
_CREDENTIALS = struct.Struct("3i")


class Steerable:
    """Lets others see and steer a move of this process while the context lasts.

    ``pids`` are the processes that are moved, ``control`` is the move's. Where no socket is to be
    had, the move goes on without.
    """

    def __init__(self, control: MoveControl, node: int, pids: Sequence[int]) -> None:
        self._control = control
        self._about = {"pid": os.getpid(), "node": node, "moving": list(pids)}
        self._progress: Progress | None = None
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, name="pageferry-steer", daemon=True)

    def note(self, now: Progress) -> None:
        """Keep how far the move is, for whoever asks."""
        self._progress = now

    def __enter__(self) -> Steerable:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listening.bind(_address(os.getpid()))
            listening.listen(8)
        except OSError as error:
            listening.close()
            logs.event(_logger, logging.INFO, f"this move cannot be steered: {error}")
            return self
        self._socket = listening
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
            self._thread.join()
            self._socket.close()

    def _serve(self) -> None:
        # Signals are for the thread that moves.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        assert self._socket is not None
        while True:
            try:
                other, _ = self._socket.accept()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED):
                    return
                time.sleep(_AGAIN_S)  # whoever asks is still there: at once would take a CPU
                continue
            with other, suppress(OSError, ValueError):
                _send(other, self._answer(other))

    def _answer(self, other: socket.socket) -> dict[str, Any]:
        try:
            request = _received(other)
            _, user, _ = _peer(other)
            if user not in (0, os.geteuid()):
                return {"error": "EPERM", "message": "this move is another user's"}
            self._obey(request)
        except ValueError as error:
            return {"error": "EINVAL", "message": str(error)}
        return self.as_dict()

    def _obey(self, request: dict[str, Any]) -> None:
        unknown = set(request) - {"max_gbps", "paused"}
        if unknown:
            raise ValueError(f"there is no {', '.join(sorted(unknown))} to be set")
        if "max_gbps" in request:
            self._control.max_gbps = request["max_gbps"]
        if "paused" in request:
            if request["paused"]:
                self._control.pause()
            else:
                self._control.resume()
        if request:
            logs.event(_logger, logging.INFO, "steered from outside", **request)

    def as_dict(self) -> dict[str, Any]:
        """Return what the move is doing, for JSON."""
        value: dict[str, Any] = {
            **self._about,
            "max_gbps": self._control.max_gbps,
            "paused": self._control.paused,
        }
        now = self._progress
        if now is not None:
            left = now.seconds_left
            value |= {
                "bytes_done": now.bytes_done,
                "bytes_moved": now.bytes_moved,
                "bytes_failed": now.bytes_failed,
                "bytes_total": now.bytes_total,
                "seconds": round(now.seconds, 3),
                "gbps": round(now.gbps, 4),
                "seconds_left": None if left == float("inf") else round(left, 1),
            }
        return value


def steer(pid: int, **request: Any) -> dict[str, Any]:
    """Change ``max_gbps`` or ``paused`` of the move that process ``pid`` makes; say how it is.

    Without changes it only says. Raises ``ProcessGoneError`` where no move is to be asked,
    ``NotPermittedError`` for another user's, ``PageferryError`` for values that make no sense.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asked:
        asked.settimeout(_PATIENCE_S)
        try:
            asked.connect(_address(pid))
            peer, user, _ = _peer(asked)
            if peer != pid or (os.geteuid() != 0 and user not in (0, os.geteuid())):
                raise NotPermittedError(
                    errno.EPERM, f"the move of process {pid} is another user's", "ask as that user"
                )
            _send(asked, request)
            answer = _received(asked)
        except PageferryError:
            raise
        except (OSError, ValueError) as error:
            raise ProcessGoneError(
                errno.ESRCH,
                f"process {pid} makes no move that can be steered ({error})",
                "pageferry steer lists the moves in progress",
            ) from None
    if answer.get("error") == "EPERM":
        raise NotPermittedError(errno.EPERM, str(answer.get("message")), "ask as that user or root")
    if "error" in answer:
        raise PageferryError(errno.EINVAL, str(answer.get("message")))
    return answer


def moves() -> list[dict[str, Any]]:
    """Return what the moves in progress are doing, those that this user may ask, by process id."""
    names = set(_NAME.findall(sysfs.text(Path("/proc/net/unix")) or ""))
    found = []
    for pid in sorted(map(int, names)):
        with suppress(PageferryError):
            found.append(steer(pid))
    return found


def processes(move: dict[str, Any]) -> str:
    """Name the processes that are moved, the first of them."""
    first = [str(pid) for pid in move["moving"][:3]]
    more = len(move["moving"]) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def told(move: dict[str, Any]) -> list[str]:
    """Return how far a move is: share, bytes moved, rate, seconds left."""
    if "bytes_done" not in move:
        return ["", "", "", ""]
    total, left = move["bytes_total"], move["seconds_left"]
    return [
        f"{move['bytes_done'] / total:.0%}" if total else "",
        size(move["bytes_moved"]),
        f"{move['gbps']:.2f}",
        "" if left is None else f"{left:.0f} s",
    ]


def _address(pid: int) -> str:
    return f"\0pageferry/move/{pid}"


def _peer(other: socket.socket) -> tuple[int, int, int]:
    """Return process, user and group of the other side."""
    data = other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user, group = _CREDENTIALS.unpack(data)
    return pid, user, group


def _send(other: socket.socket, value: dict[str, Any]) -> None:
    other.sendall(json.dumps(value).encode() + b"\n")


def _received(other: socket.socket) -> dict[str, Any]:
    """Return the line that comes. Raises ``ValueError`` for anything but an object of JSON."""
    data = b""
    end = time.monotonic() + _PATIENCE_S  # for all of it, or one byte now and then would do
    while not data.endswith(b"\n"):
        other.settimeout(max(end - time.monotonic(), 1e-3))
        part = other.recv(_LONGEST)
        data += part
        if not part or len(data) > _LONGEST:
            raise ValueError("no line of JSON came")
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("no object of JSON came")
    return value

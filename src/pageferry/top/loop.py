# SPDX-License-Identifier: Apache-2.0
"""The loop of ``pageferry top``: look, draw, wait for a key; and leave the terminal clean."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from rich.live import Live
from rich.text import Text

from ..console import Console
from ..errors import PageferryError
from ..nodes import check_node
from ..scan import ProcessStat
from .keys import Terminal
from .mover import Mover
from .view import KEYS, screen
from .watch import Watch

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


class Top:
    """The live view, until a key or a signal ends it."""

    def __init__(self, watch: Watch, out: Console, interval: float) -> None:
        self._watch = watch
        self._out = out
        self._interval = interval
        self._sample = watch.look(self._budget)
        self._next = time.monotonic() + interval
        self._chosen: int | None = None
        self._asked: ProcessStat | None = None  # the process that is about to be moved
        self._node = ""  # as typed so far
        self._confirm = False
        self._note = ""
        self._mover: Mover | None = None
        self._ended = 0  # the signal that ended it, or -1 for a key
        self._suspend = False

    @property
    def _budget(self) -> float:
        return self._interval / 10

    def run(self) -> int:
        """Run; return the signal that ended it, or 0."""
        signals = (*_ENDING, signal.SIGTSTP)
        before = {number: signal.signal(number, self._signal) for number in signals}
        try:
            with (
                Terminal() as terminal,
                Live(console=self._out, screen=True, auto_refresh=False, transient=True) as live,
            ):
                while not self._ended:
                    self._draw(live)
                    # While a move runs its progress is shown more often than the machine.
                    pause = self._next - time.monotonic()
                    moving = self._mover is not None and self._mover.running
                    try:
                        keys = terminal.wait(min(pause, 0.2) if moving else pause)
                    except (EOFError, OSError):
                        break  # the terminal is gone
                    for key in keys:
                        self._press(key)
                    if self._suspend:
                        self._stop(terminal, live)
                    if time.monotonic() >= self._next:
                        self._sample = self._watch.look(self._budget)
                        self._next = time.monotonic() + self._interval
        finally:
            if self._mover is not None:
                self._mover.end()
                self._mover.join()
            for number, handler in before.items():
                signal.signal(number, handler)
        return max(self._ended, 0)

    def _signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTSTP:
            self._suspend = True
        else:
            self._ended = number

    def _stop(self, terminal: Terminal, live: Live) -> None:
        """Stop, as Ctrl-Z asks, with the shell's screen; go on when continued."""
        self._suspend = False
        live.stop()
        terminal.give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        terminal.take()
        live.start()

    def _draw(self, live: Live) -> None:
        width, height = self._out.size
        live.update(
            screen(
                self._sample,
                sort=self._watch.sort,
                chosen=self._chosen,
                foot=self._foot(),
                width=width,
                height=height,
            ),
            refresh=True,
        )

    def _foot(self) -> Text:
        if self._asked is not None:
            what = f"{self._asked.name} ({self._asked.pid})"
            if self._confirm:
                return Text(f"move {what} to node {self._node}? y/n", "bold")
            return Text(f"move {what} to node: {self._node}█   (Enter, or Esc)", "bold")
        if self._mover is not None and self._mover.running:
            return Text(f"{self._mover}   (c cancels)", "bold")
        told = self._note or (str(self._mover) if self._mover else "")
        return Text(f"{told}   {KEYS}" if told else KEYS, "dim")

    def _press(self, key: str) -> None:
        if self._asked is not None:
            self._answer(key)
            return
        self._note = ""
        if key == "q":
            self._ended = -1
        elif key in ("up", "k"):
            self._choose(-1)
        elif key in ("down", "j"):
            self._choose(1)
        elif key in ("page up", "page down"):
            self._choose(10 if key.endswith("down") else -10)
        elif key == "s":
            self._sample = self._watch.sort_next(self._sample)
        elif key == "c" and self._mover is not None:
            self._mover.end()
        elif key in ("m", "enter"):
            self._ask()

    def _choose(self, step: int) -> None:
        pids = [process.pid for process in self._sample.processes]
        if pids:
            place = pids.index(self._chosen) + step if self._chosen in pids else 0
            self._chosen = pids[max(min(place, len(pids) - 1), 0)]

    def _ask(self) -> None:
        if self._mover is not None and self._mover.running:
            self._note = "one move at a time"
            return
        chosen = [p for p in self._sample.processes if p.pid == self._chosen]
        if not chosen:
            self._note = "choose a process first"
            return
        self._asked, self._node, self._confirm = chosen[0], "", False

    def _answer(self, key: str) -> None:
        assert self._asked is not None
        if key == "escape" or (self._confirm and key != "y"):
            self._asked = None
            self._note = "not moved"
        elif self._confirm:
            self._mover = Mover(self._asked.pid, self._asked.name, int(self._node))
            self._asked = None
        elif key == "backspace":
            self._node = self._node[:-1]
        elif key in "0123456789" and len(self._node) < 4:
            self._node += key
        elif key == "enter" and self._node:
            try:
                check_node(int(self._node), self._asked.pid)
                self._confirm = True
            except PageferryError as error:
                self._asked = None
                self._note = str(error)

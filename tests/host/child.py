# SPDX-License-Identifier: Apache-2.0
"""Run a function in a forked child: for what a process cannot undo (a filter, another user)."""

from __future__ import annotations

import os
from collections.abc import Callable


def in_a_child(what: Callable[[], str]) -> str:
    """Return what ``what`` returns in a forked child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = what()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read().decode()
    os.waitpid(pid, 0)
    return answer

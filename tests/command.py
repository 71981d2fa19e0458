# SPDX-License-Identifier: Apache-2.0
"""The ``pageferry`` command in this process: a new one takes seconds under emulation."""

from __future__ import annotations

import contextlib
import io
import subprocess

from pageferry import cli


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it; what it printed and its exit code are in what is returned."""
    words = list(map(str, arguments))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())

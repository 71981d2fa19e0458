# SPDX-License-Identifier: Apache-2.0
"""The code blocks of the documentation, and running them as a reader would.

Blocks of ``python`` and ``sh`` of one page run in order, all of a language in one interpreter. A
comment on the line before a block says more: ``<!-- two nodes -->``, it runs in a guest that has
them; ``<!-- with a Dask client -->``, tests/host/test_dask.py runs it; ``<!-- not run: why -->``.
``<!-- check: expression -->`` after a block is true then.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pageferry import cli

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted([DOCS / "tutorial.md", DOCS / "cluster.md", *(DOCS / "howto").glob("*.md")])
TWO_NODES = "two nodes"
DASK = "with a Dask client"
_COMMENT = re.compile(r"<!-- (.+) -->$")
_FENCE = re.compile(r"```(\w+)$")

# What stands for the command in a shell block: it hands its words to this process.
_COMMAND = """#!/bin/sh
printf '%s\\n' "$@" > "$FERRY/words"
cat "$FERRY/output"
read -r code < "$FERRY/code"
exit "$code"
"""


@dataclass(frozen=True)
class Block:
    """A code block, or a check (``language`` is ``check``), and the line that it begins on."""

    page: Path
    line: int
    language: str
    text: str
    mark: str = ""


def blocks(page: Path) -> Iterator[Block]:
    """Yield what can be run of a page, in order; blocks that are not run are told by their mark."""
    lines = iter(enumerate(page.read_text().splitlines(), 1))
    comment, two_nodes = "", ""
    for number, line in lines:
        fence = _FENCE.match(line)
        if fence:
            code = []
            for _, inner in lines:
                if inner == "```":
                    break
                code.append(inner)
            else:
                raise ValueError(f"{page}:{number}: this block has no end")
            two_nodes = comment if comment == TWO_NODES else ""
            yield Block(page, number, fence.group(1), "\n".join(code) + "\n", comment)
        found = _COMMENT.match(line)
        comment = found.group(1) if found else ""
        if comment.startswith("check: "):
            yield Block(page, number, "check", comment.removeprefix("check: "), two_nodes)


def run_python(page: Path, mark: str, **given: object) -> int:
    """Run the Python blocks with this mark, and their checks. Returns the number of blocks.

    They find the names that are ``given``.
    """
    names = {"__name__": "__main__"} | given
    count = 0
    for block in blocks(page):
        if block.mark != mark or block.language not in ("python", "check"):
            continue
        place = "\n" * (block.line if block.language == "python" else block.line - 1)
        if block.language == "check":
            assert eval(place.strip() + block.text, names), f"{page.name}:{block.line}"
        else:
            exec(compile(place + block.text, str(page), "exec"), names)
            count += 1
    return count


def run_shell(page: Path, mark: str, folder: Path, **variables: str) -> int:
    """Run the shell blocks with this mark as one script. Returns the number of blocks.

    ``pageferry`` is this process: to start Python for each would take most of the time.
    """
    chosen = [block for block in blocks(page) if block.language == "sh" and block.mark == mark]
    if not chosen:
        return 0
    script = "".join(f"# line {block.line}\n{block.text}" for block in chosen)
    with _command(folder) as path:
        done = subprocess.run(
            ["sh", "-eux", "-c", script],
            cwd=folder,
            env=os.environ | variables | {"PATH": path, "FERRY": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, f"{page.name}:\n{done.stdout}"
    return len(chosen)


@contextmanager
def _command(folder: Path) -> Iterator[str]:
    """Answer calls of a ``pageferry`` that is first on the path which this gives."""
    bin = folder / "bin"
    bin.mkdir()
    (bin / "pageferry").write_text(_COMMAND)
    (bin / "pageferry").chmod(0o755)
    for name in ("words", "output", "code"):
        os.mkfifo(folder / name)

    def serve() -> None:
        while words := (folder / "words").read_text().splitlines():
            text = io.StringIO()
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                try:
                    code = cli.main(words)
                except SystemExit as end:
                    code = end.code if isinstance(end.code, int) else 1
            (folder / "output").write_text(text.getvalue())
            (folder / "code").write_text(f"{code}\n")

    # A script that was killed leaves it waiting, for ever.
    server = threading.Thread(target=serve, daemon=True)
    server.start()
    yield f"{bin}:{os.environ['PATH']}"
    (folder / "words").write_text("")  # no words: the end
    server.join()

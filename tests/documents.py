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
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pageferry import cli

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(
    [
        DOCS.parent / "README.md",
        DOCS / "tutorial.md",
        DOCS / "cluster.md",
        DOCS / "monitoring.md",
        *(DOCS / "howto").glob("*.md"),
    ]
)
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
    bin = folder / "bin"
    bin.mkdir()
    (bin / "pageferry").write_text(_COMMAND)
    (bin / "pageferry").chmod(0o755)
    for name in ("words", "output", "code"):
        os.mkfifo(folder / name)
    with (folder / "said").open("w+") as said:
        process = subprocess.Popen(
            ["sh", "-eux", "-c", script],
            cwd=folder,
            env=os.environ
            | variables
            | {"PATH": f"{bin}:{os.environ['PATH']}", "FERRY": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that all of it can be killed
        )
        with _all_ended(process, folder):
            _answer(folder)
        said.seek(0)
        assert process.returncode == 0, f"{page.name}:\n{said.read()}"
    return len(chosen)


@contextmanager
def _all_ended(process: subprocess.Popen[bytes], folder: Path) -> Iterator[None]:
    """End all that belongs to a script, and what waits for it in ``_answer``, when it has ended."""
    readers: list[int] = []

    def wait() -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(600)
        _kill(process)
        # A writer of these finds a reader now.
        readers.extend(
            os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK) for name in ("output", "code")
        )
        (folder / "words").write_text("")  # no words: the end

    waiting = threading.Thread(target=wait)
    waiting.start()
    try:
        yield
    finally:
        _kill(process)
        readers.append(os.open(folder / "words", os.O_RDONLY | os.O_NONBLOCK))
        waiting.join()
        for reader in readers:
            os.close(reader)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _answer(folder: Path) -> None:
    """Be the command, on this thread, as some verbs handle signals; until there are no words."""
    while words := (folder / "words").read_text().splitlines():
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            try:
                code = cli.main(words)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
        (folder / "output").write_text(text.getvalue())
        (folder / "code").write_text(f"{code}\n")

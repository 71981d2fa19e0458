# SPDX-License-Identifier: Apache-2.0
"""The log: in the standard logging module, and as lines of JSON by the command."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from test_cli import inside, run

from pageferry import cli, find_processes, logs, move, move_processes, progress_bar
from pageferry.engine import Progress


def parsed(text: str) -> list[dict[str, Any]]:
    """The log's lines; everything must be JSON, and have what every line has."""
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert datetime.fromisoformat(line["time"]).utcoffset() is not None
        assert line["level"] in logs.LEVELS and line["logger"].startswith("pageferry")
        assert line["message"] and isinstance(line["process"], int)
    return lines


def test_a_library_call_is_logged_where_a_program_wants_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    array = np.ones(1 << 18)
    move(array, 0)
    assert not caplog.records  # pytest's handler is there; nobody asked for INFO
    with caplog.at_level(logging.INFO, "pageferry"):
        result = move(array, 0)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("pageferry.migrate", logging.INFO)
    fields = record.fields  # type: ignore[attr-defined]
    assert fields["bytes_already"] == result.bytes_already > 0 and fields["complete"]
    assert "plan" not in fields and json.dumps(fields)
    assert "0 bytes moved to node 0" in record.getMessage()


def test_what_does_not_move_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    ended = threading.Event()
    ended.set()
    assert not move(np.ones(1 << 18), 0, cancel=ended).complete
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as gone:
        process = find_processes([gone.pid])[0]
    move_processes([process, os.getpid()], 0, kind="stack")
    first, second = caplog.records  # and nothing of the move that is well
    assert first.levelno == second.levelno == logging.WARNING
    assert "bytes not tried" in first.getMessage() and first.fields["cancelled"]  # type: ignore[attr-defined]
    assert second.getMessage().startswith(f"not moved: process {gone.pid} (cat) ended")
    assert second.fields == {"pid": gone.pid, "errno": "ESRCH"}  # type: ignore[attr-defined]


def test_the_library_writes_nothing_by_itself() -> None:
    code = (
        "import logging, pageferry; from pageferry import logs\n"
        "logs.event(logging.getLogger('pageferry.x'), logging.ERROR, 'unheard', a=1)\n"
        "logging.basicConfig(); logs.event(logging.getLogger('pageferry.x'), 40, 'heard', a=1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "ERROR:pageferry.x:heard\n"


# --- the command


@pytest.mark.parametrize("before", [True, False])
def test_move(before: bool) -> None:
    words: list[object] = ["move", os.getpid(), "--to", 0, "--kind", "stack"]
    done = inside(*(["--log-json", *words] if before else [*words, "--log-json"]))
    assert done.returncode == 0 and done.stdout.startswith("Moved 0 B to node 0")
    moved, ended = parsed(done.stderr)
    assert moved["logger"] == "pageferry.migrate" and moved["bytes_moved"] == 0
    assert moved["bytes_already"] > 0 and moved["pid"] == os.getpid() and moved["complete"] is True
    assert ended["message"] == "move ended" and ended["exit_code"] == 0
    # It is gone afterwards, also as JSON of the next error.
    assert inside("move", os.getpid(), "--to", 77).stderr.startswith("pageferry: node 77")
    assert logging.getLogger("pageferry").level == logging.NOTSET


def test_errors_are_lines_of_json_too() -> None:
    first, ended = parsed(inside("move", os.getpid(), "--to", 77, "--log-json").stderr)
    assert first["level"] == "error" and first["message"].startswith("node 77")
    assert ended["exit_code"] == 2
    words = ["move", os.getpid(), 1 << 22, "--to", 0, "--kind", "stack", "--log-json"]
    levels = [line["level"] for line in parsed(inside(*words).stderr)]
    assert levels == ["info", "warning", "info"]  # one moved, one that is not there, the end


def test_levels() -> None:
    words = ["move", os.getpid(), "--to", 0, "--kind", "stack"]
    assert inside(*words, "--log-json", "--log-level", "error").stderr == ""
    lines = parsed(inside(*words, "--log-json", "--log-level", "debug").stderr)
    assert lines[0]["message"] == "move begins" and lines[0]["arguments"][0] == "move"
    assert lines[1]["plan"]["threads"] >= 1
    text = inside(*words, "--log-level", "info").stderr.splitlines()
    assert len(text) == 2 and text[0].startswith("pageferry: INFO: 0 bytes moved to node 0")
    assert inside(*words).stderr == ""
    assert inside(*words, "--log-level", "loud").returncode == 2


def test_every_verb_takes_it() -> None:
    for parser in logs._parsers(cli.build_parser()):
        assert "--log-json" in parser.format_help(), parser.prog
    done = run("topology", "--json", "--log-json")
    assert json.loads(done.stdout)["nodes"] and parsed(done.stderr)[0]["exit_code"] == 0


def test_progress_is_logged_and_no_bar_is_in_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "_LOG_S", 0.0)
    bar = progress_bar.MoveBar("to node 1")
    formatter = logs.JsonFormatter()
    seen: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(formatter.format(record))

    logger, handler = logging.getLogger("pageferry"), Kept()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        bar.show(Progress(50, 40, 10, 100, 1.0))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    (line,) = parsed("\n".join(seen))
    assert (line["bytes_done"], line["bytes_total"], line["seconds_left"]) == (50, 100, 1.0)


def test_a_log_that_nobody_reads_does_not_stop_a_move() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "pageferry", "move", str(os.getpid()), "--to", "0", "--kind",
         "stack", "--log-json"],
        stdout=subprocess.PIPE, stderr=writer, timeout=300, text=True,
    )  # fmt: skip
    os.close(writer)
    assert done.stdout.startswith("Moved 0 B to node 0")

# SPDX-License-Identifier: Apache-2.0
"""``pageferry top`` on a real terminal: what it shows, its keys, and how it leaves the screen."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import PATIENCE, Terminal

from pageferry import cli
from pageferry.nodestat import NodeStat
from pageferry.scan import ProcessStat
from pageferry.top import keys, view
from pageferry.top.watch import SORTS, Sample, Watch
from pageferry.topology import topology

PROGRAM = [sys.executable, "-m", "pageferry", "top", "--interval", "0.2"]
ENTER, ESCAPE, DOWN, UP = "\r", "\x1b", "\x1b[B", "\x1b[A"
NODE = topology().target_nodes[0]

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/numa_maps").exists(), reason="a kernel without NUMA"
)


@pytest.fixture(scope="module")
def target() -> Iterator[subprocess.Popen[bytes]]:
    """A process with 48 MiB and a name that comes first."""
    code = (
        "from pathlib import Path\nPath('/proc/self/comm').write_text('!target')\n"
        "b = bytearray(b'x') * (48 << 20)\nprint(flush=True)\ninput()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline()
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def top(target: subprocess.Popen[bytes]) -> Iterator[Terminal]:
    with Terminal([*PROGRAM, "--sort", "name"]) as terminal:
        terminal.shows("!target")
        yield terminal


def clean(terminal: Terminal) -> bool:
    """As the shell wants it back: its screen, the cursor, echo and line editing, no colour."""
    flags = termios.tcgetattr(terminal.fd)[3]
    return (
        not terminal.alternate
        and not terminal.cursor_hidden
        and bool(flags & termios.ECHO and flags & termios.ICANON)
    )


def test_it_shows_nodes_and_processes(top: Terminal, target: subprocess.Popen[bytes]) -> None:
    top.shows("pageferry top")
    assert top.alternate
    top.shows("migrating")
    for word in ("NODE", "USED", "FREE", "PRESSURE", "PID", "NAME↓", "RESIDENT", "REMOTE", "THP"):
        top.shows(word)
    line = rf"{target.pid} +!target +[5-9]\d\.\d MiB"
    top.until(lambda: re.search(line, top.screen), "the target's line")
    top.shows("↑↓ choose")
    top.send("q")
    assert top.ended() == 0
    assert clean(top)


def test_keys_choose_and_sort(top: Terminal) -> None:
    top.send("s")
    top.shows("PID↓")
    top.send("s")
    top.shows("REMOTE↓")
    top.send("m")
    top.shows("choose a process first")
    top.send("sss")
    top.shows("NAME↓")
    top.send(DOWN + DOWN + UP + "m")
    top.shows("move !target (")
    top.send(ESCAPE)
    top.shows("not moved")


def test_a_process_is_moved_after_a_confirmation(
    top: Terminal, target: subprocess.Popen[bytes]
) -> None:
    top.send(DOWN + "m")
    top.shows(f"move !target ({target.pid}) to node:")
    top.send(f"9\x7f{NODE}" + ENTER)
    top.shows(f"move !target ({target.pid}) to node {NODE}? y/n")
    top.send("n")
    top.shows("not moved")
    top.send(f"m{NODE}" + ENTER + "y")
    top.shows(f"!target ({target.pid}) to node {NODE}: moved ")
    assert target.poll() is None


def test_a_node_that_is_not_there_is_refused(top: Terminal) -> None:
    top.send(DOWN + "m999" + ENTER)
    top.shows("node 999 does not exist")
    top.send("q")
    assert top.ended() == 0


def test_a_process_that_ends_meanwhile(target: subprocess.Popen[bytes]) -> None:
    code = "from pathlib import Path\nPath('/proc/self/comm').write_text('!brief')\ninput()"
    with (
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as brief,
        Terminal([*PROGRAM, "--sort", "name"]) as top,
    ):
        top.shows("!brief")
        top.send(DOWN + f"m{NODE}" + ENTER)
        top.shows("y/n")
        brief.communicate(b"\n")
        top.send("y")
        top.shows("does not exist, or has ended")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_killed_it_leaves_the_terminal_clean(top: Terminal, number: int) -> None:
    assert not clean(top)
    top.kill(number)
    assert top.ended() == -number
    assert clean(top)


def test_killed_for_good_it_leaves_the_terminal_clean(top: Terminal) -> None:
    """By the shell beside it: it cannot do anything itself any more."""
    assert not clean(top)
    top.kill(signal.SIGKILL)
    assert top.ended() == -signal.SIGKILL
    end = time.monotonic() + PATIENCE
    while not clean(top):
        assert time.monotonic() < end, top.screen
        top._read(0.1)


def test_ctrl_c(top: Terminal) -> None:
    top.send("\x03")
    assert top.ended() == 130
    assert clean(top)
    assert "Traceback" not in top.screen


def test_it_follows_the_size_of_the_terminal(top: Terminal) -> None:
    top.resize(60, 12)
    top.until(lambda: "pageferry top" in top.screen and "q quit" in top.screen.split("\n")[-1])
    assert all(len(line) <= 60 for line in top.screen.split("\n"))
    top.resize(140, 40)
    top.until(lambda: len(top.screen.split("\n")) == 40 and "PRESSURE" in top.screen)
    top.send("q")
    assert top.ended() == 0


def test_ctrl_z_and_back(top: Terminal) -> None:
    top.send("\x1a")
    stopped = False

    def is_stopped() -> bool:
        nonlocal stopped
        stopped = stopped or "\nState:\tT" in Path(f"/proc/{top.pid}/status").read_text()
        return stopped

    top.until(is_stopped, "the stop")
    top.until(lambda: clean(top), "the shell's screen")
    top.kill(signal.SIGCONT)
    top.until(lambda: top.alternate, "the view")
    top.send("q")
    assert top.ended() == 0 and clean(top)


# ---- Without a terminal


def test_once_and_json(target: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top", "--interval", "0.1", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    (found,) = (p for p in value["processes"] if p["pid"] == target.pid)
    assert found["name"] == "!target" and sum(found["nodes"].values()) > 48 << 20
    assert [node["id"] for node in value["nodes"]] == list(topology().node_ids)
    assert "pgmigrate_success" in value["per_second"]
    assert cli.main(["top", "--once", "--interval", "0.1", "--sort", "name", "--limit", "3"]) == 0
    out = capsys.readouterr().out
    assert "!target" in out and "\x1b" not in out
    assert len(out.split("RUNS ON")[1].strip().split("\n")) == 3


def test_without_a_terminal_it_says_what_to_do() -> None:
    done = subprocess.run(
        PROGRAM, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert "ENOTTY" in done.stderr and "--once or --json" in done.stderr


def test_a_terminal_that_can_do_nothing() -> None:
    with Terminal(PROGRAM, TERM="dumb") as terminal:
        assert terminal.ended() == 1
        assert "needs a terminal" in terminal.screen and not terminal.alternate


@pytest.mark.parametrize("words", [("--interval", "0"), ("--limit", "0"), ("--sort", "size")])
def test_bad_words_are_usage_errors(words: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["top", *words])
    assert end.value.code == 2


# ---- The parts


def test_names_of_keys() -> None:
    assert keys.names("a\x1b[A\x1b[B\x1bOA\r\x7f\x1b[5~\x1b[1;5Cé\x1b") == [
        "a", "up", "down", "up", "enter", "backspace", "page up", "é", "escape",
    ]  # fmt: skip


def some(count: int) -> list[ProcessStat]:
    return [
        ProcessStat(pid, f"p{pid % 7}", pid * 1000, 0, {0: pid, 1: 1000 - pid}, frozenset({0}))
        for pid in range(1, count + 1)
    ]


def rendered(sample: Sample, chosen: int | None, width: int = 100, height: int = 20) -> str:
    from rich.console import Console

    console = Console(width=width, height=height, color_system=None)
    shown = view.screen(
        sample,
        sort="pid",
        chosen=chosen,
        foot="",
        width=width,
        height=height,  # type: ignore[arg-type]
    )
    with console.capture() as out:
        console.print(shown)
    return out.get()


def test_the_chosen_one_is_always_on_the_screen() -> None:
    nodes = tuple(NodeStat(id, 1 << 30, 1 << 29) for id in (0, 1))
    sample = Sample(nodes, tuple(some(100)), {"some": 12.5}, {"pgmigrate_success": 2560.0})
    for chosen in (1, 2, 50, 99, 100):
        shown = rendered(sample, chosen)
        assert re.search(rf"^ *{chosen} +p", shown, re.M)
        assert len(shown.split("\n")) <= 21
    assert "migrating 10.0 MiB/s" in rendered(sample, None)
    assert "NODE 1" in rendered(sample, None) and "waiting for memory 12.5%" in rendered(sample, 1)


@pytest.mark.parametrize("sort", SORTS)
def test_every_way_to_sort(sort: str) -> None:
    listed = Watch(sort).sorted(some(20))
    values = {
        "remote": [-p.remote for p in listed],
        "resident": [-p.resident for p in listed],
        "thp": [-p.thp for p in listed],
        "name": [p.name for p in listed],
        "pid": [p.pid for p in listed],
    }[sort]
    assert values == sorted(values)  # type: ignore[type-var]


def test_own_memory_is_not_remote_on_one_node() -> None:
    (mine,) = (p for p in Watch().look(300.0).processes if p.pid == os.getpid())
    assert mine.nodes is not None
    assert len(topology().nodes) > 1 or mine.remote == 0

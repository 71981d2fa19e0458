# SPDX-License-Identifier: Apache-2.0
"""Guests that really boot: one takes about four seconds under emulation."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pageferry import lab

PAGEFERRY = [sys.executable, "-m", "pageferry", "lab"]
PATIENCE = 300  # seconds, for what ends by itself; a machine may be busy

OS_RELEASE = "/proc/sys/kernel/osrelease"
# Run in the guest by the tests' own Python, which lives on the host.
LOOK = """
import json, os, pathlib, socket, sys
json.dump({
    "args": [os.fsencode(a).hex() for a in sys.argv[1:]],
    "cwd": os.getcwd(),
    "host": socket.gethostname(),
    "env": dict(os.environ),
    "uid": os.getuid(),
    "mounts": pathlib.Path("/proc/self/mounts").read_text(),
    "release": os.uname().release,
    "nodes": pathlib.Path("/sys/devices/system/node/online").read_text().strip(),
}, open(os.environ["LOOK_AT"], "w"))
"""
ODD = ["two words", "'", '"$x`\\', "new\nline", "", os.fsdecode(bytes(range(1, 256)))]


def test_a_command_finds_what_it_has_on_the_host(tmp_path: Path) -> None:
    """Arguments, environment, directory and Python of the host; results stay on the host."""
    out = tmp_path / "it's, out"
    out.mkdir()
    result = lab.run(
        [sys.executable, "-c", LOOK, *ODD],
        env={"LOOK_AT": str(out / "seen.json")},
        writable=[out],
        timeout=PATIENCE,
    )
    assert result.ok, result.explain() or result.stderr.decode()
    assert result.boot_seconds
    seen = json.loads((out / "seen.json").read_text())
    assert seen["args"] == [os.fsencode(word).hex() for word in ODD]
    assert seen["cwd"] == str(Path.cwd())
    assert (seen["host"], seen["uid"]) == ("pageferry-lab", 0)
    assert seen["env"]["PATH"] == os.environ["PATH"]
    assert seen["env"]["PAGEFERRY_LAB"] == "1"
    assert seen["env"]["PAGEFERRY_LAB_ACCEL"] == result.accel
    assert "cgroup2 /sys/fs/cgroup" in seen["mounts"]
    assert seen["nodes"] == "0-1"
    assert seen["release"] == result.kernel


def test_hot_plug() -> None:
    """The other topologies have guests of their own, in tests/guest, which look at these, too."""
    files = ("online", "has_memory", "has_cpu", "node0/distance")
    result = lab.run(
        ["cat", *(f"/sys/devices/system/node/{file}" for file in files), OS_RELEASE],
        topology=lab.TOPOLOGIES["hot-plug"],
        memory="512M",
        timeout=PATIENCE,
    )
    assert result.ok, result.explain()
    assert result.stdout.decode().splitlines() == ["0-2", "0-2", "0-1", "10 20 20", result.kernel]
    assert result.topology == "hot-plug"


def test_output_is_passed_as_it_comes_and_bytes_stay() -> None:
    """stdout and stderr apart, all byte values, much of it, live; then death by a signal."""
    script = """
printf early; printf '\\000\\377' >&2; sleep 2
echo again >/dev/stdout; echo gone >>/etc/passwd; touch /usr/new /tmp/new
head -c 3000000 /dev/zero; sleep 1000 & kill -TERM $$
"""
    process = subprocess.Popen(
        [*PAGEFERRY, "run", "--memory", "512M", "--", "sh", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    first = process.stdout.read(5)
    early = time.monotonic()
    out, err = process.communicate(timeout=PATIENCE)
    late = time.monotonic()
    assert first == b"early"
    assert late - early > 0.2  # and not all of it at the end
    assert out == b"again\n" + bytes(3000000)
    assert err == b"\0\xff"
    assert process.returncode == 128 + signal.SIGTERM
    assert not Path("/usr/new").exists()
    assert not Path("/tmp/new").exists()


# One CPU works between marks, another all the time; the second span takes three times the work.
SIDE_BY_SIDE = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])  # the package itself takes seconds to import here
from marks import Marks
child = os.fork()
os.sched_setaffinity(0, {int(not child)})
if not child:
    signal.alarm(100)
    while True:
        pass
marks = Marks()
for turns in (1, 3):
    with marks.span(turns):
        for _ in range(turns * 100_000):
            pass
os.kill(child, signal.SIGKILL)
"""


def test_instructions_of_cpus_side_by_side() -> None:
    marks = Path(lab.split.__file__).parent
    command = [sys.executable, "-c", SIDE_BY_SIDE, marks]
    result = lab.run(command, accel="split", cpus=2, timeout=PATIENCE)
    assert result.ok, result.explain() or result.stderr.decode()
    one, three = result.spans
    assert (one.number, three.number) == (1, 3)
    for span in result.spans:
        assert span.instructions == pytest.approx(span.ran[0], rel=0.2)
        assert span.ran[1] == pytest.approx(span.ran[0], rel=0.2)  # however many CPUs the host has
    assert three.instructions == pytest.approx(3 * one.instructions, rel=0.3)
    words = lab.split.describe(result.spans)
    assert words.startswith("span 1: ") and "span 3: " in words


def test_a_panic_is_reported(tmp_path: Path) -> None:
    console = tmp_path / "console"
    crash = "echo before; echo c >/proc/sysrq-trigger"
    done = subprocess.run(
        [*PAGEFERRY, "run", "--console", str(console), "--", "sh", "-c", crash],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == lab.LAB_FAILED
    assert done.stdout == "before\n"
    assert "panicked while the command ran: sysrq triggered crash" in done.stderr
    assert f"whole console: {console}" in done.stderr
    assert "Kernel panic" in console.read_text()


def test_a_hang_is_reported() -> None:
    lab.fetch()
    for limit in (10, 40, 160):  # on a busy machine it may not have booted by then
        result = lab.run(["sh", "-c", "echo before; sleep 1000"], memory="512M", timeout=limit)
        if result.stdout:
            break
    assert result.verdict is lab.Verdict.TIMEOUT
    assert (result.returncode, result.stdout) == (lab.LAB_FAILED, b"before\n")
    assert result.boot_seconds
    assert f"had not ended after {limit} s" in result.explain()
    assert result.console_path is None or result.console_path.exists()


def test_a_guest_that_ends_by_itself_is_reported() -> None:
    off = "echo o >/proc/sysrq-trigger; sleep 1000"
    result = lab.run(["sh", "-c", off], memory="512M", timeout=PATIENCE)
    assert result.verdict is lab.Verdict.NO_EXIT_CODE
    assert result.returncode == lab.LAB_FAILED


def test_a_qemu_that_does_not_start_is_reported() -> None:
    result = lab.run(["true"], accel="tcg", memory=1 << 50, timeout=PATIENCE)
    assert result.verdict is lab.Verdict.QEMU_FAILED
    assert "memory" in result.explain()


def test_a_shell_on_a_terminal() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [*PAGEFERRY, "shell", "--memory", "512M", "--", "/bin/sh"])
    seen = b""

    def wait_for(text: bytes, limit: float, keys: bytes = b"") -> None:
        nonlocal seen
        end = time.monotonic() + limit
        again = 0.0
        while text not in seen and time.monotonic() < end:
            if keys and time.monotonic() >= again:
                os.write(terminal, keys)
                again = time.monotonic() + 2
            if select.select([terminal], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    seen += os.read(terminal, 65536)
        assert text in seen, seen.decode(errors="replace")
        seen = seen.partition(text)[2]

    try:
        wait_for(b"# ", PATIENCE)
        os.write(terminal, b"tty; stty size; echo $((6*7)); sleep 1000\n")
        wait_for(b"/dev/hvc0", PATIENCE)
        wait_for(b"42", PATIENCE)
        # Ctrl-C ends the sleep: there is job control. The shell itself gets the first one where
        # it has not yet put the sleep in the foreground, and then waits for the sleep's end.
        wait_for(b"# ", PATIENCE, keys=b"\x03")
        os.write(terminal, b"exit 7\n")
        end = time.monotonic() + PATIENCE
        code = None
        while code is None and time.monotonic() < end:
            if select.select([terminal], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    seen += os.read(terminal, 65536)
            gone, status = os.waitpid(pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if gone else None
        assert code == 7, seen.decode(errors="replace")
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)


def _emulators(pid: int) -> list[int]:
    """Return its children that are QEMU by now: each is setpriv first."""
    found = []
    for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            if b"qemu" in Path(f"/proc/{word}/cmdline").read_bytes().partition(b"\0")[0]:
                found.append(int(word))
    return found


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_nothing_outlives_the_lab(tmp_path: Path, number: signal.Signals, code: int) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [*PAGEFERRY, "run", "--accel", "tcg", "--memory", "512M", "--", "sleep", "1000"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        end = time.monotonic() + PATIENCE
        while not (guests := _emulators(process.pid)) and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(number)
        process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert guests
    end = time.monotonic() + PATIENCE
    while any(map(_alive, guests)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(_alive, guests))
    assert process.returncode == code
    assert not list(tmp_path.iterdir())

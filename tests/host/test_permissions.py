# SPDX-License-Identifier: Apache-2.0
"""Processes that a user may not touch: the answer is a refusal that says what is missing.

The kernel decides, by the same check for move_pages(2), /proc/PID/pagemap and the rest (ptrace's,
for reading): same user and not set-uid, or CAP_SYS_PTRACE. CAP_SYS_NICE alone opens nobody's
memory, nor does being root of a user namespace. Yama restricts attaching only, which nobody does.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from child import in_a_child
from restricted import CAPABILITIES, CAPABILITY_VERSION

from pageferry import PageferryError, cli, locate, move, plan_move, topology

if os.geteuid() != 0:
    pytest.skip("needs root, to become other users", allow_module_level=True)

SOMEBODY, ELSE = 65531, 65532
KEEP_CAPS, NEW_USER = 8, 0x10000000
libc = ctypes.CDLL(None, use_errno=True)


def become(user: int, *capabilities: str) -> None:
    """Another user, with these capabilities and no other."""
    assert libc.prctl(KEEP_CAPS, 1, 0, 0, 0) == 0
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    mask = sum(1 << CAPABILITIES[name] for name in capabilities)
    header = struct.pack("Ii", CAPABILITY_VERSION, 0)
    assert libc.capset(header, struct.pack("6I", mask, mask, 0, 0, 0, 0)) == 0
    libc.prctl(4, 1, 0, 0, 0)  # dumpable, as a program is that began as this user


def nobody() -> None:
    become(SOMEBODY)


def only_nice() -> None:
    become(SOMEBODY, "SYS_NICE")


def root_of_a_namespace() -> None:
    become(SOMEBODY)
    if libc.unshare(NEW_USER):
        raise NotImplementedError("no user namespaces here")


WHO = [nobody, only_nice, root_of_a_namespace]


@pytest.fixture
def theirs() -> Iterator[int]:
    """A process of another user."""
    with subprocess.Popen(["sleep", "1000"], user=ELSE, group=ELSE, extra_groups=[]) as process:
        yield process.pid
        process.kill()


@pytest.fixture
def set_uid() -> Iterator[int]:
    """A process that the same user has started, of a program that runs as root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        program = Path(folder) / "sleep"
        shutil.copy("/bin/sleep", program)
        program.chmod(0o4755)
        with subprocess.Popen(
            [str(program), "1000"], user=SOMEBODY, group=SOMEBODY, extra_groups=[]
        ) as process:
            status = Path(f"/proc/{process.pid}/status").read_text()
            try:
                if f"Uid:\t{SOMEBODY}\t0" not in status:
                    pytest.skip("set-uid programs are not honoured in the temporary folder")
                yield process.pid
            finally:
                process.kill()


def refused(who: Callable[[], None], what: Callable[[], object]) -> str:
    """What the refusal says, by name of the errno, with what to try."""

    def work() -> str:
        topology()  # read before: what is asked for here is another process
        who()
        try:
            what()
        except PageferryError as error:
            return f"{error.name}: {error}" + (" hint" if error.hint else "")
        return "done"

    answer = in_a_child(work)
    if answer.startswith("NotImplementedError"):
        pytest.skip(answer)
    return answer


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("call", ["move", "locate", "plan"])
def test_another_users_process(theirs: int, who: Callable[[], None], call: str) -> None:
    answer = refused(who, CALLS[call](theirs))
    assert answer.startswith(("EPERM: ", "EACCES: ")) and answer.endswith("hint"), answer
    assert str(theirs) in answer


CALLS: dict[str, Callable[[int], Callable[[], object]]] = {
    "move": lambda pid: lambda: move(pid=pid, node=topology().memory_nodes[0]),
    "locate": lambda pid: lambda: locate(pid=pid),
    "plan": lambda pid: lambda: plan_move(pid=pid, node=topology().memory_nodes[0]),
}


@pytest.mark.parametrize("call", ["move", "locate"])
def test_a_set_uid_process(set_uid: int, call: str) -> None:
    """The user has started it, and may not look into it all the same."""
    answer = refused(nobody, CALLS[call](set_uid))
    assert answer.startswith(("EPERM: ", "EACCES: ")), answer


def test_a_range_of_another_users_process(theirs: int) -> None:
    """Whoever guesses an address learns nothing from the answer."""
    line = Path(f"/proc/{theirs}/maps").read_text().splitlines()[0]
    start = int(line.split("-")[0], 16)
    node = topology().memory_nodes[0]
    answers = {
        refused(nobody, lambda at=at: move(range(at, at + 4096), node, pid=theirs))  # type: ignore[misc]
        for at in (start, 1 << 40)
    }
    assert len(answers) == 1 and answers.pop().startswith(("EPERM", "EACCES"))


def test_the_command(theirs: int) -> None:
    """Ends with 1 and says what to do, on standard error."""

    def work() -> str:
        node = str(topology().memory_nodes[0])
        cli.main(["move", str(2**22 + 1), "--to", node])  # what it imports, that user may not read
        become(SOMEBODY)
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = cli.main(["move", str(theirs), "--to", node])
        return f"{code} {said.getvalue()}"

    answer = in_a_child(work)
    assert answer.startswith("1 ") and "CAP_SYS_PTRACE" in answer, answer


def test_with_the_capability_it_is_allowed(theirs: int) -> None:
    """Else the refusals above would be anybody's."""

    def work() -> str:
        become(SOMEBODY, "SYS_NICE", "SYS_PTRACE", "DAC_READ_SEARCH")
        result = move(pid=theirs, node=topology().memory_nodes[0])
        return f"stopped {result.stopped}, {result.bytes_moved + result.bytes_already > 0}"

    assert in_a_child(work) == "stopped 0, True"

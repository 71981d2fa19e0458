# SPDX-License-Identifier: Apache-2.0
"""doctor: each finding on a machine that has it, real system calls under a real seccomp filter."""

from __future__ import annotations

import argparse
import ctypes
import errno
import importlib
import json
import os
import platform
import struct
import types
from pathlib import Path
from typing import Any

import pytest
from child import in_a_child
from sysfs_trees import GIB, FakeNode, build, cxl, without_numa, write

from pageferry import diagnose as module
from pageferry import probe
from pageferry.commands import doctor as command
from pageferry.diagnose import Check, diagnose

NAMES = [
    *("kernel", "NUMA nodes", "cpuset", "move_pages", "capabilities", "seccomp", "PAGEMAP_SCAN"),
    *(
        "userfaultfd",
        "MPOL_MF_MOVE_MT",
        "THP",
        "hugetlb",
        "NUMA balancing",
        "demotion",
        "zone reclaim",
        "memory",
    ),
    *("QEMU", "KVM"),
]
LAZY = importlib.import_module  # before any test replaces it


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two nodes, nothing remarkable."""
    nodes = {0: FakeNode([0, 1], distance="10 20"), 1: FakeNode([2, 3], distance="20 10")}
    return build(tmp_path, nodes)


def check(root: Path, name: str) -> Check:
    found = {each.name: each for each in diagnose(root, fast=True)}
    return found[name]


def command_line(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return parser.parse_args(["doctor", *arguments])


# --- this machine


def test_every_check_is_made_here() -> None:
    checks = diagnose(fast=True)
    assert [each.name for each in checks] == NAMES
    for each in checks:
        assert "could not be checked" not in each.finding, each
        assert each.verdict in ("ok", "info", "warn", "fail")
        assert each.cure or each.verdict != "fail", each
        assert "\n" not in each.finding + each.cure


def test_a_page_stays_where_it_is_asked_to_stay() -> None:
    answer = probe.move_pages()
    if answer.errno in (errno.EPERM, errno.ENOSYS):
        pytest.skip("move_pages is refused here")
    assert answer.moved
    assert answer.source == answer.target == answer.status >= 0


def test_a_node_that_cannot_be_is_refused_by_the_kernel() -> None:
    answer = probe.move_pages(1 << 20)
    if answer.errno in (errno.EPERM, errno.ENOSYS):
        pytest.skip("move_pages is refused here")
    assert answer.errno == errno.ENODEV
    assert not answer.moved


def test_probes_leave_no_descriptor_open() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        probe.userfaultfd()
        probe.pagemap_scan()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_userfaultfd_answers_make_sense() -> None:
    answer = probe.userfaultfd()
    assert (answer.errno == 0) == answer.kernel_faults
    open_somehow = answer.kernel_faults or answer.user_faults or answer.device
    assert bool(answer.features) == open_somehow


# --- real system calls under a real filter

_ARCHITECTURES = {"x86_64": {"move_pages": 279, "userfaultfd": 323, "ioctl": 16}}


def forbid(number: int, error: int) -> None:
    """Make one system call of this process and its children fail, as container runtimes do."""

    def step(code: int, true: int, false: int, value: int) -> bytes:
        return struct.pack("HBBI", code, true, false, value)

    program = b"".join(
        (
            step(0x20, 0, 0, 0),  # load the call number
            step(0x15, 0, 1, number),  # is it the one?
            step(0x06, 0, 0, 0x0005_0000 | error),  # SECCOMP_RET_ERRNO
            step(0x06, 0, 0, 0x7FFF_0000),  # SECCOMP_RET_ALLOW
        )
    )
    buffer = ctypes.create_string_buffer(program)
    filters = struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    holder = ctypes.create_string_buffer(filters)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    if libc.prctl(22, 2, ctypes.addressof(holder), 0, 0) != 0:  # PR_SET_SECCOMP, filter
        raise OSError(ctypes.get_errno(), "seccomp")


@pytest.mark.skipif(platform.machine() not in _ARCHITECTURES, reason="no call numbers")
@pytest.mark.parametrize(
    ("call", "error", "name", "verdict", "word"),
    [
        ("move_pages", errno.EPERM, "move_pages", "fail", "EPERM: a seccomp filter"),
        ("move_pages", errno.ENOSYS, "move_pages", "fail", "ENOSYS"),
        ("move_pages", errno.EPERM, "seccomp", "info", "a filter is in force"),
        ("ioctl", errno.ENOTTY, "PAGEMAP_SCAN", "info", "ENOTTY"),
        ("ioctl", errno.EPERM, "PAGEMAP_SCAN", "warn", "EPERM"),
    ],
)
def test_under_a_filter(call: str, error: int, name: str, verdict: str, word: str) -> None:
    number = _ARCHITECTURES[platform.machine()][call]

    def filtered() -> str:
        forbid(number, error)
        found = {each.name: each for each in diagnose(fast=True)}[name]
        return json.dumps([found.verdict, found.finding, found.cure])

    answer = in_a_child(filtered)
    if answer.startswith("OSError"):
        pytest.skip(f"no seccomp filter can be set here: {answer}")
    got = json.loads(answer)
    assert got[0] == verdict, got
    assert got[1].startswith(word), got
    assert got[2] or name == "seccomp"


@pytest.mark.skipif(platform.machine() not in _ARCHITECTURES, reason="no call numbers")
def test_userfaultfd_call_forbidden() -> None:
    def filtered() -> str:
        forbid(_ARCHITECTURES[platform.machine()]["userfaultfd"], errno.EPERM)
        answer = probe.userfaultfd()
        return json.dumps([answer.kernel_faults, answer.user_faults, answer.errno])

    answer = in_a_child(filtered)
    if answer.startswith("OSError"):
        pytest.skip(f"no seccomp filter can be set here: {answer}")
    assert json.loads(answer) == [False, False, errno.EPERM]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_user_without_rights_gets_info_and_no_failure() -> None:
    def as_nobody() -> str:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        return json.dumps({each.name: each.verdict for each in diagnose(fast=True)})

    verdicts = json.loads(in_a_child(as_nobody))
    assert verdicts["capabilities"] == "info"
    here = {each.name: each.verdict for each in diagnose(fast=True)}
    assert verdicts["move_pages"] == here["move_pages"]


# --- what each check makes of a machine


def test_nodes(tree: Path, tmp_path: Path) -> None:
    assert check(tree, "NUMA nodes") == Check("NUMA nodes", "ok", "2 nodes with memory: 0-1")
    found = check(cxl(tmp_path / "cxl"), "NUMA nodes")
    assert found.finding == "3 nodes with memory: 0-1,4 (without CPUs: 4)"
    found = check(build(tmp_path / "one", {0: FakeNode([0])}), "NUMA nodes")
    assert found.verdict == "warn"
    assert "pageferry lab run" in found.cure
    found = check(without_numa(tmp_path / "none"), "NUMA nodes")
    assert found.verdict == "fail"
    assert "CONFIG_NUMA" in found.cure


def test_cpuset(tree: Path) -> None:
    assert check(tree, "cpuset").verdict == "ok"
    write(tree, "proc/self/status", "Cpus_allowed_list:\t0-1\nMems_allowed_list:\t0-1")
    assert check(tree, "cpuset").verdict == "info"
    write(tree, "proc/self/status", "Cpus_allowed_list:\t0-3\nMems_allowed_list:\t1")
    found = check(tree, "cpuset")
    assert found.verdict == "warn"
    assert "memory of node 1 (of 0-1)" in found.finding
    assert "cpuset.mems" in found.cure


@pytest.mark.parametrize(
    ("answers", "verdict", "finding"),
    [
        ([(0, 0, 0, 0), (0, 0, 1, 1)], "ok", "a page went from node 0 to node 1"),
        ([(0, 0, 0, 0), (0, 0, 1, 0)], "warn", "did not go to node 1: it is on node 0"),
        ([(0, 0, 0, 0), (0, 0, 1, -errno.EBUSY)], "warn", "did not go to node 1: EBUSY"),
        ([(0, 0, 0, 0), (errno.EACCES, 0, 1, -4095)], "warn", "EACCES"),
        ([(errno.EPERM, -1, -1, -4095)], "fail", "EPERM: the kernel refuses the call"),
        ([(errno.ENOSYS, -1, -1, -4095)], "fail", "ENOSYS"),
    ],
)
def test_move_pages(
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: list[tuple[int, int, int, int]],
    verdict: str,
    finding: str,
) -> None:
    asked: list[int | None] = []

    def move_pages(target: int | None = None) -> probe.MovePages:
        asked.append(target)
        return probe.MovePages(*answers[len(asked) - 1])

    monkeypatch.setattr(probe, "move_pages", move_pages)
    found = check(tree, "move_pages")
    assert (found.verdict, finding in found.finding) == (verdict, True), found
    assert asked == [None, 1][: len(answers)]


def test_capabilities(tree: Path) -> None:
    assert check(tree, "capabilities").cure.count("--cap-add") == 3
    write(tree, "proc/self/status", f"CapEff:\t{1 << 23 | 1 << 19 | 1 << 2:x}")
    assert check(tree, "capabilities").verdict == "ok"
    write(tree, "proc/self/status", f"CapEff:\t{1 << 23 | 1 << 19:x}")
    assert check(tree, "capabilities").finding.startswith("no CAP_DAC_READ_SEARCH")
    write(tree, "proc/self/status", f"CapEff:\t{1 << 19 | 1 << 2:x}")
    assert check(tree, "capabilities").finding.startswith("no CAP_SYS_NICE")


@pytest.mark.parametrize(
    ("answer", "verdict", "word"),
    [
        (probe.Userfaultfd(True, True, True, (1 << 17) - 1, 0), "ok", "MOVE, WP"),
        (probe.Userfaultfd(False, True, True, (1 << 17) - 1, 1), "ok", "by /dev/userfaultfd"),
        (probe.Userfaultfd(True, True, False, 1, 0), "info", "without MOVE"),
        (probe.Userfaultfd(False, True, False, 1, 1), "info", "unprivileged_userfaultfd=0"),
        (probe.Userfaultfd(False, False, False, 0, errno.EPERM), "info", "EPERM"),
        (probe.Userfaultfd(False, False, False, 0, errno.ENOSYS), "info", "ENOSYS"),
    ],
)
def test_userfaultfd(
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: probe.Userfaultfd,
    verdict: str,
    word: str,
) -> None:
    write(tree, "proc/sys/vm/unprivileged_userfaultfd", "0")
    monkeypatch.setattr(probe, "userfaultfd", lambda: answer)
    found = check(tree, "userfaultfd")
    assert found.verdict == verdict
    assert word in found.finding
    assert bool(found.cure) == (verdict != "ok")


def test_thp(tree: Path) -> None:
    assert "not in this kernel" in check(tree, "THP").finding
    folder = "sys/kernel/mm/transparent_hugepage"
    write(tree, f"{folder}/enabled", "always madvise [never]")
    write(tree, f"{folder}/defrag", "always defer [madvise] never")
    write(tree, f"{folder}/hugepages-64kB/enabled", "always inherit madvise [never]")
    write(tree, f"{folder}/hugepages-2048kB/enabled", "always [inherit] madvise never")
    found = check(tree, "THP")
    assert found.verdict == "warn"
    assert found.finding.startswith("never, defrag madvise, sizes: none")
    write(tree, f"{folder}/hugepages-64kB/enabled", "[always] inherit madvise never")
    assert check(tree, "THP") == Check("THP", "ok", "never, defrag madvise, sizes: 64.0 KiB")
    write(tree, f"{folder}/enabled", "always [madvise] never")
    assert check(tree, "THP").finding == "madvise, defrag madvise, sizes: 64.0 KiB, 2.0 MiB"


def test_hugetlb(tmp_path: Path) -> None:
    nodes = {0: FakeNode([0], hugepages={2 << 20: (8, 3)}), 1: FakeNode([1])}
    found = check(build(tmp_path, nodes), "hugetlb")
    assert found.verdict == "info"
    assert found.finding == "node 0: 3 of 8 × 2.0 MiB free; node 1: 0 of 0 × 2.0 MiB free"
    nodes[1].hugepages = {2 << 20: (1, 1)}
    assert check(build(tmp_path, nodes), "hugetlb").verdict == "ok"


@pytest.mark.parametrize(
    ("path", "content", "name", "verdict"),
    [
        ("proc/sys/kernel/numa_balancing", "1", "NUMA balancing", "warn"),
        ("proc/sys/kernel/numa_balancing", "0", "NUMA balancing", "ok"),
        ("sys/kernel/mm/numa/demotion_enabled", "true", "demotion", "info"),
        ("sys/kernel/mm/numa/demotion_enabled", "false", "demotion", "ok"),
        ("proc/sys/vm/zone_reclaim_mode", "1", "zone reclaim", "warn"),
        ("proc/sys/vm/zone_reclaim_mode", "0", "zone reclaim", "ok"),
        ("proc/pressure/memory", "some avg10=31.40 avg60=2.00", "memory", "warn"),
        ("proc/pressure/memory", "some avg10=3.14 avg60=20.00", "memory", "ok"),
        ("proc/self/status", "Seccomp:\t2", "seccomp", "info"),
        ("proc/self/status", "Seccomp:\t0", "seccomp", "ok"),
    ],
)
def test_settings(tree: Path, path: str, content: str, name: str, verdict: str) -> None:
    write(tree, path, content)
    found = check(tree, name)
    assert found.verdict == verdict
    assert verdict in ("ok", "info") or found.cure


def test_a_full_node(tmp_path: Path) -> None:
    nodes = {0: FakeNode([0]), 1: FakeNode([1], total=64 * GIB, free=GIB)}
    found = check(build(tmp_path, nodes), "memory")
    assert found.verdict == "warn"
    assert "node 1" in found.cure


def test_an_empty_tree_is_checked_too(tmp_path: Path) -> None:
    checks = diagnose(tmp_path, fast=True)
    assert [each.name for each in checks] == NAMES
    assert not [each for each in checks if "could not be checked" in each.finding]


def test_a_check_that_breaks_does_not_hide_the_others(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> int:
        raise NotImplementedError("the system call numbers of vax are not known here")

    monkeypatch.setattr(probe, "pagemap_scan", broken)
    found = check(tree, "PAGEMAP_SCAN")
    assert found.verdict == "warn"
    assert "vax" in found.finding
    assert check(tree, "THP").finding


# --- QEMU and KVM


def test_qemu(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    found = check(tree, "QEMU")
    assert found.verdict == "warn"
    assert "apt-get install qemu-system" in found.cure
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/bin/{name}")
    assert check(tree, "QEMU").finding.startswith("/bin/qemu-system-")


@pytest.mark.parametrize(
    ("boots", "verdict", "finding"),
    [
        (types.SimpleNamespace(ok=True, reason=""), "ok", "a guest boots"),
        (types.SimpleNamespace(ok=False, reason="it hangs"), "warn", "no guest boots: it hangs"),
    ],
)
def test_kvm_by_booting(
    tree: Path, monkeypatch: pytest.MonkeyPatch, boots: Any, verdict: str, finding: str
) -> None:
    asked: list[str] = []

    def load(name: str) -> Any:
        asked.append(name)
        return (
            types.SimpleNamespace(kvm_boots=lambda: boots) if name.endswith("lab") else LAZY(name)
        )

    monkeypatch.setattr(module.importlib, "import_module", load)
    found = diagnose(tree)[-1]
    assert (found.name, found.verdict, found.finding) == ("KVM", verdict, finding)
    assert diagnose(tree, fast=True)[-1] == Check("KVM", "info", "not tried (--fast)")
    assert asked == ["pageferry.lab"]


# --- the command


@pytest.fixture
def some_checks(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    checks = [Check("kernel", "ok", "Linux 6.12"), Check("THP", "warn", "never", "echo madvise")]
    monkeypatch.setattr(command, "diagnose", lambda fast: checks)
    return checks


def test_plain_output(capsys: pytest.CaptureFixture[str], some_checks: list[Check]) -> None:
    assert command.run(command_line("--fast")) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert [" ".join(line.split()) for line in text.splitlines()] == [
        "ok kernel Linux 6.12",
        "warn THP never",
        "→ echo madvise",
        "Nothing forbids a move; look at: THP.",
    ]


def test_a_failure_is_exit_code_one(
    capsys: pytest.CaptureFixture[str], some_checks: list[Check]
) -> None:
    some_checks.append(Check("move_pages", "fail", "EPERM", "--cap-add SYS_NICE"))
    assert command.run(command_line()) == 1
    assert "Memory cannot be moved here: move_pages." in capsys.readouterr().out
    assert command.run(command_line("--json")) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    assert said["checks"][2] == {
        "name": "move_pages",
        "verdict": "fail",
        "finding": "EPERM",
        "cure": "--cap-add SYS_NICE",
    }


def test_json_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code = command.run(command_line("--json", "--fast"))
    said = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in said["checks"]] == NAMES
    assert said["ok"] == (code == 0)
    assert "\x1b" not in json.dumps(said)


@pytest.mark.parametrize(
    ("text", "verdict", "words"),
    [
        (None, "ok", 'pageferry run: "flag"'),
        ("mt = 1\nthreads = 4", "ok", "/etc/pageferry.toml: 1: every call uses several threads, 4"),
        ("mt = 0", "ok", "no call uses several threads"),
        ("mt = 7", "warn", '0, 1 or "flag"'),
    ],
)
def test_the_switch(tmp_path: Path, text: str | None, verdict: str, words: str) -> None:
    if text is not None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/pageferry.toml").write_text(text)
    (check,) = (c for c in diagnose(tmp_path, fast=True) if c.name == "MPOL_MF_MOVE_MT")
    assert check.verdict == verdict
    assert words in check.finding

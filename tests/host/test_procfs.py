# SPDX-License-Identifier: Apache-2.0
"""Mappings, smaps, counters and rights, of real processes and of made-up ones."""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from child import in_a_child
from sysfs_trees import write

from pageferry import procfs
from pageferry.errors import NotPermittedError, PageferryError, ProcessGoneError, UnsupportedError
from pageferry.procfs import Mapping, mappings, smaps

ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def address(memory: mmap.mmap) -> int:
    view = ctypes.c_char.from_buffer(memory)
    return ctypes.addressof(view)


def at(where: int) -> Mapping:
    """The mapping of this process that holds an address."""
    (found,) = (m for m in mappings() if m.start <= where < m.end)
    return found


@contextmanager
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()  # exec is over, and it has loaded what it needs
        yield child
    finally:
        child.kill()
        child.communicate()


# --- mappings


def test_own_memory_is_anonymous() -> None:
    with mmap.mmap(-1, 8 * mmap.PAGESIZE, flags=ANONYMOUS) as memory:
        mapping = at(address(memory))
        assert mapping.anonymous and mapping.private and not mapping.special
        assert mapping.perms == "rw-p"
        assert mapping.size >= 8 * mmap.PAGESIZE


def test_shared_memory_is_not_anonymous() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        mapping = at(address(memory))
        assert not mapping.anonymous and not mapping.private
        assert mapping.name == "/dev/zero" and mapping.deleted


@pytest.mark.parametrize(
    "name", ["with  two spaces", "new\nline", "ends in space ", "tab\tand\x85", "umläut", "a (b)"]
)
def test_names_of_files_come_back_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(bytes(mmap.PAGESIZE))
    with (
        path.open("r+b") as file,
        mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as memory,
    ):
        mapping = at(address(memory))
        assert (mapping.name, mapping.deleted) == (str(path), False)
        assert mapping.inode == path.stat().st_ino
        assert not mapping.anonymous
        path.unlink()
        mapping = at(address(memory))
        assert (mapping.name, mapping.deleted) == (str(path), True)


def test_names_that_are_not_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe"
    with open(path, "w+b") as file:
        file.truncate(mmap.PAGESIZE)
        with mmap.mmap(file.fileno(), 0) as memory:
            assert os.fsencode(at(address(memory)).name) == path


def test_offset_of_a_file_mapping(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * mmap.PAGESIZE))
    with (
        path.open("r+b") as file,
        mmap.mmap(file.fileno(), mmap.PAGESIZE, offset=2 * mmap.PAGESIZE) as memory,
    ):
        assert at(address(memory)).offset == 2 * mmap.PAGESIZE


def test_the_kernel_s_own_mappings_are_special() -> None:
    special = {m.name for m in mappings() if m.special}
    assert special <= {"[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"}
    assert "[vdso]" in special
    assert {m.name for m in mappings() if m.anonymous} >= {"[heap]", "[stack]"}


def test_of_another_process_and_in_order() -> None:
    with sleeping() as child:
        found = mappings(child.pid)
        assert any("python" in m.name for m in found)
        assert all(a.end <= b.start for a, b in itertools.pairwise(found))
        assert found != mappings()


def test_a_file_that_has_the_kernel_s_words_in_its_name(tmp_path: Path) -> None:
    line = "7f00-8f00 rw-s 00001000 fd:01 77                         /x y (deleted) (deleted)"
    write(tmp_path, "9/maps", line)
    (mapping,) = mappings(9, proc=tmp_path)
    assert mapping == Mapping(
        0x7F00, 0x8F00, "rw-s", 0x1000, "fd:01", 77, "/x y (deleted)", deleted=True
    )


@pytest.mark.parametrize(
    ("rest", "anonymous"),
    [
        ("rw-p 0 00:00 0 [anon:arena]", True),
        ("---p 0 00:00 0", True),
        ("rw-s 0 00:00 0", False),
        ("rw-p 0 00:00 9 /odd", False),
        ("rw-p 0 00:2a 0 /odd", False),
        ("r-xp 0 00:00 0 [vdso]", False),
    ],
)
def test_what_counts_as_anonymous(tmp_path: Path, rest: str, anonymous: bool) -> None:
    write(tmp_path, "9/maps", f"1000-2000 {rest}")
    (mapping,) = mappings(9, proc=tmp_path)
    assert mapping.anonymous is anonymous


# --- processes that do not answer


@pytest.mark.parametrize("read", [mappings, smaps, procfs.anon_huge, procfs.kernel_page_sizes])
def test_a_process_that_is_gone(read: Callable[[int], object]) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    for pid in (child.pid, 0, -1, 1 << 30):
        with pytest.raises(ProcessGoneError, match=f"process {pid} does not exist") as caught:
            read(pid)
        assert caught.value.errno == errno.ESRCH


def test_a_zombie_is_gone() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        with pytest.raises(ProcessGoneError):
            mappings(pid)
        with pytest.raises(ProcessGoneError):
            smaps(pid)
    finally:
        os.waitpid(pid, 0)


def test_a_kernel_thread_has_no_mappings() -> None:
    comm = Path("/proc/2/comm")
    if not comm.exists() or comm.read_text().strip() != "kthreadd":
        pytest.skip("no kernel threads in this PID namespace")
    assert mappings(2) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.parametrize("read", [mappings, smaps])
def test_a_process_of_somebody_else(read: Callable[[int], object]) -> None:
    with sleeping() as child:

        def as_nobody() -> str:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            try:
                read(child.pid)
            except NotPermittedError as error:
                return f"{error.name} {error}"
            return "it could be read"

        answer = in_a_child(as_nobody)
    assert answer.startswith("EACCES may not read /proc/")
    assert "CAP_SYS_PTRACE" in answer


def test_it_ends_while_we_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Path) -> bytes:
        raise ProcessLookupError(errno.ESRCH, "No such process")

    monkeypatch.setattr(Path, "read_bytes", gone)
    with pytest.raises(ProcessGoneError):
        mappings()


def test_a_kernel_without_smaps(tmp_path: Path) -> None:
    write(tmp_path, "9/maps", "1000-2000 rw-p 00000000 00:00 0")
    with pytest.raises(UnsupportedError, match="CONFIG_PROC_PAGE_MONITOR"):
        smaps(9, proc=tmp_path)


# --- smaps


def test_smaps_tells_the_same_mappings_as_maps() -> None:
    with sleeping() as child:
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        everything = mappings(child.pid)

        def found(*within: range) -> list[Mapping]:
            return [use.mapping for use in smaps(child.pid, within=within)]

        assert [use.mapping for use in smaps(child.pid)] == everything == found(range(1 << 64))
        assert found() == found(range(1, 2)) == []
        for first, second in pairwise(everything):
            last, start = range(first.end - 1, first.end), range(second.start, second.start + 1)
            assert found(last, start) == [first, second]
            assert found(last) == [first] and found(start) == [second]


def test_resident_bytes_follow_what_is_touched() -> None:
    with mmap.mmap(-1, 64 * mmap.PAGESIZE, flags=ANONYMOUS) as memory:
        start = address(memory)
        # A different protection keeps the kernel from merging it with its neighbours.
        ctypes.CDLL(None).mprotect(ctypes.c_void_p(start), 64 * mmap.PAGESIZE, mmap.PROT_READ)
        ctypes.CDLL(None).mprotect(
            ctypes.c_void_p(start), 64 * mmap.PAGESIZE, mmap.PROT_READ | 4 | mmap.PROT_WRITE
        )
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        (before,) = (use for use in smaps() if use.mapping.start == start)
        assert before.rss == 0
        memory[: 10 * mmap.PAGESIZE] = bytes(10 * mmap.PAGESIZE)
        (after,) = (use for use in smaps() if use.mapping.start == start)
        assert after.rss == 10 * mmap.PAGESIZE
        assert (after.anon_huge, after.hugetlb) == (0, 0)
        assert after.kernel_page_size == mmap.PAGESIZE
        assert {"rd", "wr", "nh"} <= after.flags
        assert procfs.anon_huge()[start] == (10 * mmap.PAGESIZE, 0)
        assert procfs.kernel_page_sizes()[start] == mmap.PAGESIZE


def test_transparent_huge_pages_show() -> None:
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.exists() or "[never]" in enabled.read_text():
        pytest.skip("no THP here")
    huge = int(Path(enabled.parent, "hpage_pmd_size").read_text())
    with mmap.mmap(-1, 4 * huge, flags=ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        start = address(memory)
        for offset in range(0, 4 * huge, mmap.PAGESIZE):
            memory[offset] = 1
        holding = [m.start for m in mappings() if m.start <= start < m.end]
        rss, in_huge = procfs.anon_huge()[holding[0]]
        if in_huge == 0:
            pytest.skip("the kernel found no huge page to give")
        assert in_huge % huge == 0
        assert rss >= in_huge >= huge


def test_hugetlb_fields(tmp_path: Path) -> None:
    write(
        tmp_path,
        "9/smaps",
        "1000-2000 rw-p 00000000 00:00 0 \nKernelPageSize:        4 kB\nRss:          4 kB\n"
        "AnonHugePages:         4 kB\nVmFlags: rd wr mr\n"
        "40000000-40400000 rw-p 00000000 00:0f 123   /anon_hugepage (deleted)\n"
        "Size:               4096 kB\nKernelPageSize:     2048 kB\nRss:                   0 kB\n"
        "Shared_Hugetlb:     2048 kB\nPrivate_Hugetlb:    2048 kB\nVmFlags: rd wr mr ht",
    )
    plain, huge = smaps(9, proc=tmp_path)
    assert (plain.rss, plain.hugetlb, plain.flags) == (4096, 0, {"rd", "wr", "mr"})
    assert huge.mapping.name == "/anon_hugepage"
    assert (huge.kernel_page_size, huge.hugetlb, huge.rss) == (2 << 20, 4 << 20, 0)
    assert (plain.anon_huge, huge.anon_huge) == (4096, 0), "a field went over to the next mapping"
    assert "ht" in huge.flags


# --- counters and rights


def test_vmstat_is_restricted_to_migration() -> None:
    counters = procfs.vmstat()
    assert {"pgmigrate_success", "pgmigrate_fail"} <= counters.keys()
    assert not {name for name in counters if name.startswith(("nr_", "pgfault"))}
    real = Path("/proc/vmstat").read_text()
    assert all(f"{name} " in real for name in counters)


def test_vmstat_reads_numbers_and_bears_damage(tmp_path: Path) -> None:
    write(tmp_path, "vmstat", "pgmigrate_success 17\npgmigrate_fail x\nnuma_hit\npgfault 5")
    assert procfs.vmstat(proc=tmp_path) == {"pgmigrate_success": 17}
    assert procfs.vmstat(proc=tmp_path / "none") == {}


@pytest.mark.parametrize(("content", "on"), [("0", False), ("1", True), ("2", True), ("", False)])
def test_numa_balancing(tmp_path: Path, content: str, on: bool) -> None:
    assert not procfs.numa_balancing_on(proc=tmp_path)
    write(tmp_path, "sys/kernel/numa_balancing", content)
    assert procfs.numa_balancing_on(proc=tmp_path) is on


def test_yama(tmp_path: Path) -> None:
    assert procfs.yama_scope(proc=tmp_path) is None
    write(tmp_path, "sys/kernel/yama/ptrace_scope", "1")
    assert procfs.yama_scope(proc=tmp_path) == 1


def test_capability_names_are_those_of_the_kernel_header() -> None:
    header = Path("/usr/include/linux/capability.h")
    if not header.exists():
        pytest.skip("no kernel headers")
    found = re.findall(r"#define\s+(CAP_\w+)\s+(\d+)$", header.read_text(), re.M)
    assert len(found) >= 40
    assert procfs._CAPABILITIES.split()[: len(found)] == [
        name.removeprefix("CAP_") for name, bit in sorted(found, key=lambda pair: int(pair[1]))
    ]


def test_capabilities_of_a_process(tmp_path: Path) -> None:
    status = f"CapInh:\t{1:016x}\nCapEff:\t{1 << 23 | 1 << 41 | 1 << 40:016x}"
    write(tmp_path, "self/status", status)
    assert procfs.capabilities(proc=tmp_path) == {
        "CAP_SYS_NICE",
        "CAP_CHECKPOINT_RESTORE",
        "CAP_41",
    }
    write(tmp_path, "self/status", "CapEff:\tzz")
    assert procfs.capabilities(proc=tmp_path) == set()
    assert procfs.capabilities(proc=tmp_path / "none") == set()


def test_seccomp_mode(tmp_path: Path) -> None:
    assert procfs.seccomp_mode(proc=tmp_path) is None
    write(tmp_path, "7/status", "Seccomp:\t2")
    assert procfs.seccomp_mode(7, proc=tmp_path) == 2
    assert procfs.seccomp_mode() in (None, 0, 2)


def test_errors_are_of_one_family() -> None:
    with pytest.raises(PageferryError) as caught:
        mappings(1 << 30)
    assert isinstance(caught.value, ProcessLookupError)


def test_hugetlbfs_devices_are_written_as_in_maps(tmp_path):
    folder = tmp_path / "self"
    folder.mkdir()
    (folder / "mountinfo").write_text(
        "22 1 0:20 / /sys rw - sysfs sysfs rw\n"
        "40 22 0:27 / /dev/hugepages rw,relatime shared:15 - hugetlbfs hugetlbfs rw,pagesize=2M\n"
        "41 22 1:300 / /mnt/with\\040space rw - hugetlbfs none rw,pagesize=1G\n"
    )
    assert procfs.hugetlbfs_devices(proc=tmp_path) == {"00:1b", "01:12c"}
    assert procfs.hugetlbfs_devices(proc=tmp_path / "absent") == frozenset()


def test_ranges_are_the_mappings_joined():
    with sleeping() as child:
        found = procfs.ranges(child.pid)
        maps = [m for m in procfs.mappings(child.pid) if not m.special]
    assert all(a.stop < b.start for a, b in itertools.pairwise(found))
    assert sum(len(r) for r in found) == sum(m.size for m in maps)
    assert {m.start for m in maps} >= {r.start for r in found}


def test_migration_counters_are_those_of_vmstat():
    found = procfs.migration_counters()
    assert "pgmigrate_success" in found and "thp_migration_split" in found
    names = {n for n in procfs.vmstat() if n.startswith(("pgmigrate_", "thp_migration_"))}
    assert found.keys() == names
    assert all(found[name] <= value for name, value in procfs.vmstat().items() if name in found)

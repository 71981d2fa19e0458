# SPDX-License-Identifier: Apache-2.0
"""The parts of the lab that can be tested without a guest: shapes, jobs, kernels, errors."""

from __future__ import annotations

import io
import os
import random
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from pageferry import lab
from pageferry.errors import PageferryError
from pageferry.lab import (
    cache,
    initramfs,
    job,
    kernel,
    kernel_package,
    packages,
    programs,
    result,
    topology,
)
from pageferry.lab.conversation import MarkedStream
from pageferry.lab.marks import Marks


@pytest.mark.parametrize(
    ("text", "size"),
    [("512M", 512 << 20), ("2G", 2 << 30), ("65536k", 64 << 20), ("1GiB", 1 << 30)],
)
def test_sizes(text: str, size: int) -> None:
    assert lab.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "two", "-1G", "1.5G", "63M", "65M", "1P"])
def test_sizes_that_make_no_sense(text: str) -> None:
    with pytest.raises(lab.LabError, match="EINVAL"):
        lab.parse_size(text)


def test_cpus_are_dealt_over_the_nodes_that_have_any() -> None:
    shapes = lab.TOPOLOGIES
    assert topology.deal_cpus(shapes["two-node"], None) == (1, 1)
    assert topology.deal_cpus(shapes["two-node"], 5) == (3, 2)
    assert topology.deal_cpus(shapes["two-node"], 1) == (1, 0)
    assert topology.deal_cpus(shapes["memory-only"], None) == (2, 0)
    assert topology.deal_cpus(shapes["memoryless"], None) == (1, 1, 1)
    assert topology.deal_cpus(shapes["sparse"], 4) == (4, 0, 0)
    with pytest.raises(lab.LabError, match="0 CPUs"):
        topology.deal_cpus(shapes["two-node"], 0)


def test_topologies_know_their_nodes() -> None:
    assert lab.TOPOLOGIES["sparse"].online == (0, 2)
    assert lab.TOPOLOGIES["memoryless"].with_memory == (0, 2)
    assert lab.TOPOLOGIES["memory-only"].with_cpus == (0,)
    assert lab.plain(3).online == (0, 1, 2)
    with pytest.raises(lab.LabError, match="0 nodes"):
        lab.plain(0)
    after_a_hole = lab.Topology("bad", "", (lab.Node(), lab.Node(False, False), lab.Node()))
    with pytest.raises(lab.LabError, match="after a hole"):
        topology.qemu_arguments(after_a_hole, memory=1 << 30, cpus=2, cpu_model="max")


def test_memory_that_can_be_plugged_comes_in_whole_blocks() -> None:
    shape = lab.TOPOLOGIES["hot-plug"]
    given, needed = topology.qemu_arguments(shape, memory=256 << 20, cpus=2, cpu_model="max")
    assert given[given.index("-m") + 1] == "512M,slots=1,maxmem=768M"
    assert "pc-dimm,id=dimm2,memdev=memory2,node=2" in given
    assert needed == ["memhp_default_state=online_movable"]
    with pytest.raises(lab.LabError, match="multiple of 128M"):
        topology.qemu_arguments(shape, memory=192 << 20, cpus=2, cpu_model="max")


def test_the_mark_ends_a_stream_wherever_it_is_cut() -> None:
    mark = b"aab"
    chance = random.Random(1)
    for text in (b"", b"a", b"aa", b"xaay", b"aaaa", b"abab", bytes(range(256))):
        for _ in range(50):
            seen = bytearray()
            stream = MarkedStream(mark, seen.extend)
            rest = text + mark + b"what comes later"
            while rest:
                cut = chance.randint(1, 4)
                stream.feed(rest[:cut])
                rest = rest[cut:]
            assert stream.ended
            assert seen == text


def test_a_stream_without_its_mark_gives_up_what_it_held_back() -> None:
    seen = bytearray()
    stream = MarkedStream(b"aab", seen.extend)
    stream.feed(b"xaa")
    assert seen == b"x"
    stream.give_up()
    assert seen == b"xaa"


def test_the_job_keeps_odd_arguments_and_environment(tmp_path: Path) -> None:
    words = [b"a b", b"'", b'"$HOME`', b"new\nline", b"", bytes(range(1, 256)), b"*", b"-n"]
    odd = tmp_path / "a 'strange' dir\n"
    odd.mkdir()
    script = job.job_script(
        ["printf", b"%s|", *words, odd], {"PATH": os.environ["PATH"], "X": "1 '2'\n"}, odd
    )
    got = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True).stdout
    assert got == b"|".join([*words, os.fsencode(odd)]) + b"|"
    script = job.job_script(["/bin/sh", "-c", 'pwd; echo "$X"; env'], {"X": "1 '2'\n"}, odd)
    got = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True).stdout
    assert got.startswith(os.fsencode(odd) + b"\n1 '2'\n\n")
    assert b"HOME=" not in got


def test_the_guest_inherits_what_a_virtual_environment_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VIRTUAL_ENV", "/venv")
    monkeypatch.setenv("SECRET_TOKEN", "no")
    got = job.guest_environment({"ADDED": "yes"}, "tcg")
    assert got["VIRTUAL_ENV"] == "/venv"
    assert got["ADDED"] == "yes"
    assert got["PAGEFERRY_LAB"] == "1"
    assert got["PAGEFERRY_LAB_ACCEL"] == "tcg"
    assert "SECRET_TOKEN" not in got


def test_busybox_reads_our_cpio(tmp_path: Path) -> None:
    archive = initramfs.cpio(
        [("d", 0o040755, b""), ("d/file", 0o100644, b"content"), ("odd", 0o100755, b"")]
    )
    (tmp_path / "a.cpio").write_bytes(archive)
    unpack = [programs.find("busybox"), "cpio", "-idu", "-F", "a.cpio"]
    subprocess.run(unpack, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "d/file").read_bytes() == b"content"
    assert (tmp_path / "odd").stat().st_mode == 0o100755


def test_the_initramfs_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    nothing = lab.Kernel(Path("/nowhere"), (), "", "")
    first = initramfs.build_initramfs(nothing)
    assert initramfs.build_initramfs(nothing) == first
    assert first.is_relative_to(tmp_path)
    assert list(first.parent.iterdir()) == [first]


def test_a_relative_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_dir() == tmp_path / ".cache/pageferry/lab"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(lab.LabError, match="set XDG_CACHE_HOME"):
        cache.cache_dir()


def test_kernel_packages_are_told_apart() -> None:
    stock, old = kernel.STOCK_PACKAGES["stock"], kernel.STOCK_PACKAGES["stock-6.1"]
    assert stock.fullmatch("linux-image-6.12.117+deb12-amd64-unsigned")
    assert not stock.fullmatch("linux-image-6.12.117+deb12-cloud-amd64-unsigned")
    assert not stock.fullmatch("linux-image-6.12.117+deb12-rt-amd64-unsigned")
    assert old.fullmatch("linux-image-6.1.0-56-amd64-unsigned")
    assert not old.fullmatch("linux-image-6.1.0-56-cloud-amd64-unsigned")


def test_the_newest_kernel_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"linux-image-6.12.{n}+deb12-amd64-unsigned" for n in (9, 117, 63)]

    def apt(program: str, *arguments: str, cwd: Path | None = None) -> str:
        return "\n".join(names) if arguments[0] == "pkgnames" else "Package: x\nVersion: 1-2\n"

    monkeypatch.setattr(packages, "apt", apt)
    assert kernel._newest("stock") == (names[1], "1-2")
    names.clear()
    with pytest.raises(lab.LabError, match="apt-get update"):
        kernel._newest("stock")


def _package(tmp_path: Path, files: dict[str, bytes]) -> Path:
    """Make a .deb with those files, as far as dpkg-deb cares."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    control = io.BytesIO()
    with tarfile.open(fileobj=control, mode="w"):
        pass
    path = tmp_path / "kernel.deb"
    with path.open("wb") as deb:
        deb.write(b"!<arch>\n")
        members = [("debian-binary", b"2.0\n"), ("control.tar", control.getvalue())]
        for name, content in [*members, ("data.tar", data.getvalue())]:
            deb.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            deb.write(content + b"\n" * (len(content) % 2))
    return path


def test_modules_come_with_what_they_depend_on(tmp_path: Path) -> None:
    def module(*depends: str) -> bytes:
        return b"\x7fELF\0depends=" + ",".join(depends).encode() + b"\0name=x\0"

    where = "./lib/modules/7/kernel/"
    archive = _package(
        tmp_path,
        {
            "./boot/vmlinuz-7": b"not compressed",
            "./lib/modules/7/modules.builtin": b"kernel/built-in.ko\n",
            f"{where}top.ko": module("middle", "other"),
            f"{where}middle.ko": module("rare-one"),
            f"{where}rare-one.ko": module(),
            f"{where}other.ko": module("rare-one"),
            f"{where}netfs.ko": module(),
        },
    )
    made = tmp_path / "made"
    made.mkdir()
    facts = kernel_package.unpack(archive, made, ["built_in", "top"])
    assert facts == {
        "image": "vmlinuz-7",
        "modules": ["rare-one.ko", "middle.ko", "other.ko", "top.ko"],
        "release": "7",
    }
    assert not (made / "netfs.ko").exists()
    with pytest.raises(lab.LabError, match="no module missing"):
        kernel_package.unpack(archive, made, ["missing"])


def test_a_package_without_a_kernel(tmp_path: Path) -> None:
    archive = _package(tmp_path, {"./usr/share/doc/readme": b""})
    with pytest.raises(lab.LabError, match="no kernel"):
        kernel_package.unpack(archive, tmp_path, [])


def test_kernels_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(lab.LabError, match=r"cannot read the kernel /none .*ENOENT"):
        lab.run(["true"], kernel="/none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(lab.LabError, match="not a Linux kernel"):
        lab.run(["true"], kernel=str(tmp_path / "text"))


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    for command, options, said in (
        ([], {}, "no command"),
        (["a\0b"], {}, "NUL"),
        (["true"], {"accel": "hvf"}, "no accelerator"),
        (["true"], {"memory": "1"}, "1 of memory"),
        (["true"], {"cpus": 0}, "0 CPUs"),
        (["true"], {"writable": [tmp_path / "none"]}, "not a directory"),
        (["true"], {"cwd": tmp_path / "none"}, "not a directory"),
        (["true"], {"console": tmp_path / "none" / "file", "accel": "tcg"}, "cannot write"),
    ):
        with pytest.raises(PageferryError, match=re.escape(said)):
            lab.run(command, **options)  # type: ignore[arg-type]


def test_missing_programs_name_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    lab.fetch("stock")
    monkeypatch.setenv("PATH", "/none")
    monkeypatch.setattr(programs, "_SYSTEM_PATHS", "/none")
    with pytest.raises(lab.LabError, match=r"install (qemu-system-x86|util-linux)"):
        lab.run(["true"], accel="tcg")
    with pytest.raises(lab.LabError, match="install busybox-static"):
        programs.static_busybox()


def test_a_dynamic_busybox_does_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "busybox").write_bytes(Path("/bin/sh").read_bytes())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert programs.static_busybox() != Path("/bin/sh").read_bytes()


def test_kvm_is_not_believed_without_a_boot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pageferry.lab import kvm

    monkeypatch.setattr(kvm, "_DEVICE", tmp_path / "kvm")
    assert not lab.kvm_boots().ok
    # A device that opens, and is no KVM.
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(kvm, "cached", lambda name: None)
    monkeypatch.setattr(kvm, "_host_kernel", lambda: None)
    assert lab.kvm_boots() == (False, "not tried: no kernel to boot; run 'pageferry lab fetch'")


def test_explanations_say_what_happened() -> None:
    def explain(verdict: lab.Verdict, boot: float | None, detail: str = "") -> str:
        return lab.GuestResult(
            verdict=verdict,
            returncode=result.LAB_FAILED,
            stdout=b"",
            stderr=b"",
            seconds=60.2,
            boot_seconds=boot,
            accel="tcg",
            kernel="6.12",
            topology="two-node",
            console="\n".join(f"line {number}" for number in range(50)),
            console_path=Path("/logs/console"),
            detail=detail,
        ).explain()

    assert "6.12, panicked during boot" in explain(lab.Verdict.PANIC, None)
    assert "panicked while the command ran" in explain(lab.Verdict.PANIC, 3.0)
    assert "after 60 s" in explain(lab.Verdict.TIMEOUT, None)
    assert "QEMU failed: no room" in explain(lab.Verdict.QEMU_FAILED, None, "no room")
    text = explain(lab.Verdict.NO_EXIT_CODE, 3.0)
    assert "without an exit code" in text
    assert "line 49" in text
    assert "line 29" not in text
    assert text.endswith("whole console: /logs/console")
    assert explain(lab.Verdict.FINISHED, 3.0) == ""


def test_count_is_run_with_another_clock(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where QEMU is started: a real guest of this kind takes too long for each run of the tests."""
    from pageferry import cli
    from pageferry.lab import guest, qemu

    started: list[list[str]] = []

    def start(machine: qemu.Machine, ports: object, *, terminal: bool = False) -> qemu.Qemu:
        started.append(qemu._arguments(machine))
        raise lab.LabError(5, "no guest in this test")

    image = tmp_path / "bzImage"
    image.write_bytes(bytes(0x202) + b"HdrS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(guest, "start", start)
    for verb in ("count", "run"):
        command = ["lab", verb, "--kernel", str(image), "--memory", "256M", "--", "true"]
        if verb == "run":
            command[2:2] = ["--accel", "tcg"]
        assert cli.main(command) == lab.LAB_FAILED
    counted, plain = (" ".join(arguments) for arguments in started)
    assert "-accel tcg,thread=single -icount shift=0,sleep=off" in counted
    assert "thread=multi" in plain and "-icount" not in plain
    assert "no guest in this test" in capsys.readouterr().err


def test_marks_are_nops_here_and_have_their_numbers() -> None:
    marks = Marks()
    with marks.span(0), marks.span(32767):
        pass
    with pytest.raises(ValueError, match="span 32768"), marks.span(32768):
        pass


def test_spans_are_read_and_described(tmp_path: Path) -> None:
    path = tmp_path / "spans"
    path.write_text("4 300 0 290 20\n4 100 1 90 30\n4 200 0 190 10\n7 5 0 5 0\n")
    spans = lab.split.read_spans(path)
    assert spans[1] == lab.split.Span(4, 100, 1, (90, 30))
    assert lab.split.describe(spans).splitlines() == [
        "span 4: 200 instructions (100–300, 3 times); by CPU: 190 20; went on without waiting: 1",
        "span 7: 5 instructions (5–5, 1 times); by CPU: 5 0; went on without waiting: 0",
    ]


def test_a_plugin_that_does_not_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.c"
    broken.write_text("int\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(lab.split, "_SOURCE", broken)
    with pytest.raises(lab.LabError, match=r"cannot compile broken\.c: .*error"):
        lab.split.plugin()
    assert not list((tmp_path / "pageferry").rglob("*.so"))

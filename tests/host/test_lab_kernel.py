# SPDX-License-Identifier: Apache-2.0
"""Kernels that the lab builds, with a source of a few files instead of the distribution's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pageferry import lab
from pageferry.lab import cache, kernel_build, kernel_module, kernel_source
from pageferry.lab.kernel_source import Source, patched_tree

ROOT = Path(__file__).parents[2]
# Stands in for the kernel's own makefiles: the image holds the source's files and the config.
MAKEFILE = """\
tinyconfig:
\techo CONFIG_BASE=y > $(O)/.config
olddefconfig:
\tgrep -v CONFIG_UNKNOWN $(O)/.config > $(O)/.config.new; mv $(O)/.config.new $(O)/.config
bzImage:
\tmkdir -p $(O)/arch/x86/boot $(O)/include/config
\techo 6.12.7 > $(O)/include/config/kernel.release
\tcat mm/migrate.c $(O)/.config > $(O)/arch/x86/boot/bzImage
\techo built >> $(O)/../builds
"""
PATCH = """\
From 0 Mon Sep 17 00:00:00 2001
Subject: [PATCH] a test

--- a/mm/migrate.c
+++ b/mm/migrate.c
@@ -1 +1 @@
-one
+{word}
diff --git a/mm/new.c b/mm/new.c
new file mode 100644
--- /dev/null
+++ b/mm/new.c
@@ -0,0 +1 @@
+new
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = tmp_path / "source"
    (directory / "mm").mkdir(parents=True)
    (directory / "mm/migrate.c").write_text("one\n")
    (directory / "mm/other.c").write_text("other\n")
    (directory / "Makefile").write_text(MAKEFILE)
    return Source(directory, "6.12.7-1")


def write_patch(directory: Path, word: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "0001-a-test.patch"
    path.write_text(PATCH.format(word=word))
    return path


def test_only_what_changes_is_written(source: Source, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    first = write_patch(tmp_path / "a", "two")
    assert patched_tree(source, [first], tree)
    assert (tree / "mm/migrate.c").read_text() == "two\n"
    assert (tree / "mm/new.c").read_text() == "new\n"
    assert (source.directory / "mm/migrate.c").read_text() == "one\n"
    assert (tree / "mm/other.c").samefile(source.directory / "mm/other.c")

    before = (tree / "mm/migrate.c").stat()
    assert not patched_tree(source, [first], tree)
    assert (tree / "mm/migrate.c").stat() == before

    new = (tree / "mm/new.c").stat()
    assert patched_tree(source, [write_patch(tmp_path / "b", "three")], tree)
    assert (tree / "mm/migrate.c").read_text() == "three\n"
    assert (tree / "mm/new.c").stat() == new

    assert patched_tree(source, [], tree)
    assert (tree / "mm/migrate.c").read_text() == "one\n"
    assert not (tree / "mm/new.c").exists()


def test_a_patch_that_does_not_apply_leaves_the_tree(source: Source, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    patched_tree(source, [write_patch(tmp_path / "a", "two")], tree)
    wrong = write_patch(tmp_path / "b", "three")
    wrong.write_text(wrong.read_text().replace("-one", "-another"))
    with pytest.raises(lab.LabError, match=r"0001-a-test.patch does not apply"):
        patched_tree(source, [wrong], tree)
    assert (tree / "mm/migrate.c").read_text() == "two\n"


def test_a_newer_source_replaces_the_tree(source: Source, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    patch = write_patch(tmp_path / "a", "two")
    patched_tree(source, [patch], tree)
    (tree / "left-over").touch()
    assert patched_tree(Source(source.directory, "6.12.8-1"), [patch], tree)
    assert not (tree / "left-over").exists()
    assert (tree / "mm/migrate.c").read_text() == "two\n"


@pytest.fixture
def ours(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel directory, with apt's part taken over by ``source``."""
    monkeypatch.setattr(kernel_build, "fetch_source", lambda notify: source)
    monkeypatch.setattr(kernel_build.programs, "find", lambda name: name)
    directory = tmp_path / "kernel"
    write_patch(directory / "patches/6.12", "two")
    (directory / "config").mkdir()
    (directory / "config/guest.config").write_text("CONFIG_GUEST=y\n")
    (directory / "config/debug.config").write_text("CONFIG_DEBUG=y\n")
    return directory


def builds(name: str) -> int:
    record = cache.cache_dir() / "kernel-build" / name / "builds"
    return len(record.read_text().split()) if record.exists() else 0


def test_a_kernel_is_built_when_something_changed(ours: Path) -> None:
    told: list[str] = []
    built = lab.build("patched", directory=ours, notify=told.append)
    assert built.image.read_text() == "two\nCONFIG_BASE=y\nCONFIG_GUEST=y\n"
    assert built.release == "6.12.7" and built.source == "patched 6.12.7-1"
    assert builds("patched") == 1 and any("building patched" in line for line in told)

    assert lab.build("patched", directory=ours, notify=told.append) == built
    assert builds("patched") == 1

    write_patch(ours / "patches/6.12", "three")
    again = lab.build("patched", directory=ours, notify=told.append)
    assert again.image.read_text().startswith("three\n") and again.image != built.image
    assert builds("patched") == 2

    write_patch(ours / "patches/6.12", "two")  # back, while it is still there
    assert lab.build("patched", directory=ours, notify=told.append) == built
    assert builds("patched") == 2


def test_old_images_are_removed(ours: Path) -> None:
    built = [
        (write_patch(ours / "patches/6.12", word), lab.build("patched", directory=ours, notify=str))
        for word in ("one1", "two2", "three3", "four4", "five5", "six6")
    ]
    assert [kernel.image.exists() for _, kernel in built] == [False, False, True, True, True, True]


def test_each_recipe_is_its_own(ours: Path) -> None:
    vanilla = lab.build("vanilla", directory=ours, notify=lambda line: None)
    assert vanilla.image.read_text() == "one\nCONFIG_BASE=y\nCONFIG_GUEST=y\n"
    debug = lab.build("patched-debug", directory=ours, notify=lambda line: None)
    assert debug.image.read_text() == "two\nCONFIG_BASE=y\nCONFIG_GUEST=y\nCONFIG_DEBUG=y\n"
    assert builds("vanilla") == builds("patched-debug") == 1


def test_an_option_that_kconfig_drops_is_an_error(ours: Path) -> None:
    (ours / "config/guest.config").write_text("CONFIG_UNKNOWN=y\n")
    with pytest.raises(lab.LabError, match="CONFIG_UNKNOWN=y"):
        lab.build("patched", directory=ours, notify=lambda line: None)


def test_a_build_that_fails_says_what_make_said(ours: Path, source: Source) -> None:
    makefile = source.directory / "Makefile"
    makefile.write_text(makefile.read_text().replace("\techo built", "\techo no good; false"))
    with pytest.raises(lab.LabError, match=r"(?s)no good.*setup_kernel"):
        lab.build("patched", directory=ours, notify=lambda line: None)
    makefile.write_text(MAKEFILE)


@pytest.fixture
def module(ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources of a live module that "builds" by being copied; the headers are there."""
    (tmp_path / "headers/6.12.7/build").mkdir(parents=True)
    (tmp_path / "headers/6.12.7/build/Makefile").touch()
    monkeypatch.setattr(kernel_module, "_HEADERS", tmp_path / "headers")
    directory = ours / "module"
    directory.mkdir()
    (directory / "Kbuild").touch()
    (directory / "Makefile").write_text("all:\n\tcat pageferry_mt.c > pageferry_mt.ko\n")
    (directory / "pageferry_mt.c").write_text("first")
    return directory


def test_the_live_module_is_loaded_last_and_built_when_it_changed(
    module: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    stock = lab.Kernel(tmp_path / "vmlinux", (tmp_path / "9p.ko",), "6.12.7", "stock")

    def build() -> lab.Kernel:
        return kernel_module.with_module(stock, directory=module.parent, notify=told.append)

    kernel = build()
    assert kernel.modules[0] == tmp_path / "9p.ko" and len(kernel.modules) == 2
    assert kernel.modules[1].read_text() == "first" and kernel.release == "6.12.7"
    assert build() == kernel and len(told) == 1
    (module / "pageferry_mt.c").write_text("second")
    assert build().modules[1].read_text() == "second" and len(told) == 2


def test_a_live_module_that_cannot_be_built_says_why(module: Path) -> None:
    with pytest.raises(lab.LabError, match=r"apt-get install linux-headers-6\.13\.0"):
        kernel_module.build_module("6.13.0", directory=module.parent, notify=str)
    (module / "Makefile").write_text("all:\n\techo this and that; false\n")
    with pytest.raises(lab.LabError, match=r"(?s)does not build.*this and that"):
        kernel_module.build_module("6.12.7", directory=module.parent, notify=str)


def test_where_the_patches_are(ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernel_build.DIRECTORY_VARIABLE, raising=False)
    below = tmp_path / "some/where"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert kernel_build.kernel_directory() == ours
    monkeypatch.chdir("/")
    with pytest.raises(lab.LabError, match="source tree"):
        kernel_build.kernel_directory()
    monkeypatch.setenv(kernel_build.DIRECTORY_VARIABLE, str(ours))
    assert kernel_build.kernel_directory() == ours
    monkeypatch.setenv(kernel_build.DIRECTORY_VARIABLE, str(below))
    with pytest.raises(lab.LabError, match="no patches in"):
        kernel_build.kernel_directory()


def test_the_series_is_whole() -> None:
    patches = sorted((ROOT / "kernel/patches/6.12").glob("*.patch"))
    assert [patch.name[:4] for patch in patches] == [f"{n:04}" for n in range(1, 12)]
    for patch in patches:
        text = patch.read_text()
        assert "\nSigned-off-by: " in text and "\n---\n" in text
        subject = text.split("\n\n")[0]
        assert f"[PATCH {int(patch.name[:2] + patch.name[2:4]):02}/11]" in subject, subject
    added = [line for patch in patches for line in patch.read_text().splitlines()]
    assert (
        "+#define MPOL_MF_MOVE_MT\t (1 << 7) /* With a MOVE flag: let several threads copy */"
        in (added)
    )


def test_results_of_a_build_as_json(
    ours: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pageferry import cli

    monkeypatch.setenv(kernel_build.DIRECTORY_VARIABLE, os.fspath(ours))
    assert cli.main(["lab", "build-kernel", "--config", "vanilla", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["vanilla"]
    assert facts["release"] == "6.12.7" and Path(facts["image"]).exists()


def test_the_newest_source_is_what_apt_would_install(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = "linux-source-6.12:\n  Installed: (none)\n  Candidate: 6.12.117-1\n"
    monkeypatch.setattr(kernel_source.packages, "apt", lambda *arguments: shown)
    assert kernel_source._newest_version() == "6.12.117-1"
    monkeypatch.setattr(kernel_source.packages, "apt", lambda *arguments: "")
    assert kernel_source._newest_version() is None

# SPDX-License-Identifier: Apache-2.0
"""Build guests' kernels from the distribution's source and the patches in ``kernel/``."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..cache import write_atomically
from . import programs
from .cache import cache_dir, locked, scratch_dir
from .errors import LabError
from .kernel import Kernel
from .kernel_source import Source, fetch_source, patched_tree

SERIES = Path("patches/6.12")
DIRECTORY_VARIABLE = "PAGEFERRY_KERNEL_DIR"
_PROGRESS_SECONDS = 15.0
_IMAGES_KEPT = 4
# The same image for the same source, whoever builds it, wherever and when.
_REPRODUCIBLE = {
    "KBUILD_BUILD_TIMESTAMP": "2026-01-01",
    "KBUILD_BUILD_USER": "pageferry",
    "KBUILD_BUILD_HOST": "lab",
    "KBUILD_BUILD_VERSION": "1",
    "LC_ALL": "C",
}


@dataclass(frozen=True)
class Recipe:
    """What a kernel is made of: with the patches or without, and its config fragments."""

    patched: bool
    fragments: tuple[str, ...]
    summary: str


RECIPES = {
    "patched": Recipe(True, ("guest.config",), "with MPOL_MF_MOVE_MT and vm.mt_page_copy"),
    "vanilla": Recipe(False, ("guest.config",), "the same configuration, without the patches"),
    "patched-debug": Recipe(
        True,
        ("guest.config", "debug.config"),
        "patched, with KASAN, lockdep, DEBUG_ATOMIC_SLEEP, DEBUG_VM and error injection",
    ),
    "partly-patched": Recipe(
        True, ("guest.config",), "with the first patches only, for scripts/test_patches"
    ),
    "idle": Recipe(False, ("guest.config", "idle.config"), "vanilla, with idle page tracking"),
}


def build(
    name: str,
    *,
    directory: Path | None = None,
    jobs: int | None = None,
    notify: Callable[[str], None],
) -> Kernel:
    """Return the kernel ``name`` of RECIPES, built if need be.

    ``directory`` is pageferry's ``kernel/`` (else $PAGEFERRY_KERNEL_DIR, else that of the
    source tree around the working directory); ``jobs`` make's -j (else one for each CPU);
    ``notify`` is told in a line what goes on. A kernel is built again only when source,
    patches, configuration or compiler change, and then only what that reaches. The first
    build takes about ten minutes of two CPUs and 4 GB in the cache. Raises LabError when
    something for the build is missing, a patch does not apply, or the build fails.
    """
    recipe = RECIPES[name]
    ours = kernel_directory(directory)
    for program in ("make", "gcc", "bc", "bison", "flex", "ld"):
        programs.find(program)
    source = fetch_source(notify)
    patches = sorted((ours / SERIES).glob("*.patch")) if recipe.patched else []
    fragments = [ours / "config" / fragment for fragment in recipe.fragments]
    key = _key(source, [*patches, *fragments])
    with locked(f"kernel-build-{name}"):
        place = cache_dir() / "kernel-build" / name
        image = place / f"bzImage-{key}"
        if not image.exists():
            _make_image(source, patches, fragments, place, image, jobs, notify)
    facts = json.loads(image.with_suffix(".json").read_text())
    return Kernel(image, (), facts["release"], f"{name} {source.version}")


def kernel_directory(given: Path | None = None) -> Path:
    """Return pageferry's ``kernel/`` directory; raises LabError (ENOENT) when there is none."""
    named = given or os.environ.get(DIRECTORY_VARIABLE)
    around = [parent / "kernel" for parent in (Path.cwd(), *Path.cwd().parents)]
    for directory in [Path(named)] if named else around:
        if any((directory / SERIES).glob("*.patch")):
            return directory.absolute()
    raise LabError(
        errno.ENOENT,
        f"no patches in {Path(named) / SERIES}" if named else "no kernel/patches/6.12 found here",
        "run this inside pageferry's source tree, or set "
        f"{DIRECTORY_VARIABLE} to its kernel directory",
    )


def source_tree(name: str) -> Path:
    """Return where the source of a kernel that ``build`` has built lies."""
    return cache_dir() / "kernel-build" / name / "source"


def _key(source: Source, files: list[Path]) -> str:
    digest = hashlib.sha256(source.version.encode())
    digest.update(_output("gcc", "--version"))
    for file in files:
        try:
            digest.update(b"\0" + file.read_bytes())
        except OSError as error:
            raise LabError(error.errno or errno.EIO, f"cannot read {file}") from error
    return digest.hexdigest()[:16]


def _make_image(
    source: Source,
    patches: list[Path],
    fragments: list[Path],
    place: Path,
    image: Path,
    jobs: int | None,
    notify: Callable[[str], None],
) -> None:
    tree, out = place / "source", place / "build"
    out.mkdir(parents=True, exist_ok=True)
    patched_tree(source, patches, tree)
    _configure(tree, out, fragments)
    begin = time.monotonic()
    notify(f"building {place.name} Linux {source.version} in {out}")
    _make(tree, out, ["bzImage"], jobs or len(os.sched_getaffinity(0)), notify)
    notify(f"built in {time.monotonic() - begin:.0f} s")
    release = (out / "include/config/kernel.release").read_text().strip()
    old = sorted(place.glob("bzImage-*.json"), key=lambda path: path.stat().st_mtime)
    for path in old[: -(_IMAGES_KEPT - 1)]:
        path.with_suffix("").unlink(missing_ok=True)
        path.unlink()
    facts = json.dumps({"release": release}) + "\n"
    write_atomically(image.with_suffix(".json"), facts.encode())
    write_atomically(image, (out / "arch/x86/boot/bzImage").read_bytes())


def _configure(tree: Path, out: Path, fragments: list[Path]) -> None:
    """Write ``out``/.config: tinyconfig and the fragments. Unchanged, it is left alone."""
    with scratch_dir() as scratch:
        _make(tree, scratch, ["tinyconfig"])
        config = scratch / ".config"
        with config.open("a") as file:
            for fragment in fragments:  # the last line about an option counts
                file.write(fragment.read_text())
        _make(tree, scratch, ["olddefconfig"])
        lost = _lost(config.read_text(), [fragment.read_text() for fragment in fragments])
        if lost:
            raise LabError(
                errno.EINVAL,
                f"this kernel does not take {', '.join(lost)}",
                "something that the option depends on is missing from kernel/config",
            )
        content = config.read_bytes()
    if not (out / ".config").exists() or (out / ".config").read_bytes() != content:
        write_atomically(out / ".config", content)


def _lost(config: str, fragments: list[str]) -> list[str]:
    """Return the options that the fragments set and the configuration does not have so."""
    wanted = {
        line.partition("=")[0]: line.strip()
        for fragment in fragments
        for line in fragment.splitlines()
        if line.startswith("CONFIG_")
    }
    lines = set(config.splitlines())
    names = {line.partition("=")[0] for line in lines}
    return [
        line
        for option, line in wanted.items()
        if (option in names if line.endswith("=n") else line not in lines)
    ]


def _make(
    tree: Path,
    out: Path,
    targets: list[str],
    jobs: int = 1,
    notify: Callable[[str], None] | None = None,
) -> None:
    """Run make for the kernel, and tell how far it is; raises LabError when it fails."""
    last: deque[str] = deque(maxlen=30)
    told, objects = time.monotonic(), 0
    with subprocess.Popen(
        [programs.find("make"), "-C", str(tree), f"O={out}", f"-j{jobs}", *targets],
        env={**os.environ, **_REPRODUCIBLE},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last.append(line.rstrip())
                objects += line.lstrip().startswith(("CC ", "AS "))
                if notify and time.monotonic() - told > _PROGRESS_SECONDS:
                    told = time.monotonic()
                    notify(f"{objects} objects compiled, now {line.strip()}")
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise LabError(
            errno.EIO,
            "make failed:\n" + "\n".join(last),
            "scripts/setup_kernel installs what a kernel build needs",
        )


def _output(program: str, *arguments: str) -> bytes:
    return subprocess.run(
        [programs.find(program), *arguments], capture_output=True, stdin=subprocess.DEVNULL
    ).stdout

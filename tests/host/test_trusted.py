# SPDX-License-Identifier: Apache-2.0
"""Files that decide something: whose they are, who can write them, how long they are."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pageferry.cache import write_atomically
from pageferry.errors import PageferryError
from pageferry.preload import Counters, environment
from pageferry.switch import read_switch
from pageferry.trusted import LONGEST, read_trusted

OURS = (os.geteuid(),)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "etc/pageferry.toml"
    path.parent.mkdir()
    path.write_text("mt = 1\n")
    path.chmod(0o644)
    return path


def test_what_is_ours_is_read_whole(file: Path) -> None:
    assert read_trusted(file, owners=OURS) == b"mt = 1\n"
    file.write_bytes(b"#" * LONGEST)
    assert read_trusted(file, owners=OURS) == b"#" * LONGEST


def spoilt(file: Path, how: str) -> None:
    if how == "link":
        file.rename(file.with_name("elsewhere"))
        file.symlink_to(file.with_name("elsewhere"))
    elif how == "loop":
        file.unlink()
        file.symlink_to(file)
    elif how in ("fifo", "folder"):
        file.unlink()
        (os.mkfifo if how == "fifo" else os.mkdir)(file)
    elif how == "device":
        file.unlink()
        file.symlink_to("/dev/zero")
    elif how in ("group", "others"):
        file.chmod(0o664 if how == "group" else 0o646)
    elif how == "long":
        file.write_bytes(b"#" * (LONGEST + 1))


WAYS = {
    "fifo": "no regular file",
    "folder": "no regular file",
    "device": "no regular file",
    "loop": "symbolic link",
    "group": "others can write it",
    "others": "others can write it",
    "long": "longer than 64 KiB",
}


@pytest.mark.parametrize("how", WAYS)
def test_a_switch_that_others_can_write_is_refused(file: Path, how: str) -> None:
    spoilt(file, how)
    with pytest.raises(ValueError, match=WAYS[how]):
        read_trusted(file, owners=OURS, links=True)
    with pytest.raises(PageferryError, match=WAYS[how]):
        read_switch(file.parents[1])


def test_a_link_is_followed_only_where_the_directory_is_the_administrators(file: Path) -> None:
    spoilt(file, "link")
    with pytest.raises(ValueError, match="symbolic link"):
        read_trusted(file, owners=OURS)
    assert read_switch(file.parents[1]).mode == "always"


def test_a_switch_of_another_user_is_refused(file: Path) -> None:
    with pytest.raises(ValueError, match=f"another user .uid {OURS[0]}"):
        read_trusted(file, owners=(OURS[0] + 1,))
    if OURS[0] == 0:
        os.chown(file, 65534, 65534)
        with pytest.raises(PageferryError, match="uid 65534"):
            read_switch(file.parents[1])


@pytest.mark.parametrize(
    "text",
    ["mt = " + "[" * 5000, "mt = " + "9" * 5000, "[[[", "mt = '\0'", "9" * 5000 + " = 1"],
)
def test_a_switch_that_nobody_would_write(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(PageferryError, match="EINVAL") as info:
        read_switch(file.parents[1])
    assert len(str(info.value)) < 500


def test_a_cache_is_its_users_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("before")
    path = tmp_path / "cache/pageferry.json"
    write_atomically(path, b"1", 0o600)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    path.symlink_to(target)
    write_atomically(path, b"2")
    assert not path.is_symlink()
    assert (path.read_bytes(), target.read_text()) == (b"2", "before")


# --- the preload library

PROGRAM = """
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
count = 4096
memory = mmap.mmap(-1, count * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
ctypes.memset(start, 1, count * 4096)
pages = (ctypes.c_ulong * count)(*(start + 4096 * i for i in range(count)))
nodes, status = (ctypes.c_int * count)(), (ctypes.c_int * count)(*[-1] * count)
libc.move_pages.restype = ctypes.c_long
arguments = (ctypes.c_ulong(count), pages, nodes, status, 2)
print(libc.move_pages(0, *arguments), set(status))
"""
NUMA = ctypes.CDLL(None).syscall(239, 0, 0, 0, 0, 0) == 0  # get_mempolicy on x86-64


def moved(**variables: str) -> str:
    values = environment("always", threads=2, base=os.environ)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | values | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.skipif(os.uname().machine != "x86_64" or not NUMA, reason="no move_pages here")
def test_a_log_that_is_no_file_stops_nothing(tmp_path: Path) -> None:
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    link.symlink_to(tmp_path / "target")
    for log in (fifo, link, tmp_path, tmp_path / "no/folder"):
        assert moved(PAGEFERRY_LOG=str(log)) == "0 {0}\n"
    assert not (tmp_path / "target").exists()
    log = tmp_path / "log"
    moved(PAGEFERRY_LOG=str(log))
    assert re.match(r"pageferry\[\d+\]: move_pages of process", log.read_text())
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.uname().machine != "x86_64" or not NUMA, reason="no move_pages here")
def test_counters_go_into_no_file_of_anybody_elses() -> None:
    with Counters() as counters:
        moved(PAGEFERRY_STATS=str(counters.path))
        assert counters.read().calls + counters.read().passed == 1
        before = counters.read()
        counters.path.chmod(0o622)
        moved(PAGEFERRY_STATS=str(counters.path))
        counters.path.chmod(0o600)
        assert counters.read() == before
        os.truncate(counters.path, 8)  # shorter than the counters: nothing is mapped
        assert moved(PAGEFERRY_STATS=str(counters.path)) == "0 {0}\n"


@pytest.mark.skipif(os.uname().machine != "x86_64" or not NUMA, reason="no move_pages here")
@pytest.mark.parametrize(
    "text", ["9223372036854775807", "0-9223372036854775807", "5--3", "0-", "4294967296,1", "9" * 99]
)
def test_lists_that_nobody_would_write(text: str) -> None:
    assert moved(PAGEFERRY_CPUS=text, PAGEFERRY_NODES=text, PAGEFERRY_THREADS=text) == "0 {0}\n"

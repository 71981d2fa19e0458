#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checkpoint a process that has moved its memory with CRIU, restore it, and move again.

In a two-node guest. CRIU looks at every mapping, descriptor and thread of a process, and refuses
what it does not know; what it restores must hold the bytes, and be able to move them, by either
engine. Exits with 1 where not. It is Debian's package; the modules that CRIU wants and the lab does
not load come from the guest's kernel package, into build-tests-criu.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

import guest
import pageferry
from pageferry import lab
from pageferry.lab import kernel_package, packages

Array = npt.NDArray[np.int64]
ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build-tests-criu"
ORDER = BUILD / "order"
# What CRIU 3.17 asks the kernel about before it does anything. libcrc32c takes the first unasked.
MODULES = ("crc32c_generic", "nf_tables", "unix_diag", "inet_diag", "tcp_diag", "udp_diag",
           "raw_diag", "af_packet_diag", "netlink_diag", "tun", "veth")  # fmt: skip
SECONDS = 60.0  # for each step


def fetch_modules() -> None:
    """Unpack them for the kernel that the guest will have."""
    kernel = lab.find_kernel("stock")
    name, version = kernel.source.split()
    if ORDER.exists() and ORDER.read_text().split("\n", 1)[0] == kernel.source:
        return
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        archive = packages.download(name, version, Path(folder))
        facts = kernel_package.unpack(archive, BUILD, MODULES)
    ORDER.write_text("\n".join([kernel.source, *facts["modules"]]))


def moves(plain: Array, ours: Array) -> int:
    """Move arrays to each node, by both engines; check them. Returns the bytes that moved."""
    moved = 0
    for node in pageferry.topology().memory_nodes:
        for array, engine in (plain, "kernel"), (plain, "user"), (ours, "user"), (ours, "kernel"):
            result = pageferry.move(array, node, engine=engine)
            assert result.complete, result
            moved += result.bytes_moved
    assert (plain == np.arange(len(plain))).all()
    assert (ours == np.arange(len(ours))).all()
    return moved


def target(out: Path) -> None:
    """Move, and again when told to by SIGUSR1, and note what came of it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    plain = np.arange(1 << 20)
    ours = pageferry.empty(1 << 19, dtype=np.int64, node=0)
    ours[:] = np.arange(len(ours))
    while True:
        try:
            said = f"whole: {moves(plain, ours)} bytes moved"
        except Exception as error:
            said = f"broken: {error!r}"
        with open(out, "a") as file:
            file.write(said + "\n")
        signal.sigwait({signal.SIGUSR1})


def wait_for(out: Path, lines: int) -> str:
    """Return the last of so many lines of a file, when they are there."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        found = out.read_text().splitlines() if out.exists() else []
        if len(found) >= lines:
            return found[lines - 1]
        time.sleep(0.1)
    sys.exit(f"test_criu: nothing heard within {SECONDS:.0f} s")


def criu(command: str, images: Path, *words: str) -> None:
    """Run CRIU; ends the script with the end of its log where it fails."""
    log = images / f"{command}.log"
    code = subprocess.run(
        ["criu", command, "-D", images, "-o", log.name, "-v4", *words], stdin=subprocess.DEVNULL
    ).returncode
    if code:
        text = log.read_text() if log.exists() else ""
        sys.exit(f"test_criu: criu {command} ended with {code}\n{text[-3000:]}")
    print(f"criu {command}: done", flush=True)


def here(folder: Path) -> None:
    """Do it all, as root of a guest."""
    for module in ORDER.read_text().splitlines()[1:]:
        subprocess.run(["insmod", BUILD / module], check=True)
    out, images = folder / "out", folder / "images"
    images.mkdir()
    with open(folder / "errors", "w") as errors:
        process = subprocess.Popen(
            [sys.executable, __file__, "--target", out],
            stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, cwd=folder,
            start_new_session=True,
        )  # fmt: skip
    heard = [wait_for(out, 1)]
    criu("dump", images, "-t", str(process.pid))
    process.wait(SECONDS)  # its number must be free
    criu("restore", images, "-d")
    for lines in 2, 3:
        os.kill(process.pid, signal.SIGUSR1)
        heard.append(wait_for(out, lines))
    os.kill(process.pid, signal.SIGKILL)
    print(f"before: {heard[0]}\nrestored: {heard[1]}\nand once more: {heard[2]}")
    # Each array was on each of two nodes, so all of it has moved at least once.
    least = 12 << 20
    if not all(said.startswith("whole: ") and int(said.split()[1]) >= least for said in heard):
        sys.exit("test_criu: memory is not what it was, or did not move")


def main() -> int:
    """Fetch modules, run in a guest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--here", action="store_true", help="on this machine, a guest")
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.target:
        target(args.target)
    if args.here:
        with tempfile.TemporaryDirectory() as folder:
            here(Path(folder))
        return 0
    fetch_modules()
    arguments = ["--topology", "two-node", "--memory", "768M", "--cpus", "2", "--timeout", "300"]
    return guest.run(arguments, [sys.executable, __file__, "--here"])


if __name__ == "__main__":
    sys.exit(main())

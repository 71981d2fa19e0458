# SPDX-License-Identifier: Apache-2.0
"""Become a container's process, as far as seccomp and capabilities go, and run the command.

Usage: restricted.py PROFILE CAPABILITIES WORDS...; a profile of Kubernetes that denies by name, and
capabilities with commas between. Prints the errno of unshare(2) first.
"""

from __future__ import annotations

import ctypes
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

from pageferry import cli

CAPABILITIES = {"DAC_READ_SEARCH": 2, "SYS_PTRACE": 19, "SYS_NICE": 23}
NO_NEW_PRIVS, SET_SECCOMP, FILTER = 38, 22, 2
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # of classic BPF: a word, a comparison, the end
ERRNO, ALLOW = 0x00050000, 0x7FFF0000
CAPABILITY_VERSION = 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


def call_numbers() -> dict[str, int]:
    """The system calls of this machine, by the C compiler's headers."""
    text = subprocess.run(
        ["gcc", "-E", "-dM", "-include", "sys/syscall.h", "-xc", "/dev/null"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return {name: int(n) for name, n in re.findall(r"#define __NR_(\w+) (\d+)$", text, re.M)}


def check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), what)


def deny(profile: Path) -> None:
    """Refuse what the profile names, from now on."""
    value = json.loads(profile.read_text())
    (rule,) = value["syscalls"]
    assert (value["defaultAction"], rule["action"]) == ("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO")
    numbers = call_numbers()
    steps = [(LOAD, 0, 0, 0)]
    for name in rule["names"]:
        if name in numbers:  # not every machine has each
            steps += [(EQUAL, 0, 1, numbers[name]), (RETURN, 0, 0, ERRNO | rule["errnoRet"])]
    steps.append((RETURN, 0, 0, ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code))
    check(libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    check(libc.prctl(SET_SECCOMP, FILTER, ctypes.c_char_p(program), 0, 0), "seccomp")


def keep(names: list[str]) -> None:
    """Give up all capabilities but these."""
    mask = sum(1 << CAPABILITIES[name] for name in names)
    header = struct.pack("Ii", CAPABILITY_VERSION, 0)
    check(libc.capset(header, struct.pack("6I", mask, mask, 0, 0, 0, 0)), "capset")


def main() -> int:
    deny(Path(sys.argv[1]))
    keep(sys.argv[2].split(","))
    ctypes.set_errno(0)
    libc.unshare(0)  # of nothing, which nobody else refuses
    print(ctypes.get_errno(), flush=True)
    return cli.main(sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main())

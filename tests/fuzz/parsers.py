# SPDX-License-Identifier: Apache-2.0
"""Every parser of the package as a target for fuzzing: bytes in, and what may come of them.

A target returns or raises one of its ``errors``; anything else, or a value that breaks what its
check says, is a finding. Inputs are the files of ``corpus/NAME`` and what hypothesis makes of them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from pageferry import calibration, procfs, scan, sysfs
from pageferry.commands.plan import read_plan
from pageferry.described import parse_machine
from pageferry.errors import DescriptionError, NodeError, PageferryError, RangeError
from pageferry.flags import format_nodes, parse_cpu_list, parse_nodes, parse_range, parse_size
from pageferry.switch import read_switch

CORPUS = Path(__file__).with_name("corpus")
NODES = frozenset({0, 1, 5})
_FOLDER = tempfile.TemporaryDirectory(prefix="pageferry-fuzz-")
ROOT = Path(_FOLDER.name)
PID = 4711


def _file(name: str, data: bytes, mode: int = 0o600) -> Path:
    path = ROOT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return path


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def _nodes(data: bytes) -> None:
    found = parse_nodes(_text(data), NODES)
    assert found and found <= NODES
    assert parse_nodes(format_nodes(found), NODES) == found


def _cpus(data: bytes) -> None:
    found = parse_cpu_list(_text(data))
    assert all(0 <= cpu < 1 << 16 for cpu in found)
    assert parse_cpu_list(format_nodes(found)) == found


def _size(data: bytes) -> None:
    assert 0 <= parse_size(_text(data)) < 1 << 64


def _range(data: bytes) -> None:
    found = parse_range(_text(data))
    assert 0 <= found.start < found.stop <= 1 << 64


def _maps(data: bytes) -> None:
    _file(f"{PID}/maps", data)
    _file(f"{PID}/status", b"State:\tS\n")
    assert all(type(entry.start) is int for entry in procfs.mappings(PID, proc=ROOT))
    assert all(type(part) is range for part in procfs.ranges(PID, proc=ROOT))


def _smaps(data: bytes) -> None:
    _file(f"{PID}/smaps", data)
    _file(f"{PID}/status", b"State:\tS\n")
    assert all(use.rss >= 0 for use in procfs.smaps(PID, proc=ROOT))


def _numa_maps(data: bytes) -> None:
    _file(f"{PID}/numa_maps", data)
    nodes, hugetlb = scan.memory_by_node(PID, proc=ROOT)
    assert 0 <= hugetlb <= sum(nodes.values())


def _stat(data: bytes) -> None:
    procfs.stat(_file("stat", data))


def _status(data: bytes) -> None:
    _file(f"{PID}/status", data)
    procfs.seccomp_mode(PID, proc=ROOT)
    procfs.capabilities(PID, proc=ROOT)


def _meminfo(data: bytes) -> None:
    path = _file("meminfo", data)
    assert all(value >= 0 for value in sysfs.meminfo(path).values())
    sysfs.number(path), sysfs.numbers(path), sysfs.choice(path)


def _vmstat(data: bytes) -> None:
    _file("vmstat", data)
    procfs.vmstat(proc=ROOT)


def _plan(data: bytes) -> None:
    plan = read_plan(str(_file("plan.json", data)))
    assert type(plan).from_dict(json.loads(json.dumps(plan.as_dict()))) == plan


def _calibration(data: bytes) -> None:
    data = data.replace(b'"MACHINE"', json.dumps(calibration.identity()).encode())
    found = calibration.load(_file("calibration.json", data))
    assert found is not None
    assert found.costs.as_dict()


def _machine(data: bytes) -> None:
    machine = parse_machine(_text(data))
    assert machine.nodes


def _switch(data: bytes) -> None:
    _file("etc/pageferry.toml", data)
    found = read_switch(ROOT)
    assert found.mode in ("flag", "always", "never")
    assert found.threads is None or found.threads > 0


@dataclass(frozen=True)
class Target:
    """A function that takes any bytes, and the exceptions that it may answer with."""

    check: Callable[[bytes], None]
    errors: tuple[type[Exception], ...]


TARGETS = {
    "nodes": Target(_nodes, (NodeError,)),
    "cpus": Target(_cpus, (ValueError,)),
    "size": Target(_size, (RangeError,)),
    "range": Target(_range, (RangeError,)),
    "maps": Target(_maps, (ValueError,)),
    "smaps": Target(_smaps, (ValueError,)),
    "numa_maps": Target(_numa_maps, ()),
    "stat": Target(_stat, (ValueError,)),
    "status": Target(_status, ()),
    "meminfo": Target(_meminfo, ()),
    "vmstat": Target(_vmstat, ()),
    "plan": Target(_plan, (DescriptionError,)),
    "calibration": Target(_calibration, (ValueError,)),
    "machine": Target(_machine, (DescriptionError,)),
    "switch": Target(_switch, (PageferryError,)),
}


def seeds(name: str) -> list[bytes]:
    """Return the corpus of a target."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def try_one(name: str, data: bytes) -> None:
    """Give one input to a target; returns unless it is a finding."""
    target = TARGETS[name]
    try:
        target.check(data)
    except target.errors as error:
        # A message is a line that somebody reads.
        assert len(str(error)) < 2000, f"a message of {len(str(error))} characters"


_TOKENS = [
    *(b"-1", b"0", b"1e999", b"NaN", b"-Infinity", b"null", b"true", b"[]", b"{}", b'""', b'"'),
    *(
        b"9" * 30,
        b"9" * 5000,
        b"[" * 3000,
        b"\0",
        b"\xff\xfe",
        b"\n",
        b"\r",
        b" ",
        b"\\",
        b"=",
        b":",
    ),
    *(b"-", b"+", b"!", b",", b"0x", b"\xc2\xb2", b"\xd9\xa3", b"kB", b"18446744073709551616"),
    *(b" N0=1", b"\n[node]\n", b"#"),
]


@st.composite
def mutated(draw: st.DrawFn, name: str) -> bytes:
    """Return an entry of the corpus with a few parts cut out, doubled, or replaced."""
    corpus = seeds(name)
    data = draw(st.sampled_from(corpus))
    for _ in range(draw(st.integers(0, 5))):
        at = draw(st.integers(0, len(data)))
        end = at + draw(st.integers(0, 24))
        way = draw(st.sampled_from(["token", "bytes", "cut", "double", "splice"]))
        part = data[at:end]
        if way == "token":
            part = draw(st.sampled_from(_TOKENS))
        elif way == "bytes":
            part = draw(st.binary(max_size=8))
        elif way == "cut":
            part = b""
        elif way == "double":
            part = part * 2
        else:
            part = draw(st.sampled_from(corpus))
        data = data[:at] + part + data[end:]
    return data

# SPDX-License-Identifier: Apache-2.0
"""Modes, policy numbers, node sets, kernel lists, sizes and ranges."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry import flags
from pageferry.errors import NodeError, RangeError
from pageferry.flags import (
    MigrateMode,
    format_nodes,
    parse_cpu_list,
    parse_nodes,
    parse_range,
    parse_size,
)

NODES = st.frozensets(st.integers(0, 1023), min_size=1, max_size=40)


# --- modes


def test_modes_combine_and_come_apart() -> None:
    mode = MigrateMode.SYNC_LIGHT | MigrateMode.MT
    assert mode.blocking is MigrateMode.SYNC_LIGHT
    assert mode.threading is MigrateMode.MT
    assert [flag.value for flag in MigrateMode] == [1, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("mode", "checked"),
    [
        (0, MigrateMode.SYNC),
        (MigrateMode.MT, MigrateMode.SYNC | MigrateMode.MT),
        (MigrateMode.ASYNC, MigrateMode.ASYNC),
        (9, MigrateMode.ASYNC | MigrateMode.ST),
    ],
)
def test_check_fills_in_sync_and_leaves_threads_to_the_planner(
    mode: int, checked: MigrateMode
) -> None:
    assert MigrateMode.check(mode) == checked


@pytest.mark.parametrize("mode", [3, 5, 6, 7, 24, 28, 32, -1, 1 << 70])
def test_check_refuses_contradictions_and_unknown_bits(mode: int) -> None:
    with pytest.raises(ValueError, match=r"MigrateMode|SYNC|MT"):
        MigrateMode.check(mode)


def test_policy_numbers_are_those_of_the_kernel_header() -> None:
    header = Path("/usr/include/linux/mempolicy.h")
    if not header.exists():
        pytest.skip("no kernel headers")
    bits = re.findall(r"#define\s+(MPOL_(?:F|MF)_\w+)\s+\(1\s*<<\s*(\d+)\)", header.read_text())
    ours = {name: 1 << int(bit) for name, bit in bits if hasattr(flags, name)}
    assert len(ours) >= 9
    assert ours == {name: getattr(flags, name) for name in ours}
    policies = re.search(r"enum \{\s*(MPOL_DEFAULT.*?)MPOL_MAX", header.read_text(), re.S)
    assert policies
    for number, name in enumerate(re.findall(r"MPOL_\w+", policies[1])):
        assert getattr(flags, name) == number
    assert flags.MPOL_MF_MOVE_MT == 128


# --- node sets


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("0", {0}),
        ("0-3", {0, 1, 2, 3}),
        ("0,2,5-7", {0, 2, 5, 6, 7}),
        ("all", {0, 1, 2, 3, 5, 6, 7}),
        ("!2", {0, 1, 3, 5, 6, 7}),
        ("!0-5", {6, 7}),
        ("2-6", {2, 3, 5, 6}),  # 4 does not exist; its neighbours do, as in numactl
        ("+0-1", {0, 1}),
        ("+4", {5}),
        ("!+0-4", {6, 7}),
        ("3,3,3", {3}),
        ("007", {7}),
    ],
)
def test_numactl_syntax(text: str, nodes: set[int]) -> None:
    assert parse_nodes(text, [7, 0, 1, 2, 3, 5, 6]) == nodes


@pytest.mark.parametrize(
    ("text", "nodes"),
    [("all", {2, 5}), ("+0", {2}), ("+1", {5}), ("+0-1", {2, 5}), ("!2", {5}), ("0", {0})],
)
def test_all_not_and_plus_go_by_the_allowed_nodes(text: str, nodes: set[int]) -> None:
    assert parse_nodes(text, range(8), allowed=[5, 2]) == nodes


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "empty"),
        ("!", "empty"),
        ("+", "empty"),
        ("3-1", "'3-1' is reversed"),
        ("4", "node 4 does not exist"),
        ("0-4", "node 4 does not exist"),
        ("-1", "lacks one end"),
        ("1-", "lacks one end"),
        ("0,,1", "comma"),
        ("0,", "comma"),
        (" 0", "white space"),
        ("0, 1", "white space"),
        ("0\n", "white space"),
        ("x", "'x' is not a node number"),
        ("0-x", "'x' is not a node number"),
        ("0-1-2", "'1-2' is not a node number"),
        ("٣", "is not a node number"),
        ("1_0", "is not a node number"),
        ("0x1", "is not a node number"),
        ("all,1", "'all' is not a node number"),
        ("!all", "leaves no node"),
        ("!0-3", "leaves no node"),
        ("+4", r"no allowed node \+4, they end at \+3"),
        ("9" * 5000, "does not exist"),
        ("0-99999999999999999999", "does not exist"),
        ("same", "is not a node number"),
    ],
)
def test_wrong_node_sets_say_what_is_wrong_and_what_exists(text: str, complaint: str) -> None:
    with pytest.raises(NodeError, match=complaint) as caught:
        parse_nodes(text, range(4))
    assert caught.value.errno == errno.EINVAL
    assert "nodes here: 0-3" in str(caught.value)
    assert len(str(caught.value)) < 250


def test_no_nodes_at_all() -> None:
    for text in ("0", "all", "+0", "!0"):
        with pytest.raises(NodeError, match="nodes here: none"):
            parse_nodes(text, [])


@given(NODES)
def test_formatted_nodes_parse_to_themselves(nodes: frozenset[int]) -> None:
    assert parse_nodes(format_nodes(nodes), nodes) == nodes
    assert parse_cpu_list(format_nodes(nodes)) == nodes


@given(NODES, NODES)
def test_not_is_the_rest(nodes: frozenset[int], others: frozenset[int]) -> None:
    existing = nodes | others
    # Single ids: a range may jump over ids that exist in `existing` only.
    text = "!" + ",".join(map(str, nodes))
    if existing == nodes:
        with pytest.raises(NodeError):
            parse_nodes(text, existing)
    else:
        assert parse_nodes(text, existing) == existing - nodes


@given(st.text(alphabet="0123456789,-+!al \t", max_size=12), NODES)
def test_any_text_gives_existing_nodes_or_a_node_error(text: str, nodes: frozenset[int]) -> None:
    try:
        assert parse_nodes(text, nodes) <= nodes
    except NodeError as error:
        assert error.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("nodes", "text"), [([], ""), ([5], "5"), ([3, 1, 2, 2], "1-3"), ([0, 1, 4, 6, 7], "0-1,4,6-7")]
)
def test_format_nodes(nodes: list[int], text: str) -> None:
    assert format_nodes(nodes) == text


# --- kernel lists


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("", []),
        ("\n", []),
        ("0-3,8-11\n", [0, 1, 2, 3, 8, 9, 10, 11]),
        ("0-31:2/8", [0, 1, 8, 9, 16, 17, 24, 25]),
        ("3-9:1/4", [3, 7]),
        ("5", [5]),
    ],
)
def test_kernel_lists(text: str, cpus: list[int]) -> None:
    assert parse_cpu_list(text) == set(cpus)


@pytest.mark.parametrize(
    "text", ["x", "1-", "-1", "3-1", "1,,2", "0-3:0/2", "0-3:3/2", "0-999999999", "1:2/4", "0 1"]
)
def test_damaged_kernel_lists(text: str) -> None:
    with pytest.raises(ValueError, match=r"kernel list|goes up|goes beyond"):
        parse_cpu_list(text)


# --- sizes and ranges


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("0x1000", 4096),
        ("2M", 2 << 20),
        ("2m", 2 << 20),
        ("2MiB", 2 << 20),
        ("1G", 1 << 30),
        ("3T", 3 << 40),
        ("0x10K", 16 << 10),
        (" 1K ", 1024),
        ("18446744073709551615", (1 << 64) - 1),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "M",
        "2MB",
        "2iB",
        "1.5G",
        "-1",
        "2 M",
        "1P",
        "0x",
        "1_0",
        "2\u212a",
        "16777216T",
        "9" * 40,
    ],
)
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(RangeError) as caught:
        parse_size(text)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0x1000-0x3000", range(0x1000, 0x3000)),
        ("4096-8192", range(4096, 8192)),
        ("0x7f0000000000+2M", range(0x7F0000000000, 0x7F0000200000)),
        ("4096+0x10", range(4096, 4112)),
        ("0-18446744073709551616", range(0, 1 << 64)),
    ],
)
def test_ranges(text: str, expected: range) -> None:
    assert parse_range(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not an address range"),
        ("0x1000", "not an address range"),
        ("1-2-3", "not an address range"),
        ("0x2000-0x1000", "reversed"),
        ("0x1000-0x1000", "empty"),
        ("0x1000+0", "empty"),
        ("0xffffffffffffffff+2", "beyond 64 bits"),
        ("-5-7", "not an address range"),
        ("7f00a000-7f00b000", "hexadecimal needs 0x: 0x7f00a000"),
        ("x-5", "'x' is not an address"),
        ("5+x", "'x' is not a size"),
    ],
)
def test_wrong_ranges(text: str, complaint: str) -> None:
    with pytest.raises(RangeError, match=complaint) as caught:
        parse_range(text)
    assert caught.value.errno == errno.EINVAL


@given(st.integers(0, 1 << 63), st.integers(1, 1 << 62))
def test_ranges_round_trip(start: int, size: int) -> None:
    expected = range(start, start + size)
    assert parse_range(f"{start:#x}-{start + size:#x}") == expected
    assert parse_range(f"{start}+{size:#x}") == expected

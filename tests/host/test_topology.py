# SPDX-License-Identifier: Apache-2.0
"""Topology: of this machine, and of machines made of small sysfs trees."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sysfs_trees import GIB, FakeNode, build, cxl, without_numa, write, zen3

from pageferry.commands import topology as command
from pageferry.errors import NodeError
from pageferry.topology import Topology, node_free, topology


@pytest.fixture(scope="module")
def zen(tmp_path_factory: pytest.TempPathFactory) -> Topology:
    return topology(zen3(tmp_path_factory.mktemp("zen3")))


# --- this machine


def test_this_machine_agrees_with_the_kernel() -> None:
    here = topology()
    assert here.allowed_cpus == os.sched_getaffinity(0)
    assert len(here.cpus) == os.sysconf("SC_NPROCESSORS_ONLN")
    # Not /proc/meminfo: on a guest with a balloon its total holds pages that no node has now.
    managed = re.findall(r"^\s+managed\s+(\d+)", Path("/proc/zoneinfo").read_text(), re.M)
    pages = sum(map(int, managed)) * os.sysconf("SC_PAGE_SIZE")
    assert sum(node.memory_total for node in here.nodes) == pytest.approx(pages, rel=0.05)
    assert here.target_nodes
    for node in here.nodes:
        assert 0 <= node.memory_free <= node.memory_total
        assert node.distances.get(node.id, 10) == 10
        assert here.free(node.id) <= node.memory_total


def test_affinity_of_this_process_counts() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert topology().allowed_cpus == {min(before)}
    finally:
        os.sched_setaffinity(0, before)


def test_every_cpu_is_in_one_core_and_at_most_one_cache() -> None:
    here = topology()
    in_cores = Counter(cpu for core in here.cores() for cpu in core)
    assert in_cores == Counter(cpu.id for cpu in here.cpus)
    assert max(Counter(cpu for c in here.caches for cpu in c.cpus).values(), default=1) == 1


# --- two sockets of Zen 3


def test_zen3_is_read_whole(zen: Topology) -> None:
    assert zen.numa
    assert len(zen.cpus) == 256
    assert len(zen.cores()) == 128
    assert zen.cores()[5] == {5, 133}
    assert [cache.level for cache in zen.caches] == [3] * 16
    assert {cache.size for cache in zen.caches} == {32 << 20}
    assert zen.caches[9].cpus == {*range(72, 80), *range(200, 208)}
    cpu = zen.cpu(200)
    assert cpu
    assert (cpu.node, cpu.core, cpu.cache) == (1, {72, 200}, 9)
    assert zen.node(1).distances == {0: 32, 1: 10}
    assert zen.cpu(256) is None


def test_spread_takes_node_then_caches_then_cores_then_siblings(zen: Topology) -> None:
    order = zen.spread(range(256), prefer_node=1)
    assert order[:8] == (64, 72, 80, 88, 96, 104, 112, 120)
    assert order[8:16] == (65, 73, 81, 89, 97, 105, 113, 121)
    assert set(order[:64]) == set(range(64, 128))
    assert order[64:72] == (0, 8, 16, 24, 32, 40, 48, 56)
    assert set(order[64:128]) == set(range(64))
    assert order[128:136] == (192, 200, 208, 216, 224, 232, 240, 248)
    assert set(order[128:192]) == set(range(192, 256))


def test_spread_without_a_node_uses_all_caches_of_the_machine(zen: Topology) -> None:
    assert zen.spread(range(256))[:16] == tuple(range(0, 128, 8))


def test_spread_goes_by_the_cpus_that_are_given(zen: Topology) -> None:
    # 133 is a sibling of 5, which is not to be had: it stands for its core.
    assert zen.spread([133, 6, 64, 134], prefer_node=0) == (6, 133, 64, 134)
    assert zen.spread([999, 3]) == (3,)
    assert zen.spread([]) == ()


@given(cpus=st.frozensets(st.integers(0, 255), max_size=60), node=st.sampled_from([None, 0, 1]))
def test_spread_keeps_its_promises(zen: Topology, cpus: frozenset[int], node: int | None) -> None:
    order = zen.spread(cpus, node)
    assert sorted(order) == sorted(cpus)
    cores = len({cpu % 128 for cpu in cpus})
    first = order[:cores]
    assert len({cpu % 128 for cpu in first}) == cores, "a sibling came before a core"
    local = [cpu for cpu in first if node is None or (cpu % 128 >= 64) == bool(node)]
    assert list(first[: len(local)]) == local, "a far core came before a near one"
    room = Counter(cpu % 128 // 8 for cpu in local)
    for length in range(len(local) + 1):
        used = Counter(cpu % 128 // 8 for cpu in local[:length])
        most = max(used.values(), default=0)
        for cache, cores_there in room.items():
            assert used[cache] >= min(most - 1, cores_there), "a cache was left out"


# --- nodes of other kinds


def test_tiers_memoryless_and_memory_only_nodes_with_sparse_ids(tmp_path: Path) -> None:
    here = topology(cxl(tmp_path))
    assert here.node_ids == (0, 1, 4, 7)
    assert here.memory_nodes == here.target_nodes == (0, 1, 4)
    assert [node.tier for node in here.nodes] == [4, 4, 22, None]
    assert here.node(4).cpus == frozenset()
    assert not here.node(7).has_memory
    # The third column is node 4, not node 2.
    assert here.node(1).distances == {0: 21, 1: 10, 4: 14, 7: 17}


def test_a_node_without_cpus_takes_those_of_the_nearest(tmp_path: Path) -> None:
    here = topology(cxl(tmp_path))
    assert here.spread(range(5), prefer_node=4) == (2, 3, 0, 1, 4)


@pytest.mark.parametrize(
    ("node", "number", "complaint"),
    [
        (2, errno.ENODEV, "node 2 does not exist .* nodes here: 0-1,4,7"),
        (-1, errno.ENODEV, "node -1 does not exist"),
        (7, errno.ENODEV, "node 7 has no memory .* nodes to move to: 0,4"),
        (1, errno.EACCES, "cpuset .* does not allow node 1 .* nodes to move to: 0,4"),
    ],
)
def test_targets_that_cannot_be(tmp_path: Path, node: int, number: int, complaint: str) -> None:
    cxl(tmp_path)
    write(tmp_path, "proc/self/status", "Mems_allowed_list:\t0,4,7\nCpus_allowed_list:\t0-1,77")
    here = topology(tmp_path)
    assert here.target_nodes == (0, 4)
    assert here.allowed_cpus == {0, 1}
    assert here.check_target(4).id == 4
    with pytest.raises(NodeError, match=complaint) as caught:
        here.check_target(node)
    assert caught.value.errno == number


def test_sparse_nodes_and_offline_cpus(tmp_path: Path) -> None:
    build(
        tmp_path,
        {0: FakeNode([0, 2], distance="10 20"), 2: FakeNode([4], distance="20 10")},
        # 1, 3 and 5 are offline and still listed by damaged firmware tables.
        cores=[[0, 1], [2, 3], [4, 5]],
        caches=[[0, 1, 2, 3], [4, 5]],
    )
    here = topology(tmp_path)
    assert [cpu.id for cpu in here.cpus] == [0, 2, 4]
    assert here.cores() == ({0}, {2}, {4})
    assert [cache.cpus for cache in here.caches] == [{0, 2}, {4}]
    assert here.node(0).distances == {0: 10, 2: 20}
    assert here.spread(range(6), prefer_node=2) == (4, 0, 2)


def test_a_node_that_is_not_online_is_not_there(tmp_path: Path) -> None:
    cxl(tmp_path)
    write(tmp_path, "sys/devices/system/node/online", "0-1")
    assert topology(tmp_path).node_ids == (0, 1)


def test_hugetlb_pools(tmp_path: Path) -> None:
    pools = {2 << 20: (16, 3), GIB: (2, 2)}
    build(tmp_path, {0: FakeNode([0], hugepages=pools), 1: FakeNode([1])})
    here = topology(tmp_path)
    assert here.node(0).hugepages == pools
    assert here.node(1).hugepages == {}


def test_free_memory_is_read_anew(tmp_path: Path) -> None:
    here = topology(cxl(tmp_path))
    assert here.free(4) == 32 * GIB
    write(tmp_path, "sys/devices/system/node/node4/meminfo", "Node 4 MemFree:    1024 kB")
    assert here.free(4) == node_free(4, tmp_path) == 1 << 20
    with pytest.raises(NodeError) as caught:
        node_free(9, tmp_path)
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(NodeError):
        node_free(4096)


# --- what is not there, or damaged


def test_kernel_without_numa(tmp_path: Path) -> None:
    here = topology(without_numa(tmp_path))
    assert not here.numa
    assert here.target_nodes == (0,)
    node = here.node(0)
    assert node.cpus == {0, 1, 2, 3}
    assert (node.memory_total, node.memory_free) == (8 * GIB, 4 * GIB)
    assert node.hugepages == {2 << 20: (8, 5)}
    assert here.allowed_cpus == {0, 1, 2}
    assert here.caches == ()
    assert here.cores() == ({0}, {1}, {2}, {3})
    assert here.spread([3, 0, 2]) == (0, 2, 3)
    assert here.free(0) == 4 * GIB


def test_no_cache_information_is_one_cache_per_node(tmp_path: Path) -> None:
    nodes = {0: FakeNode([0, 1], distance="10 20"), 1: FakeNode([2, 3], distance="20 10")}
    here = topology(build(tmp_path, nodes))
    assert here.spread(range(4)) == (0, 2, 1, 3)


def test_names_of_older_kernels(tmp_path: Path) -> None:
    build(tmp_path, {0: FakeNode([0, 1])})
    for cpu in (0, 1):
        path = f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        write(tmp_path, path, "0-1")
    (tmp_path / "sys/devices/system/node/has_memory").unlink()
    (tmp_path / "sys/devices/system/node/online").unlink()
    (tmp_path / "sys/devices/system/cpu/online").unlink()
    write(tmp_path, "sys/devices/system/cpu/cpu2/online", "0")
    here = topology(tmp_path)
    assert here.cores() == ({0, 1},)
    assert here.memory_nodes == (0,)


def test_an_empty_tree(tmp_path: Path) -> None:
    here = topology(tmp_path)
    assert not here.numa
    assert [cpu.id for cpu in here.cpus] == [0]
    assert here.target_nodes == (0,)
    with pytest.raises(NodeError):
        here.free(0)


@pytest.mark.parametrize("damage", ["", "\xff\x00garbage", "9-1", "0-99999999999", "-3", "folder"])
def test_damaged_files_never_raise(tmp_path: Path, damage: str) -> None:
    cxl(tmp_path)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) > 50
    for path in files:
        good = path.read_bytes()
        if damage == "folder":
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(damage.encode("latin-1"))
        here = topology(tmp_path)
        assert here.nodes, path
        assert sorted(here.spread(range(5), 0)) == [cpu.id for cpu in here.cpus], path
        json.dumps(here.as_dict())
        if damage == "folder":
            path.rmdir()
        path.write_bytes(good)
    for path in files:
        path.unlink()
        path.mkdir()
    assert topology(tmp_path).nodes


def test_lists_that_contradict_each_other_put_no_cpu_in_two_places(tmp_path: Path) -> None:
    build(tmp_path, {0: FakeNode([0, 1, 2])}, cores=[[0], [1], [2]], caches=[[0], [1], [2]])
    folder = "sys/devices/system/cpu"
    write(tmp_path, f"{folder}/cpu0/topology/core_cpus_list", "0-1")
    write(tmp_path, f"{folder}/cpu2/topology/core_cpus_list", "1-2")
    write(tmp_path, f"{folder}/cpu0/cache/index2/shared_cpu_list", "0-1")
    write(tmp_path, f"{folder}/cpu1/cache/index2/shared_cpu_list", "1-2")
    here = topology(tmp_path)
    assert here.cores() == ({0, 1}, {2})
    assert sorted(cpu for cache in here.caches for cpu in cache.cpus) == [0, 1, 2]


# --- the command


def _shown(here: Topology, *, terminal: bool) -> str:
    stream = io.StringIO()
    # What console.console() makes, on a stream that says what we want.
    if terminal:
        command.show(here, Console(file=stream, force_terminal=True, width=80, highlight=False))
    else:
        command.show(here, Console(file=stream, no_color=True, width=200, soft_wrap=True))
    return stream.getvalue()


def test_the_table_fits_eighty_columns_and_is_plain(zen: Topology, tmp_path: Path) -> None:
    for here in (zen, topology(cxl(tmp_path))):
        text = _shown(here, terminal=False)
        assert "\x1b" not in text
        assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
        assert "\x1b" in _shown(here, terminal=True)


def test_the_table_shows_every_node(zen: Topology, tmp_path: Path) -> None:
    text = _shown(topology(cxl(tmp_path)), terminal=False)
    lines = [line.split() for line in text.splitlines()]
    assert ["4", "256.0", "GiB", "32.0", "GiB", "22", "none"] in lines
    assert ["7", "none", "4"] in lines
    assert ["1", "21", "10", "14", "17"] in lines
    assert "memory of node 0-1,4, CPUs 0-4" in text
    assert "16 × L3 of 32.0 MiB" in _shown(zen, terminal=False)
    assert "128 with 256 online CPUs, up to 2 threads each" in _shown(zen, terminal=False)


def test_the_table_of_a_kernel_without_numa_says_so(tmp_path: Path) -> None:
    text = _shown(topology(without_numa(tmp_path)), terminal=False)
    assert "no NUMA" in text
    assert "5 of 8 × 2.0 MiB" in text
    assert "the kernel does not tell" in text


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["topology", "--json"])
    assert args.run(args) == 0
    said = json.loads(capsys.readouterr().out)
    here = topology()
    assert [node["id"] for node in said["nodes"]] == list(here.node_ids)
    assert said["nodes"][0]["memory_total"] == here.nodes[0].memory_total
    assert said["allowed_cpus"] == sorted(here.allowed_cpus)


def test_plain_command(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["topology"])
    assert args.run(args) == 0
    assert "may use" in capsys.readouterr().out

# SPDX-License-Identifier: Apache-2.0
"""Pictures of the machine and of a process's memory, as files and as text."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import sysfs_trees
from hypothesis import given
from hypothesis import strategies as st
from regions import HUGE, PAGE, Region, needs_thp
from rich.console import Console

from pageferry import areas as address_space
from pageferry import cli
from pageferry.areas import Area, areas
from pageferry.errors import ProcessGoneError
from pageferry.nodestat import NodeStat, memory_pressure, node_stats
from pageferry.pictures import placement, text
from pageferry.pictures import topology as machine_picture
from pageferry.report import STATUS, Placement
from pageferry.topology import topology

MIB = 1 << 20


def words(svg: Path) -> str:
    """The text in a picture, in the order in which it was drawn."""
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text()))


# ---- What the memory of a node is used for


def test_parts_make_up_what_is_used() -> None:
    for stat in node_stats():
        known = stat.anonymous + stat.shared + stat.file + stat.hugetlb + stat.kernel
        assert known >= stat.used > 0
        assert 0 < stat.free < stat.total
        assert stat.as_dict()["used"] == stat.used
    assert [stat.id for stat in node_stats()] == list(topology().node_ids)


def test_watermarks_and_pressure(tmp_path: Path) -> None:
    sysfs_trees.cxl(tmp_path)
    zones = (
        "Node 0, zone      DMA\n  per-node stats\n      nr_dirty 9\n  pages free     10\n"
        "        min      1000\n        low      2000\n        high     3000\n"
        "    pagesets\n              high:  7\n              low 5 6\n"
        "Node 0, zone   Normal\n  pages free     10\n        min      1\n        low      2\n"
        "Node 4, zone   Normal\n        min      7\n        low      8\n"
    )
    sysfs_trees.write(tmp_path, "proc/zoneinfo", zones)
    sysfs_trees.write(
        tmp_path, "sys/devices/system/node/node4/numastat", "numa_hit 5\nnuma_miss 3\nnuma_foreign"
    )
    by_id = {stat.id: stat for stat in node_stats(tmp_path)}
    assert (by_id[0].min, by_id[0].low) == (1001 * PAGE, 2002 * PAGE)
    assert (by_id[4].min, by_id[4].low, by_id[4].misses) == (7 * PAGE, 8 * PAGE, 3 * PAGE)
    assert by_id[1].low == 0 and by_id[7].total == 0
    assert [stat.pressure for stat in by_id.values()] == ["none"] * 4
    for free, word in ((101, "none"), (100, "reclaim"), (51, "reclaim"), (50, "stall")):
        assert NodeStat(0, total=1000, free=free, low=100, min=50).pressure == word


def test_kernel_without_numa_has_one_node(tmp_path: Path) -> None:
    sysfs_trees.without_numa(tmp_path)
    (stat,) = node_stats(tmp_path)
    assert (stat.id, stat.total, stat.free) == (0, 8 << 30, 4 << 30)
    assert (stat.hugetlb, stat.hugetlb_free) == (8 * HUGE, 5 * HUGE)


def test_nothing_there_is_no_error(tmp_path: Path) -> None:
    (stat,) = node_stats(tmp_path)
    assert (stat.total, stat.pressure) == (0, "none")
    assert memory_pressure(tmp_path) == {}
    sysfs_trees.write(
        tmp_path,
        "proc/pressure/memory",
        "some avg10=1.25 avg60=0.10 avg300=0.02 total=3\nfull avg10=0.50 avg60=0 avg300=0 total=1",
    )
    assert memory_pressure(tmp_path) == {"some": 1.25, "full": 0.5}


# ---- Areas of an address space


def area_of(region: Region, **options: int) -> Area:
    found, _ = areas(os.getpid(), region.range(), **options)
    (area,) = found
    return area


def test_slots_show_the_holes() -> None:
    region = Region(8 * MIB)
    region.write(MIB, 2 * MIB)
    region.write(6 * MIB, MIB)
    area = area_of(region, slots=6)
    assert (area.start, area.end) == (region.address + MIB, region.address + 7 * MIB)
    assert area.present == sum(area.by_node.values()) == 3 * MIB
    assert sum(area.nodes.values()).tolist() == [MIB, MIB, 0, 0, 0, MIB]
    assert area.as_dict()["bytes_present"] == 3 * MIB


@needs_thp
def test_slots_share_a_huge_page() -> None:
    region = Region(2 * HUGE, huge=True)
    region.write(0, 2 * HUGE)
    assert sum(area_of(region, slots=8).nodes.values()).tolist() == [HUGE / 4] * 8


def test_large_areas_are_asked_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    region = Region(4 * MIB)
    region.write(0, MIB)
    region.write(2 * MIB, 2 * MIB)
    whole = area_of(region, slots=7)
    monkeypatch.setattr(address_space, "_PIECE_PAGES", 100)
    pieces = area_of(region, slots=7)
    for node, slots in whole.nodes.items():
        np.testing.assert_allclose(pieces.nodes[node], slots)


def test_the_largest_are_shown_and_the_others_counted() -> None:
    region = Region(64 * MIB)
    region.write(0, 64 * MIB)
    found, others = areas(os.getpid(), most=3)
    assert len(found) == 3 and others > 0
    assert any(area.start <= region.address < area.end for area in found)
    assert [area.start for area in found] == sorted(area.start for area in found)


def test_no_memory_and_no_process() -> None:
    region = Region(MIB)
    assert areas(os.getpid(), region.range()) == ([], 0)
    with pytest.raises(ProcessGoneError):
        areas((1 << 22) + 1)


@given(
    st.dictionaries(st.integers(0, 99), st.integers(0, 1), max_size=60),
    st.integers(1, 40),
)
def test_every_byte_is_in_its_slot(node_of: dict[int, int], slots: int) -> None:
    pages = sorted(node_of.items())
    start, size = 1 << 40, PAGE
    table = np.zeros(len(pages), STATUS)
    for row, (page, node) in zip(table, pages, strict=True):
        row["address"], row["size"], row["status"] = start + page * size, size, node
    nodes: dict[int, np.ndarray] = {}
    address_space._add(nodes, table, range(start, start + 100 * size), slots)
    for node in (0, 1):
        expected = np.zeros(slots)
        for page, at in pages:
            first, end = page * slots / 100, (page + 1) * slots / 100
            for slot in range(slots if at == node else 0):
                expected[slot] += max(min(end, slot + 1) - max(first, slot), 0) * 100 / slots * size
        np.testing.assert_allclose(nodes.get(node, np.zeros(slots)), expected, atol=1e-3)


# ---- Text


@given(st.lists(st.integers(0, 1000), max_size=5), st.integers(0, 3000), st.integers(0, 90))
def test_a_bar_is_as_wide_as_asked(values: list[int], whole: int, width: int) -> None:
    bar = text.bar([text.Part(value, "", "#") for value in values], whole, width)
    assert len(bar.plain) == width
    full = min(sum(values), whole) / whole * width if whole else 0
    assert abs(sum(sign != "·" for sign in bar.plain) - full) <= 1


def test_a_strip_names_the_node_with_most() -> None:
    nodes = {0: np.array([4.0, 1, 0, 0]), 13: np.array([0, 3.0, 2, 0])}
    assert text.strip(nodes, {0: 0, 13: 1}, 4).plain == "033·"
    assert text.strip(nodes, {0: 0, 13: 1}, 2).plain == "03"
    assert text.strip(nodes, {0: 0, 13: 1}, 8).plain == "003333··"
    assert text.strip({}, {}, 3).plain == "···"


# ---- The machine


def test_picture_of_the_machine(tmp_path: Path) -> None:
    sysfs_trees.cxl(tmp_path)
    path = tmp_path / "machine.svg"
    machine_picture.draw(topology(tmp_path), node_stats(tmp_path), path, "a title")
    told = words(path)
    for part in ("a title", "4 nodes, 5 cores, 5 CPUs", "node 7", "memory tier 22", "no memory",
                 "no CPUs: memory only", "32.0 GiB of 64.0 GiB used, 32.0 GiB free", "page cache",
                 "L3 32.0 MiB", "distance", " 30 "):  # fmt: skip
        assert part in told
    shown = screen_of(
        lambda out: machine_picture.show(topology(tmp_path), node_stats(tmp_path), out)
    )
    for part in ("node 4", "224.0 GiB of 256.0 GiB", "no CPUs", "L3 32.0 MiB: [2][3]"):
        assert part in shown


def test_picture_of_a_large_machine_shows_every_cpu(tmp_path: Path) -> None:
    sysfs_trees.zen3(tmp_path)
    path = tmp_path / "machine.svg"
    machine_picture.draw(topology(tmp_path), node_stats(tmp_path), path, "")
    assert {str(cpu) for cpu in range(256)} <= set(words(path).split())


def screen_of(show, width: int = 100) -> str:
    out = io.StringIO()
    show(Console(file=out, width=width))
    return out.getvalue()


# ---- A process


def view() -> placement.View:
    nodes = {
        0: {"base": 5 * MIB, "thp": 2 * MIB, "hugetlb": 0},
        2: {"base": 0, "thp": 3 * MIB, "hugetlb": 0},
    }
    strips = {0: np.array([1.0, 1, 0, 0]) * MIB, 2: np.array([0, 1.0, 1, 0]) * MIB}
    shown = [Area("[heap]", 0x1000, 0x5000, 4 * MIB, strips), Area("gone", 0x9000, 0xA000, 1, {})]
    return placement.View("Process 1 (x)", Placement(1, nodes), shown, MIB, (0, 1, 2))


def test_picture_of_a_process(tmp_path: Path) -> None:
    path = tmp_path / "process.svg"
    placement.draw(view(), path)
    told = words(path)
    for part in ("Process 1 (x): 10.0 MiB on 2 of 3 nodes", "7.0 MiB, 70%", "node 1", "0 B, 0%",
                 "transparent huge", "[heap]", "1000", "and 1.0 MiB in smaller areas"):  # fmt: skip
        assert part in told
    shown = screen_of(lambda out: placement.show(view(), out))
    assert "node 2" in shown and "30%" in shown and "100% thp" in shown
    (strip,) = re.findall(r"\[heap\] +(\S+) ", shown)
    assert re.fullmatch("0+2+·+", strip)


def test_png_has_ink(tmp_path: Path) -> None:
    from matplotlib import image

    path = tmp_path / "process.png"
    placement.draw(view(), path)
    pixels = image.imread(path)
    assert pixels.shape[0] > 300 and pixels.shape[1] > 1000
    assert 0.02 < (pixels[..., :3].min(axis=2) < 0.5).mean() < 0.6


# ---- The commands


def test_commands_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = tmp_path / "machine.pdf", tmp_path / "process.png"
    assert cli.main(["topology", "--plot", str(files[0])]) == 0
    assert cli.main(["locate", "--self", "--plot", str(files[1])]) == 0
    assert all(path.stat().st_size > 1000 for path in files)
    out = capsys.readouterr().out
    assert f"Written: {files[0]}" in out and f"Written: {files[1]}" in out
    assert cli.main(["topology", "--plot", "-"]) == 0
    assert cli.main(["locate", "--self", "--plot", "-"]) == 0
    out = capsys.readouterr().out
    assert "processes' own" in out and "Along the address space" in out and "\x1b" not in out


def test_json_has_the_areas(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert cli.main(["locate", "--self", "--plot", "-", "--json"]) == 0
    assert {"name", "start", "nodes"} <= set(json.loads(capsys.readouterr().out)["areas"][0])


@pytest.mark.parametrize("verb", [["topology"], ["locate", "--self"], ["bench", "series"]])
@pytest.mark.parametrize(
    ("name", "code", "complaint"),
    [("x.doc", 2, "end the name in .png"), ("no/x.png", 1, "no directory"), ("x", 2, ".svg")],
)
def test_what_cannot_be_drawn_is_refused_at_once(
    verb: list[str], name: str, code: int, complaint: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert cli.main([*verb, "--plot", str(tmp_path / name)]) == code
    assert complaint in capsys.readouterr().err


def test_without_matplotlib_the_cure_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["topology", "--plot", str(tmp_path / "x.png")]) == 1
    assert "pip install 'pageferry[plot]'" in capsys.readouterr().err
    assert cli.main(["topology", "--plot", "-"]) == 0


def test_a_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.png").mkdir()
    assert cli.main(["topology", "--plot", str(tmp_path / "x.png")]) == 1
    assert "cannot write" in capsys.readouterr().err

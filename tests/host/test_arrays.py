# SPDX-License-Identifier: Apache-2.0
"""Arrays on a node: what numpy would have made, in memory of their own that goes when they do."""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from regions import HUGE, PAGE, needs_thp

import pageferry
from pageferry import NodeError, NodeFullError, UnsupportedError, page_size, populate, topology
from pageferry.arrays import owned

NODE = topology().target_nodes[0]


def mapped(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= address < last:
            return True
    return False


def address_of(array: np.ndarray[Any, Any]) -> int:
    return int(array.ctypes.data)


RECORD = np.dtype([("key", "i8"), ("name", "S5"), ("where", "f4", (3,))], align=True)
DTYPES = st.one_of(hnp.scalar_dtypes(), hnp.array_dtypes(max_size=3), st.just(RECORD))


@settings(max_examples=60, deadline=None)
@given(
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9),
    DTYPES,
    st.sampled_from("CF"),
    st.sampled_from(["auto", page_size.BASE.name]),
    st.booleans(),
)
def test_as_numpy_makes_them(
    shape: tuple[int, ...], dtype: np.dtype[Any], order: Any, pages: str, filled: bool
) -> None:
    zeros = pageferry.zeros(
        shape, dtype, node=NODE, page_size=pages, order=order, populate=filled, threads=1
    )
    model = np.zeros(shape, dtype, order)
    for array in (zeros, pageferry.empty(shape, dtype, node=NODE, order=order, threads=1)):
        assert type(array) is np.ndarray
        assert (array.shape, array.dtype, array.strides) == (
            model.shape,
            model.dtype,
            model.strides,
        )
        assert array.flags.writeable and array.flags.aligned
        if array.nbytes:
            assert address_of(array) % PAGE == 0
    assert (zeros == model).all()


@pytest.mark.parametrize("value", [7, 2.5, True, "word", np.float32(3), [1, 2, 3]])
@pytest.mark.parametrize("dtype", [None, "f8", "U4"])
def test_full(value: Any, dtype: str | None) -> None:
    try:
        model = np.full((4, 3), value, dtype)
    except ValueError:
        with pytest.raises(ValueError):
            pageferry.full((4, 3), value, dtype, node=NODE)
        return
    array = pageferry.full((4, 3), value, dtype, node=NODE)
    assert array.dtype == model.dtype and (array == model).all()


def test_the_memory_is_there_and_on_the_node() -> None:
    array = pageferry.empty(5 * HUGE + 3 * PAGE, np.uint8, node=NODE)
    placement = pageferry.locate(array)
    assert set(placement.nodes) == {NODE} and placement.bytes_not_present == 0
    array[:] = 1
    assert pageferry.move(array, NODE).complete


def test_later_means_when_touched() -> None:
    array = pageferry.zeros(4 * PAGE, np.uint8, node=NODE, page_size=page_size.BASE.name,
                            populate=False)  # fmt: skip
    assert pageferry.locate(array).bytes_not_present == 4 * PAGE
    array[PAGE] = 1
    assert pageferry.locate(array).bytes_not_present == 3 * PAGE


@needs_thp
@pytest.mark.parametrize("populated", [True, False])
def test_page_sizes(populated: bool) -> None:
    huge = page_size.PageSize(HUGE.bit_length() - 1).name
    size = 2 * HUGE + 5 * PAGE
    expected = {
        page_size.BASE.name: {"base": size, "thp": 0},
        huge: {"base": 0, "thp": 3 * HUGE},
        "auto": {"base": 5 * PAGE, "thp": 2 * HUGE},
    }
    for name, kinds in expected.items():
        array = pageferry.zeros(size, np.uint8, node=NODE, page_size=name, populate=populated)
        if not populated:
            array[::PAGE] = 1
        placement = pageferry.locate(array)
        assert {kind: placement.by_kind(kind) for kind in kinds} == kinds
        if name != page_size.BASE.name:
            assert address_of(array) % HUGE == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="the pool is root's")
def test_hugetlb() -> None:
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    if not pool.exists() or int(pool.read_text()):
        pytest.skip("no pool of 2 MiB pages, or somebody else's")
    with pytest.raises(NodeFullError, match=rf"node {NODE} .*pool of 2M-hugetlb.*nr_hugepages"):
        pageferry.zeros(HUGE, np.uint8, node=NODE, page_size="2M-hugetlb")


def test_freed_with_the_last_view() -> None:
    array = pageferry.zeros((1000, 1000), node=NODE)
    address = address_of(array)
    view = array[500:, ::2].T
    buffer = memoryview(array[:10])
    assert mapped(address) and owned(address, address + array.nbytes)
    del array
    assert mapped(address)
    del view
    assert mapped(address)
    buffer.release()
    del buffer
    gc.collect()
    assert not owned(address, address + PAGE)
    assert not mapped(address)


def test_owned_is_the_whole_range() -> None:
    arrays = [pageferry.zeros(64 * PAGE, np.uint8, node=NODE) for _ in range(8)]
    for array in arrays:
        first, end = address_of(array), address_of(array) + array.nbytes
        assert owned(first, end) and owned(first + 5, end - 7)
    edges = {address_of(a) for a in arrays}, {address_of(a) + a.nbytes for a in arrays}
    lowest, highest = min(edges[0]), max(edges[1])
    assert not owned(lowest - 1, lowest + 1) and not owned(highest - 1, highest + 1)
    # Adjacent arrays are one owned range; with a gap they are not.
    adjacent = sum(edge in edges[0] for edge in edges[1]) == len(arrays) - 1
    assert owned(lowest, highest) == adjacent
    ordinary = np.ones(10 << 20, np.uint8)
    assert not owned(address_of(ordinary), address_of(ordinary) + ordinary.nbytes)


def test_copies_and_pickles_are_ordinary() -> None:
    array = pageferry.full((300, 70), 3, np.int16, node=NODE, order="F")
    for other in (
        array.copy(),
        copy.deepcopy(array),
        copy.copy(array),
        pickle.loads(pickle.dumps(array)),
        pickle.loads(pickle.dumps(array, protocol=5)),
    ):
        assert (other == 3).all() and other.shape == array.shape and other.dtype == array.dtype
        assert not owned(address_of(other), address_of(other) + other.nbytes)
        other[:] = 4
    assert (array == 3).all()


def test_out_of_band_pickle_is_the_array_itself() -> None:
    array = pageferry.full(9000, 5, np.uint8, node=NODE)
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(array, protocol=5, buffer_callback=buffers.append)
    other = pickle.loads(data, buffers=buffers)
    assert address_of(other) == address_of(array)
    address = address_of(array)
    del array, buffers
    assert (other == 5).all() and mapped(address)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"node": 4000}, NodeError),
        ({"node": -1}, NodeError),
        ({"node": "0"}, TypeError),
        ({"node": True}, TypeError),
        ({"shape": (3, -1)}, ValueError),
        ({"shape": 2.5}, TypeError),
        ({"dtype": object}, TypeError),
        ({"dtype": [("a", "i4"), ("b", "O")]}, TypeError),
        ({"page_size": "3K"}, ValueError),
        ({"page_size": "huge"}, ValueError),
        ({"page_size": 4096}, TypeError),
        ({"order": "K"}, ValueError),
        ({"threads": 0}, ValueError),
    ],
)
def test_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    before = owned_bytes()
    with pytest.raises(error):
        pageferry.empty(**({"shape": 10, "node": NODE} | arguments))
    assert owned_bytes() == before


def owned_bytes() -> int:
    from pageferry import arrays

    gc.collect()
    return sum(end - start for start, end in arrays._mappings.items())


@pytest.mark.parametrize("pages", ["auto", page_size.BASE.name])
@pytest.mark.parametrize("populated", [True, False])
def test_no_room(pages: str, populated: bool) -> None:
    before = owned_bytes()
    for shape in (1 << 50, 1 << 62):
        with pytest.raises(MemoryError) as caught:
            pageferry.zeros(shape, np.uint8, node=NODE, page_size=pages, populate=populated)
        assert isinstance(caught.value, NodeFullError) and caught.value.errno == errno.ENOMEM
        assert f"node {NODE}" in str(caught.value) and str(shape) in str(caught.value)
    assert owned_bytes() == before


def test_no_room_that_shows_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that fills up while it is populated. The estimate is a mock: memory is not scarce."""
    monkeypatch.setattr(populate, "PORTION", 4 * HUGE)
    rooms = iter([1 << 40, 1 << 40, 1 << 40, 0, 0])
    monkeypatch.setattr(populate, "room", lambda node: next(rooms, 0))
    before = owned_bytes()
    with pytest.raises(NodeFullError):
        pageferry.zeros(16 * HUGE, np.uint8, node=NODE)
    assert owned_bytes() == before


def test_ctrl_c_between_two_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a signal is handled is a mock; that the mapping goes is not."""
    monkeypatch.setattr(populate, "PORTION", 4 * HUGE)
    calls = iter(range(3))

    def room(node: int) -> int:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return 1 << 40

    monkeypatch.setattr(populate, "room", room)
    before = owned_bytes()
    with pytest.raises(KeyboardInterrupt):
        pageferry.zeros(16 * HUGE, np.uint8, node=NODE)
    assert owned_bytes() == before


def test_thp_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch is a mock: it is the whole machine's."""
    switch = tmp_path / "enabled"
    switch.write_text("always madvise [never]\n")
    monkeypatch.setattr(page_size, "_ENABLED", switch)
    monkeypatch.setattr(page_size, "thp_shift", lambda: 21)
    with pytest.raises(UnsupportedError, match="echo madvise"):
        pageferry.empty(10, node=NODE, page_size="2M")
    array = pageferry.zeros(2 * HUGE, np.uint8, node=NODE)
    assert pageferry.locate(array).by_kind("thp") == 0
    switch.unlink()
    assert not page_size.thp_available()


def test_seccomp_that_hides_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mock of two nodes: with one there is no doubt where memory is."""
    with pytest.raises(pageferry.NotPermittedError, match="seccomp"):
        monkeypatch.setattr(populate, "machine", lambda: FakeMachine)
        populate.check_code(1, NODE, PAGE, page_size.BASE)
    monkeypatch.undo()
    if len(topology().memory_nodes) == 1:
        populate.check_code(1, NODE, PAGE, page_size.BASE)


class FakeMachine:
    memory_nodes = (0, 1)


@pytest.mark.parametrize(
    ("text", "name"),
    [("4K", "4K"), ("4096", "4K"), ("4KiB", "4K"), ("2M", "2M"), ("2m-hugetlb", "2M-hugetlb")],
)
def test_names_of_page_sizes(
    text: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if PAGE != 4096:
        pytest.skip("names of a machine with 4 KiB pages")
    (tmp_path / "hugepages-2048kB").mkdir()
    (tmp_path / "hugepages-1048576kB").mkdir()
    monkeypatch.setattr(page_size, "_HUGETLB", tmp_path)
    monkeypatch.setattr(page_size, "thp_shift", lambda: 21)
    monkeypatch.setattr(page_size, "thp_available", lambda: True)
    size = page_size.parse_page_size(text)
    assert size.name == name and page_size.parse_page_size(size.name) == size
    gigantic = page_size.parse_page_size("1G")
    assert gigantic.hugetlb and gigantic.name == "1G" and gigantic.bytes == 1 << 30
    for wrong in ("", "4K-hugetlb", "1M", "2M-", "-hugetlb"):
        with pytest.raises(ValueError, match="4K, 2M, 2M-hugetlb, 1G"):
            page_size.parse_page_size(wrong)


def test_a_forked_child_has_the_bytes() -> None:
    """In a process of its own: a fork of this one would have all of its threads' locks."""
    code = (
        "import os, numpy as np, pageferry\n"
        f"array = pageferry.full(3 << 20, 9, np.uint8, node={NODE})\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    ok = (array == 9).all()\n"
        "    array[:] = 1\n"
        f"    more = pageferry.zeros(1 << 20, np.uint8, node={NODE})\n"
        "    os._exit(0 if ok and not more.any() else 1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "assert (array == 9).all()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_many_threads_make_and_drop_them() -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                array = pageferry.full(50 * PAGE + turn, number, np.uint8, node=NODE)
                assert (array == number).all()
                assert owned(address_of(array), address_of(array) + array.nbytes)
        except BaseException as error:
            errors.append(error)

    before = owned_bytes()
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and owned_bytes() == before

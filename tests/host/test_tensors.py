# SPDX-License-Identifier: Apache-2.0
"""Tensors and columns of other libraries as targets, by DLPack and by Arrow's buffers.

The libraries themselves are large; ``make test-tensors`` installs them and runs this with them.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
import pytest
from regions import PAGE, Region

import pageferry
from pageferry.target import resolve
from pageferry.tensors import _Tensor, _Versioned
from pageferry.topology import topology

NODE = topology().target_nodes[0]


def filled(size: int) -> Region:
    region = Region(size)
    region.write(0, size)
    return region


class Tensor:
    """What other libraries have: DLPack, and no buffer. The capsule is numpy's."""

    def __init__(self, array: np.ndarray[Any, Any], device: tuple[int, int] = (1, 0)) -> None:
        self._array, self._device = array, device

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device


class OldTensor(Tensor):
    """From before DLPack had versions."""

    def __dlpack__(self, *, stream: None = None) -> Any:
        return self._array.__dlpack__()


class OddTensor(Tensor):
    """Of elements that numpy has not: the structure is made by hand, over an array's memory."""

    def __init__(
        self,
        memory: np.ndarray[Any, Any],
        bits: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None = None,
        offset: int = 0,
        major: int = 1,
    ) -> None:
        super().__init__(memory)
        dims = ctypes.c_int64 * len(shape)
        self._shape = dims(*shape)
        self._strides = dims(*strides) if strides is not None else None
        as_pointer = ctypes.POINTER(ctypes.c_int64)
        self._managed = _Versioned(
            major=major,
            tensor=_Tensor(
                data=memory.ctypes.data,
                device_type=1,
                ndim=len(shape),
                code=4,  # kDLBfloat
                bits=bits,
                lanes=1,
                shape=ctypes.cast(self._shape, as_pointer),
                strides=ctypes.cast(self._strides, as_pointer) if self._strides else None,
                byte_offset=offset,
            ),
        )

    def __dlpack__(self, **options: Any) -> Any:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self._managed), b"dltensor_versioned", None)


def test_a_tensor_is_moved() -> None:
    region = filled(1 << 20)
    tensor = Tensor(region.bytes)
    (where,) = resolve(tensor).ranges
    assert where == region.range()
    result = pageferry.move(tensor, NODE)
    assert result.complete and result.bytes_moved + result.bytes_already == 1 << 20
    assert pageferry.locate(tensor).bytes_present == 1 << 20


@pytest.mark.parametrize("kind", [Tensor, OldTensor])
def test_part_of_a_tensor(kind: type[Tensor]) -> None:
    region = filled(1 << 20)
    pages = region.bytes.reshape(256, PAGE)
    wanted = range(region.address + 3 * PAGE, region.address + 5 * PAGE)
    for part in (pages[3:5], pages[4:2:-1], pages[3:5, ::-1], pages[3:5].T):
        assert resolve(kind(part)).ranges == (wanted,)


def test_a_tensor_without_elements() -> None:
    assert resolve(Tensor(np.ones(0))).ranges == ()
    assert resolve(Tensor(np.ones((4, 0)))).ranges == ()


def test_elements_that_numpy_does_not_know() -> None:
    region = filled(1 << 20)
    start = region.address
    halves = OddTensor(region.bytes, 16, (256, 2048))  # bfloat16, C order without strides
    assert resolve(halves).ranges == (region.range(),)
    assert pageferry.move(halves, NODE).complete
    some = OddTensor(region.bytes, 16, (2, 2048), (-2048, 1), offset=2 * PAGE)
    assert resolve(some).ranges == (range(start + PAGE, start + 3 * PAGE),)
    nibbles = OddTensor(region.bytes, 4, (2 * PAGE + 1,))  # its last half byte is a page on
    assert resolve(nibbles).ranges == (range(start, start + 2 * PAGE),)
    one = OddTensor(region.bytes, 16, ())
    assert resolve(one).ranges == (range(start, start + PAGE),)


def test_a_later_dlpack_is_refused() -> None:
    with pytest.raises(TypeError, match="DLPack 2"):
        resolve(OddTensor(np.ones(9), 16, (9,), major=2))


def test_no_capsule_is_refused() -> None:
    class Broken(Tensor):
        def __dlpack__(self, **options: Any) -> Any:
            return "tensor"

    with pytest.raises(TypeError, match="returns is no tensor"):
        resolve(Broken(np.ones(9)))


def test_memory_of_a_device_is_refused() -> None:
    with pytest.raises(TypeError, match="not in the memory of the CPU"):
        resolve(Tensor(np.ones(9), device=(2, 0)))


def test_a_tensor_that_cannot_be_shown_is_refused() -> None:
    class Broken(Tensor):
        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("it is sparse")

    with pytest.raises(TypeError, match="it is sparse"):
        resolve(Broken(np.ones(9)))


def test_the_tensor_lives_as_long_as_the_target() -> None:
    array = np.ones(1 << 10)
    before = sys.getrefcount(array)
    what = resolve(Tensor(array))
    assert sys.getrefcount(array) > before
    del what
    assert sys.getrefcount(array) == before


# ---- The libraries themselves


def test_pytorch() -> None:
    torch = pytest.importorskip("torch")
    size = 1 << 20
    plain = torch.arange(size, dtype=torch.float32)
    before = plain.clone()
    assert pageferry.move(plain, NODE).complete and torch.equal(plain, before)
    weight = torch.nn.Linear(1024, 1024).weight  # takes part in differentiation
    assert weight.requires_grad and pageferry.move(weight, NODE).complete
    assert weight.requires_grad
    for kind in (torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.complex64):
        tensor = torch.ones(size, dtype=kind)
        (where,) = resolve(tensor).ranges
        assert tensor.data_ptr() in where
        assert tensor.data_ptr() + size * tensor.element_size() - 1 in where
        assert pageferry.move(tensor, NODE).complete
    square = torch.ones(1024, 1024)
    assert resolve(square.T).ranges == resolve(square).ranges
    assert pageferry.move(square[:, ::2], NODE).complete
    for refused in (torch.eye(64).to_sparse(), torch.ones(64, device="meta")):
        with pytest.raises(TypeError, match="cannot move a Tensor"):
            resolve(refused)


def test_jax() -> None:
    jnp = pytest.importorskip("jax.numpy")
    for kind in (jnp.float32, jnp.bfloat16, jnp.int8):
        array = jnp.ones(1 << 20, dtype=kind)
        (where,) = resolve(array).ranges
        assert array.unsafe_buffer_pointer() in where
        assert len(where) >= array.nbytes
        assert pageferry.move(array, NODE).complete and bool((array == 1).all())


def test_arrow() -> None:
    arrow = pytest.importorskip("pyarrow")
    numbers = arrow.array(np.arange(1 << 16, dtype=np.int64))
    texts = arrow.array([f"{i:0100}" for i in range(1 << 14)])
    holes = arrow.array([1, None] * (1 << 14))
    table = arrow.table({"a": arrow.chunked_array([numbers, numbers]), "b": np.arange(2 << 16)})
    for column in (numbers, texts, holes, numbers.buffers()[1], table["a"], table):
        assert pageferry.move(column, NODE).complete
    for column in (numbers, texts, holes):
        what = resolve(column)
        for buffer in filter(None, column.buffers()):
            assert any(buffer.address in part for part in what.ranges)
    region = filled(3 * PAGE)
    ends = arrow.chunked_array(
        arrow.Array.from_buffers(arrow.int64(), PAGE // 8, [None, arrow.py_buffer(part)])
        for part in (region.bytes[2 * PAGE :], region.bytes[:PAGE])
    )
    first, last = resolve(ends).ranges
    assert (first.start, last.stop) == (region.address, region.address + 3 * PAGE)
    assert len(first) == len(last) == PAGE
    with pytest.raises(TypeError, match="one piece of memory"):
        pageferry.exchange(ends, ends)

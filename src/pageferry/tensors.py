# SPDX-License-Identifier: Apache-2.0
"""Where the tensors and columns of other libraries have their bytes: DLPack, Arrow buffers.

DLPack's structures are read here, not by numpy, as numpy refuses types that it has not: bfloat16,
the 8-bit floats and 4-bit integers of model weights. Only addresses are taken from them.
"""

from __future__ import annotations

import ctypes
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Protocol

    class SupportsDLPack(Protocol):
        """A tensor of another library."""

        def __dlpack__(self, *, stream: None = None) -> Any: ...

        def __dlpack_device__(self) -> Any: ...


_CPU = 1  # kDLCPU
_MAJOR = 1  # the version of DLPack whose structures are these


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


def tensor_span(tensor: SupportsDLPack) -> tuple[int, int, object]:
    """Return first address and end of a tensor's bytes, and what must live for them to be valid.

    A tensor of PyTorch that takes part in differentiation is looked at through ``detach()``, which
    has the same memory. Raises ``TypeError`` for tensors of a device, or that do not show their
    memory.
    """
    kind = type(tensor).__name__
    try:
        device = int(tensor.__dlpack_device__()[0])
    except (BufferError, RuntimeError, ValueError, TypeError) as error:
        raise TypeError(f"cannot move a {kind}: {error}") from None
    if device != _CPU:
        raise TypeError(
            f"this {kind} is not in the memory of the CPU (DLPack device {device}), or it is "
            "pinned there: the kernel moves neither"
        )
    if getattr(tensor, "requires_grad", False):
        tensor = tensor.detach()  # type: ignore[attr-defined]
    try:
        capsule = _capsule(tensor)
    except (BufferError, RuntimeError, ValueError, TypeError) as error:
        raise TypeError(
            f"cannot move a {kind}: {error}; give the tensors or buffers that it is made of"
        ) from None
    start, end = _bounds(_structure(capsule, kind))
    return start, end, (tensor, capsule)  # an unused capsule gives the tensor back as it goes


def _capsule(tensor: Any) -> Any:
    try:
        return tensor.__dlpack__(max_version=(_MAJOR, 0))
    except TypeError:  # an exporter from before versions
        return tensor.__dlpack__()


def _structure(capsule: object, kind: str) -> _Tensor:
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    is_valid = ctypes.pythonapi.PyCapsule_IsValid
    is_valid.restype, is_valid.argtypes = ctypes.c_int, (ctypes.py_object, ctypes.c_char_p)
    if is_valid(capsule, b"dltensor_versioned"):
        versioned = _Versioned.from_address(pointer(capsule, b"dltensor_versioned"))
        if versioned.major == _MAJOR:
            return versioned.tensor  # type: ignore[no-any-return]
        raise TypeError(f"cannot move a {kind}: DLPack {versioned.major} is not known here")
    if is_valid(capsule, b"dltensor"):
        return _Tensor.from_address(pointer(capsule, b"dltensor"))
    raise TypeError(f"cannot move a {kind}: what its __dlpack__ returns is no tensor")


def _bounds(tensor: _Tensor) -> tuple[int, int]:
    shape = tensor.shape[: tensor.ndim]
    if 0 in shape or not tensor.data:
        return 0, 0
    bits = tensor.bits * tensor.lanes
    low = high = 0  # of the first and the last element, counted in elements
    if tensor.strides:
        for size, stride in zip(shape, tensor.strides[: tensor.ndim], strict=True):
            reach = (size - 1) * stride
            low, high = low + min(reach, 0), high + max(reach, 0)
    else:
        high = 1
        for size in shape:
            high *= size
        high -= 1
    first = tensor.data + tensor.byte_offset
    return first + low * bits // 8, first - (-(high + 1) * bits // 8)


def arrow_buffers(value: object) -> list[object] | None:
    """Return the buffers of an Arrow array, chunked array, record batch or table, or ``None``.

    Known by their methods, as pyarrow is not imported. A slice has the buffers of the whole.
    """
    if type(value).__module__.partition(".")[0] != "pyarrow":
        return None
    if hasattr(value, "buffers"):
        return [buffer for buffer in value.buffers() if buffer is not None]
    parts = getattr(value, "chunks", None) or getattr(value, "columns", None)
    if parts is None:
        return None
    return list(chain.from_iterable(arrow_buffers(part) or () for part in parts))

# SPDX-License-Identifier: Apache-2.0
"""What a request is about: an array, a buffer, an address range, or a whole process."""

from __future__ import annotations

import errno
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np

from . import procfs
from ._native import ffi
from .errors import ProcessGoneError, RangeError
from .pages import PAGE_SIZE
from .tensors import arrow_buffers, tensor_span

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt
    from typing_extensions import Buffer

    from .tensors import SupportsDLPack

    Movable: TypeAlias = npt.NDArray[Any] | Buffer | SupportsDLPack | range | None

# The end of the largest user address space that Linux has (x86 with 5-level page tables).
_ADDRESS_END = 1 << 57


@dataclass(frozen=True)
class Target:
    """Address ranges of one process, widened to whole base pages.

    ``pid`` 0 is the calling process. ``owner`` keeps a buffer alive, and exported, for as long
    as the target lives. ``bytes`` is the size of the ranges, present or not.
    """

    pid: int
    ranges: tuple[range, ...]
    whole_process: bool = False
    owner: object = None

    @property
    def bytes(self) -> int:
        """Size of all ranges together, in bytes."""
        return sum(len(r) for r in self.ranges)

    def one_range(self) -> range:
        """Return the one range that there is (an empty one for nothing), or raise TypeError."""
        if len(self.ranges) > 1:
            raise TypeError(f"this takes one piece of memory, not {len(self.ranges)}")
        return self.ranges[0] if self.ranges else range(0)


def resolve(target: Movable, pid: int | None = None, partial: str = "touched") -> Target:
    """Return the address ranges that ``target`` and ``pid`` mean.

    ``target`` is a numpy array, an object with a buffer (also a read-only one) or with DLPack (a
    tensor of another library, in CPU memory), an array, record batch or table of pyarrow, a
    ``range`` of addresses (of process ``pid``, or of this one), or ``None`` for the whole process
    ``pid``.
    ``partial`` says what happens to pages that the range covers in part: ``"touched"`` takes
    them whole, ``"inside"`` leaves them out. Raises ``RangeError`` for impossible addresses,
    ``TypeError`` for objects without a buffer, ``ProcessGoneError`` and ``NotPermittedError``
    for processes that cannot be looked at.
    """
    if partial not in ("touched", "inside"):
        raise ValueError(f"partial must be 'touched' or 'inside', not {partial!r}")
    if isinstance(pid, bool) or not isinstance(pid, (int, np.integer, type(None))):
        raise TypeError(f"a process id is a number, not {pid!r}")
    if pid is not None and not 0 < pid < 1 << 31:
        raise RangeError(
            errno.ESRCH, f"{pid} is no process id", "process ids are 1 and above, below 2**31"
        )
    if target is None:
        if pid is None:
            raise TypeError("move what? give a target, or pid= for a whole process")
        pid = int(pid)
        mapped = procfs.ranges(pid)
        if not mapped:
            raise without_memory(pid)
        return Target(pid, tuple(mapped), whole_process=True)
    if isinstance(target, range):
        return Target(int(pid or 0), _whole_pages(*_checked(target), partial))
    if pid is not None:
        raise TypeError("with pid=, the target is a range of addresses or None")
    spans, owner = _spans(target)
    return Target(0, _pages_of(spans, partial), owner=owner)


def _checked(addresses: range) -> tuple[int, int]:
    if addresses.step != 1:
        raise RangeError(errno.EINVAL, f"an address range has step 1, not {addresses.step}")
    if addresses.start < 0 or addresses.stop > _ADDRESS_END:
        raise RangeError(
            errno.EFAULT,
            f"addresses {addresses.start:#x}-{addresses.stop:#x} are beyond the address space",
            f"user addresses end at {_ADDRESS_END:#x}",
        )
    if addresses.stop < addresses.start:
        raise RangeError(
            errno.EINVAL,
            f"the range {addresses.start:#x}-{addresses.stop:#x} is reversed",
            "give the lower address first",
        )
    return addresses.start, addresses.stop


def _spans(target: object) -> tuple[list[tuple[int, int]], object]:
    """Return first addresses and ends, and what must stay alive for them to be valid."""
    if isinstance(target, np.ndarray):
        return [_bounds(target)], target
    if isinstance(target, mmap.mmap) and target.closed:
        raise ValueError("the mmap is closed")
    buffers = arrow_buffers(target)
    if buffers is not None:
        parts = [_spans(memoryview(buffer)) for buffer in buffers]  # type: ignore[arg-type]
        return [span for spans, _ in parts for span in spans], [owner for _, owner in parts]
    try:
        view = memoryview(target)  # type: ignore[arg-type]
    except (TypeError, BufferError) as error:  # no buffer, or not of this type of elements
        if hasattr(target, "__dlpack__"):
            start, end, owner = tensor_span(cast("SupportsDLPack", target))
            return [(start, end)], owner
        if isinstance(error, BufferError):
            raise
        raise TypeError(
            f"cannot move a {type(target).__name__}: give a numpy array, an object with a "
            "buffer or DLPack, or a range of addresses"
        ) from None
    if view.nbytes == 0:
        return [], view
    if view.c_contiguous:  # also in formats that numpy does not know
        start = int(ffi.cast("uintptr_t", ffi.from_buffer(view)))
        return [(start, start + view.nbytes)], view
    array = np.asarray(view)
    return [_bounds(array)], (view, array)


def _bounds(array: npt.NDArray[Any]) -> tuple[int, int]:
    if array.size == 0:
        return 0, 0
    start, end = np.lib.array_utils.byte_bounds(array)
    return start, end


def _pages_of(spans: list[tuple[int, int]], partial: str) -> tuple[range, ...]:
    """Return the pages of all spans, in order, none twice."""
    ranges: list[range] = []
    for start, end in sorted(spans):
        for pages in _whole_pages(start, end, partial):
            if ranges and pages.start <= ranges[-1].stop:
                ranges[-1] = range(ranges[-1].start, max(ranges[-1].stop, pages.stop))
            else:
                ranges.append(pages)
    return tuple(ranges)


def _whole_pages(start: int, end: int, partial: str) -> tuple[range, ...]:
    if start == end:
        return ()
    if partial == "touched":
        start -= start % PAGE_SIZE
        end += -end % PAGE_SIZE
    else:
        start += -start % PAGE_SIZE
        end -= end % PAGE_SIZE
    return (range(start, end),) if start < end else ()


def without_memory(pid: int) -> ProcessGoneError | RangeError:
    """Return the error for a process without mappings: the kernel's own, or one that is ending.

    A process that is killed gives up its memory some time before it is seen to have ended.
    """
    if procfs.is_kernel_thread(pid):
        return RangeError(
            errno.EINVAL, f"process {pid} has no memory of its own", "kernel threads have none"
        )
    return ProcessGoneError(errno.ESRCH, f"process {pid} ended", "check the process id")

# SPDX-License-Identifier: Apache-2.0
"""Copy from one buffer to another with several threads, at the speed of the memory."""

from __future__ import annotations

import os
import threading as _threading
import time
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np

from ._native import ffi, lib
from .nodes import machine
from .plan import MAX_THREADS
from .seats import Seats, seats_near

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt
    from typing_extensions import Buffer

#: From this size on an automatic copy is preceded, once, by the measurement of ``tune``.
TUNED_FROM = 64 << 20

METHOD_CODES: dict[str, int] = {
    ffi.string(lib.pf_copy_name(code)).decode(): code for code in range(lib.PF_COPY_METHODS)
}
_NAMES = {code: name for name, code in METHOD_CODES.items()}
_tuning = _threading.Lock()
_tuned = False


@dataclass(frozen=True)
class CopyResult:
    """What a copy did: the threads that took part, and the method that ``"auto"`` came to."""

    bytes: int
    seconds: float
    threads: int
    method: str

    @property
    def gbps(self) -> float:
        """Throughput in GB/s (10**9 bytes copied, counted once)."""
        return self.bytes / self.seconds / 1e9 if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return asdict(self) | {"gbps": self.gbps}


@dataclass(frozen=True)
class Tuning:
    """What an automatic copy goes by. Sizes are bytes.

    ``large_method`` copies from ``large_bytes`` on, ``memcpy`` below. A thread more is taken for
    each ``thread_bytes``.
    """

    large_method: str
    large_bytes: int
    thread_bytes: int


def copy(
    dst: npt.NDArray[Any] | Buffer,
    src: npt.NDArray[Any] | Buffer,
    *,
    threads: int | str = "auto",
    method: str = "auto",
) -> CopyResult:
    """Copy the bytes of ``src`` to ``dst``; the GIL is free meanwhile.

    Both are numpy arrays or other objects with a buffer, in one piece, of the same size in bytes;
    what the bytes mean is not looked at. ``threads`` is a number, or ``"auto"``: one for each
    core that this process may use, as far as there is work for them. ``method`` is one of
    ``methods()``, or ``"auto"``: ``memcpy`` for small copies, for large ones what was measured to
    be best (``tune``), usually non-temporal stores, which leave ``dst`` outside the caches.

    Another thread may write ``src`` meanwhile: an aligned word of 8 bytes arrives whole. Raises
    ``ValueError`` for buffers that differ in size, overlap, or are not in one piece, for a
    read-only ``dst`` and for a method that this CPU lacks; ``TypeError`` for objects without a
    buffer and for arrays of Python objects. Nothing has been written then.
    """
    to, source = _in_one_piece(dst, "dst"), _in_one_piece(src, "src")
    if to.readonly:
        raise ValueError("dst is read-only")
    if to.nbytes != source.nbytes:
        raise ValueError(f"dst has {to.nbytes} bytes, src {source.nbytes}")
    size = to.nbytes
    code = METHOD_CODES.get(method)
    if code is None:
        raise ValueError(f"method must be 'auto' or one of {', '.join(methods())}, not {method!r}")
    automatic = threads == "auto"
    if not automatic and (
        isinstance(threads, bool) or not isinstance(threads, Integral) or threads < 1
    ):
        raise ValueError(f"threads must be 'auto' or a number from 1 up, not {threads!r}")
    if size >= TUNED_FROM and (automatic or not code):
        tune(again=False)
    chosen = lib.pf_copy_choose(size, code)
    if chosen < 0:
        raise ValueError(f"this CPU cannot copy by {method}; it can by {', '.join(methods())}")
    if not size:
        return CopyResult(0, 0.0, 1, _NAMES[chosen])
    count, cpus = _workers(size) if automatic else _placed(min(int(threads), MAX_THREADS))
    a, b = ffi.from_buffer(to), ffi.from_buffer(source)
    begun = time.perf_counter()
    took_part = lib.pf_copy_pages_mthread(a, b, size, count, cpus, chosen)
    seconds = time.perf_counter() - begun
    if took_part < 0:
        raise ValueError(
            f"dst at {int(ffi.cast('uintptr_t', a)):#x} and src at "
            f"{int(ffi.cast('uintptr_t', b)):#x}, {size} bytes each, overlap"
        )
    return CopyResult(size, seconds, int(took_part), _NAMES[chosen])


def methods() -> tuple[str, ...]:
    """Return the methods that this CPU can copy by, without ``"auto"``."""
    mask = lib.pf_copy_methods()
    return tuple(name for code, name in sorted(_NAMES.items()) if mask >> code & 1)


def tune(*, again: bool = True) -> Tuning:
    """Measure which way of copying is best here, and have automatic copies go by it.

    Takes some 30 ms and 8 MiB. ``copy`` does it before its first large copy; with
    ``again=False`` what was measured before is kept. Raises ``MemoryError``.
    """
    global _tuned
    with _tuning:
        found = ffi.new("struct pf_copy_tuning *")
        lib.pf_copy_tuned(found)
        if again or not _tuned:
            _, cpus = _placed(2)
            if lib.pf_copy_measure(found, cpus) < 0:
                raise MemoryError("no 8 MiB to measure copies on")
            lib.pf_copy_tune(found)
            _tuned = True
    return Tuning(_NAMES[found.large_method], int(found.large_bytes), int(found.thread_bytes))


def _in_one_piece(buffer: object, name: str) -> memoryview:
    """Return a view of the bytes, for numpy's types too that other buffers do not know."""
    if isinstance(buffer, np.ndarray):
        if buffer.dtype.hasobject:
            raise TypeError(f"{name} holds Python objects: their references cannot be copied")
        if not buffer.flags.c_contiguous:
            raise ValueError(
                f"{name} is not contiguous (strides {buffer.strides}, shape {buffer.shape}); "
                "copy its contiguous parts, or use numpy.copyto"
            )
        return memoryview(buffer.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    try:
        view = memoryview(buffer)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"{name} is a {type(buffer).__name__}: give a numpy array or an object with a buffer"
        ) from None
    if not view.c_contiguous:
        raise ValueError(f"{name} is not contiguous")
    if "O" in view.format:
        raise TypeError(f"{name} holds Python objects: their references cannot be copied")
    return view


def _workers(size: int) -> tuple[int, Any]:
    """Return how many threads are worth while for so many bytes, and their CPUs."""
    now = ffi.new("struct pf_copy_tuning *")
    lib.pf_copy_tuned(now)
    work = size // int(now.thread_bytes)
    if work < 2:
        return 1, ffi.NULL
    return _placed(min(work, _seats().cores))


def _placed(count: int) -> tuple[int, Any]:
    """Return the number of threads and a C array of their CPUs."""
    cpus = _seats().cpus if count > 1 else ()
    if not cpus:
        return count, ffi.NULL
    return count, ffi.new("int32_t[]", [cpus[i % len(cpus)] for i in range(count)])


def _seats() -> Seats:
    return seats_near(machine(), os.sched_getaffinity(0), None)

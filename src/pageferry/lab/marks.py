# SPDX-License-Identifier: Apache-2.0
"""Marks that ``split_plugin.c`` sees, for programs in a guest. Needs nothing of the package."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator

_MAGIC = 0x5046_0000
_NUMBERS = 1 << 15


class Marks:
    """For a program in a guest started with ``accel="split"``: marks that the plugin sees.

    Elsewhere they are NOPs. x86-64 only.
    """

    def __init__(self) -> None:
        self._code = mmap.mmap(
            -1,
            mmap.PAGESIZE,
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
            prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
        )
        self._calls: dict[int, ctypes._FuncPointer] = {}

    def _call(self, mark: int) -> ctypes._FuncPointer:
        if mark not in self._calls:
            at = 8 * len(self._calls)
            # nopl magic(%rax); ret
            self._code[at : at + 8] = (
                b"\x0f\x1f\x80" + (_MAGIC + mark).to_bytes(4, "little") + b"\xc3"
            )
            base = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
            self._calls[mark] = ctypes.CFUNCTYPE(None)(base + at)
        return self._calls[mark]

    @contextlib.contextmanager
    def span(self, number: int) -> Iterator[None]:
        """Mark what is done inside as the span of this number, below 32768."""
        if not 0 <= number < _NUMBERS:
            raise ValueError(f"span {number} is not in 0 to {_NUMBERS - 1}")
        begin, end = self._call(2 * number), self._call(2 * number + 1)
        begin()
        try:
            yield
        finally:
            end()

# SPDX-License-Identifier: Apache-2.0
"""Ask the running kernel by trying: move_pages, PAGEMAP_SCAN and userfaultfd on a page of ours.

Behaviour and never version: distributions backport, containers filter, and both answer here.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import struct
from dataclasses import dataclass
from typing import Final

from .flags import MPOL_MF_MOVE

# (move_pages, userfaultfd); arm64, riscv64 and loongarch64 share the generic table.
_SYSCALLS: Final = {
    "x86_64": (279, 323),
    "aarch64": (239, 282),
    "riscv64": (239, 282),
    "loongarch64": (239, 282),
    "ppc64le": (301, 364),
    "s390x": (310, 355),
}
_UNTOUCHED: Final = -4095  # no errno: tells whether the kernel wrote the status

_PAGEMAP_SCAN: Final = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
_PAGE_IS_PRESENT: Final = 1 << 3

_UFFDIO_API: Final = 0xC018AA3F  # _IOWR(0xAA, 0x3F, struct uffdio_api)
_USERFAULTFD_IOC_NEW: Final = 0xAA00  # _IO(0xAA, 0)
_UFFD_USER_MODE_ONLY: Final = 1
UFFD_FEATURE_PAGEFAULT_FLAG_WP: Final = 1 << 0
UFFD_FEATURE_MOVE: Final = 1 << 16


@dataclass(frozen=True)
class MovePages:
    """How ``move_pages(2)`` answered for one page of this process."""

    errno: int
    """0, or why the call was refused."""
    source: int = -1
    """Node that the page was on."""
    target: int = -1
    """Node that it was asked to go to."""
    status: int = _UNTOUCHED
    """Node that the kernel says the page is on now, or a negative errno."""

    @property
    def moved(self) -> bool:
        """The page is on the target node."""
        return self.errno == 0 and self.status == self.target >= 0


@dataclass(frozen=True)
class Userfaultfd:
    """Which ways to a userfaultfd are open to this process."""

    kernel_faults: bool
    """The plain system call works: faults of system calls are handled as well."""
    user_faults: bool
    """It works with UFFD_USER_MODE_ONLY: a ``read(2)`` into the range would fail instead."""
    device: bool
    """``/dev/userfaultfd`` gives one, which handles kernel faults too."""
    features: int
    """UFFD_FEATURE_* bits that UFFDIO_API offers; 0 when there is no userfaultfd."""
    errno: int
    """0, or why the plain system call was refused."""


def move_pages(target: int | None = None) -> MovePages:
    """Move one own page with the raw system call to ``target`` (None: where it is already).

    Raises ``NotImplementedError`` on an architecture whose call numbers are not known here.
    """
    number, _ = _numbers()
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        page[0] = 1
        view = ctypes.c_char.from_buffer(page)
        pages = (ctypes.c_void_p * 1)(ctypes.addressof(view))
        del view
        node = ctypes.c_int(0)
        status = ctypes.c_int(_UNTOUCHED)

        def call(nodes: object) -> int:
            return _syscall(number, 0, 1, pages, nodes, ctypes.byref(status), MPOL_MF_MOVE)

        # Without nodes it only asks, which a filter refuses just the same.
        refused = call(None)
        source = status.value
        if refused or source < 0:
            return MovePages(refused or -source, source=source, status=source)
        node.value = source if target is None else target
        status.value = _UNTOUCHED
        refused = call(ctypes.byref(node))
        return MovePages(refused, source, node.value, status.value)


def pagemap_scan() -> int:
    """Try the ioctl PAGEMAP_SCAN (6.7) on an own page: 0, or the errno (ENOTTY: not there).

    EBADMSG stands for an answer that is not true.
    """
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        page[0] = 1
        view = ctypes.c_char.from_buffer(page)
        start = ctypes.addressof(view)
        del view
        region = (ctypes.c_uint64 * 3)()
        # struct pm_scan_arg: size flags start end walk_end vec vec_len max_pages, then the
        # categories: inverted, required, any of, returned.
        argument = struct.pack(
            "12Q",
            *(96, 0, start, start + mmap.PAGESIZE, 0, ctypes.addressof(region), 1, 0),
            *(0, _PAGE_IS_PRESENT, 0, _PAGE_IS_PRESENT),
        )
        try:
            descriptor = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            return error.errno or errno.EIO
        try:
            fcntl.ioctl(descriptor, _PAGEMAP_SCAN, bytearray(argument))
        except OSError as error:
            return error.errno or errno.EIO
        finally:
            os.close(descriptor)
        true = list(region) == [start, start + mmap.PAGESIZE, _PAGE_IS_PRESENT]
        return 0 if true else errno.EBADMSG


def userfaultfd() -> Userfaultfd:
    """Try the three ways to a userfaultfd, and ask the best one for its features.

    Raises ``NotImplementedError`` on an architecture whose call numbers are not known here.
    """
    _, number = _numbers()
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    descriptors: list[int] = []
    try:
        plain = _descriptor(number, flags)
        user_only = _descriptor(number, flags | _UFFD_USER_MODE_ONLY)
        device = _from_device(flags)
        descriptors = [fd for fd in (plain, user_only, device) if fd >= 0]
        features = _features(descriptors[0]) if descriptors else 0
        return Userfaultfd(plain >= 0, user_only >= 0, device >= 0, features, max(0, -plain))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _numbers() -> tuple[int, int]:
    machine = platform.machine()
    if machine not in _SYSCALLS:
        raise NotImplementedError(f"the system call numbers of {machine} are not known here")
    return _SYSCALLS[machine]


def _from_device(flags: int) -> int:
    try:
        device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return -(error.errno or errno.EIO)
    try:
        return fcntl.ioctl(device, _USERFAULTFD_IOC_NEW, flags)
    except OSError as error:
        return -(error.errno or errno.EIO)
    finally:
        os.close(device)


def _features(descriptor: int) -> int:
    """Return what UFFDIO_API offers: asking for nothing makes it tell everything."""
    argument = bytearray(struct.pack("3Q", 0xAA, 0, 0))
    try:
        fcntl.ioctl(descriptor, _UFFDIO_API, argument)
    except OSError:
        return 0
    features: int = struct.unpack("3Q", argument)[1]
    return features


def _descriptor(number: int, flags: int) -> int:
    """Return what the system call returns, or the negative errno."""
    ctypes.set_errno(0)
    result = int(_libc.syscall(ctypes.c_long(number), ctypes.c_long(flags)))
    return result if result >= 0 else -(ctypes.get_errno() or errno.EIO)


def _syscall(number: int, *arguments: object) -> int:
    """Return 0, or the errno. A positive answer (pages not moved) is no error."""
    ctypes.set_errno(0)
    values = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *values))
    return 0 if result >= 0 else ctypes.get_errno() or errno.EIO


_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

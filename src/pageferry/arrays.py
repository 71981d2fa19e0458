# SPDX-License-Identifier: Apache-2.0
"""numpy arrays on a chosen node, in pages of a chosen size."""

from __future__ import annotations

import errno
import math
from operator import index
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ._native import ffi, lib
from .errors import NodeFullError
from .nodes import check_node
from .page_size import BASE, PageSize, parse_page_size, thp_available
from .populate import check_code, check_room, populate
from .survey import thp_shift

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import SupportsIndex, TypeAlias

    import numpy.typing as npt

    Shape: TypeAlias = SupportsIndex | Sequence[SupportsIndex]

# Start and end of every mapping that an array of ours lives in.
_mappings: dict[int, int] = {}


def empty(
    shape: Shape,
    dtype: npt.DTypeLike = np.float64,
    *,
    node: int,
    page_size: str = "auto",
    order: Literal["C", "F"] = "C",
    populate: bool = True,
    threads: int | str = "auto",
) -> npt.NDArray[Any]:
    """Return a new array whose memory is on ``node``, as ``numpy.empty`` otherwise.

    - ``page_size``: ``"4K"`` (the base page; kept from becoming huge), ``"2M"`` (transparent huge
      pages, all of them, or the call fails), ``"2M-hugetlb"`` and ``"1G"`` (from the pools that
      the administrator sets), or ``"auto"``: huge pages where the array fills them and the
      kernel has them, base pages for the rest.
    - ``populate``: by default every page is there when the call returns, brought by many
      threads and checked to be on the node. With False, pages come when they are touched, from
      the node as long as it has room and from elsewhere then.
    - ``threads``: a number, or ``"auto"``.

    The node is the *preferred* one of the mapping (MPOL_PREFERRED of mbind(2)): under MPOL_BIND,
    touching memory of a full node would wake the OOM killer. The array is a plain ndarray; its
    mapping goes when the last view of it does. Copies and pickles are ordinary arrays: their
    memory is where the system puts it. An array without bytes has no mapping.

    Raises ``NodeError`` for a bad node, ``NodeFullError`` (a ``MemoryError``) that names node
    and size when there is no room or there are no pages of that size, ``UnsupportedError`` where
    transparent huge pages are switched off, ``TypeError`` for dtypes with Python objects, which
    live on the heap and not in the array. In a memory cgroup that is at its limit, the kernel's OOM
    killer decides, as it does for any memory.
    """
    check_node(node, None)
    if not isinstance(shape, (tuple, list, np.ndarray)):
        shape = (shape,)  # type: ignore[assignment]
    lengths = tuple(index(length) for length in shape)  # type: ignore[union-attr]
    if any(length < 0 for length in lengths):
        raise ValueError("negative dimensions are not allowed")
    if order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', not {order!r}")
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"{kind} holds Python objects, which are on the heap, not in the array")
    size = math.prod(lengths) * kind.itemsize
    chosen = None if page_size == "auto" else parse_page_size(page_size)
    if not size:
        return np.empty(lengths, kind, order)
    memory = _memory(size, int(node), chosen, populate, threads)
    return np.ndarray(lengths, kind, buffer=memory, order=order)


def zeros(
    shape: Shape,
    dtype: npt.DTypeLike = np.float64,
    *,
    node: int,
    page_size: str = "auto",
    order: Literal["C", "F"] = "C",
    populate: bool = True,
    threads: int | str = "auto",
) -> npt.NDArray[Any]:
    """Return a new array of zeros whose memory is on ``node``; see ``empty``."""
    return empty(  # the kernel's pages are zeroed
        shape,
        dtype,
        node=node,
        page_size=page_size,
        order=order,
        populate=populate,
        threads=threads,
    )


def full(
    shape: Shape,
    fill_value: Any,
    dtype: npt.DTypeLike | None = None,
    *,
    node: int,
    page_size: str = "auto",
    order: Literal["C", "F"] = "C",
    threads: int | str = "auto",
) -> npt.NDArray[Any]:
    """Return a new array of ``fill_value`` whose memory is on ``node``; see ``empty``.

    ``dtype`` is that of the value unless given, as with ``numpy.full``.
    """
    kind = np.asarray(fill_value).dtype if dtype is None else dtype
    array = empty(shape, kind, node=node, page_size=page_size, order=order, threads=threads)
    np.copyto(array, fill_value, casting="unsafe")
    return array


def owned(start: int, stop: int) -> bool:
    """Say whether every page of a range of addresses is memory of arrays made here.

    Nobody else can have pinned or shared such memory without the caller's doing, so an engine
    may treat it as memory whose use the caller vouches for.
    """
    for first, end in sorted(_mappings.copy().items()):
        if first <= start < end:
            start = end
    return start >= stop


def _memory(
    size: int, node: int, page_size: PageSize | None, populated: bool, threads: int | str
) -> Any:
    """Return a buffer of ``size`` bytes; its mapping ends with the last reference to it."""
    body = 0  # in huge pages that may turn out base pages: for "auto"
    pages = page_size or BASE
    whole = pages.whole(size)
    huge = PageSize(thp_shift())
    if page_size is None and thp_available():
        body = whole - whole % huge.bytes
    if populated and not pages.hugetlb:
        check_room(node, whole)
    start = lib.pf_map(
        whole, huge.shift if body else pages.shift, lib.PF_POPULATE_HUGETLB * pages.hugetlb
    )
    if start == -errno.ENOMEM and not pages.hugetlb:
        raise NodeFullError(
            errno.ENOMEM,
            f"no address space for {size} bytes on node {node}",
            "see ulimit -v and vm.overcommit_memory",
        )
    check_code(min(start, 0), node, size, pages)
    owner = ffi.gc(ffi.cast("char *", start), _unmapper(start, whole), whole)
    _mappings[start] = start + whole
    if body:
        populate(start, body, node, huge, threads=threads, fall_back=True, later=not populated)
    if whole > body:
        populate(start + body, whole - body, node, pages, threads=threads, later=not populated)
    return ffi.buffer(owner, size)


def _unmapper(start: int, size: int) -> Any:
    def unmap(pointer: object) -> None:
        _mappings.pop(start, None)
        lib.pf_unmap(start, size)

    return unmap

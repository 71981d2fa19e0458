# SPDX-License-Identifier: Apache-2.0
"""Which part of a target is meant: memory of some kinds, pages of one size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from . import procfs
from .page_size import PageSize, parse_page_size
from .target import Target

#: Kinds of memory, told by the mapping: ``anon``, private memory without a file, heap and stack
#: among it; ``heap``; ``stack``, of the main thread; ``file``, mapped files and shared memory.
MEMORY_KINDS = ("anon", "heap", "stack", "file")


@dataclass(frozen=True)
class Filter:
    """Memory of these kinds (None: of all), in pages of this size (None: of every size)."""

    kinds: frozenset[str] | None = None
    page_size: PageSize | None = None

    @classmethod
    def of(cls, kind: str | Iterable[str] | None, page_size: str | None) -> Filter:
        """Return the filter for ``kind=`` and ``only_page_size=``.

        Raises ``ValueError`` for a kind or size that there is none of, ``TypeError`` for others.
        """
        kinds = None
        if kind is not None:
            kinds = frozenset([kind] if isinstance(kind, str) else kind)
            if not kinds or not kinds <= set(MEMORY_KINDS):
                raise ValueError(f"kind is one or several of {', '.join(MEMORY_KINDS)}: {kind!r}")
        size = None if page_size is None else parse_page_size(page_size, allocate=False)
        return cls(kinds, size)

    def narrowed(self, target: Target) -> Target:
        """Return what of ``target`` lies in mappings of the kinds. Raises as ``mappings``."""
        if self.kinds is None:
            return target
        ranges = [
            range(max(wanted.start, mapping.start), min(wanted.stop, mapping.end))
            for mapping in procfs.mappings(target.pid or None)
            if self._takes(mapping)
            for wanted in target.ranges
            if mapping.start < wanted.stop and wanted.start < mapping.end
        ]
        return replace(target, ranges=tuple(ranges))

    def _takes(self, mapping: procfs.Mapping) -> bool:
        assert self.kinds is not None
        if mapping.special:
            return False
        # MAP_HUGETLB has a file behind it that nobody sees.
        anonymous = mapping.anonymous or (mapping.private and mapping.name == "/anon_hugepage")
        kinds = {"anon" if anonymous else "file"}
        if mapping.name in ("[heap]", "[stack]"):
            kinds.add(mapping.name.strip("[]"))
        return not self.kinds.isdisjoint(kinds)

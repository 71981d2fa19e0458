# SPDX-License-Identifier: Apache-2.0
"""Published throughput of page migration, one row for each measured cell."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

#: The 2017 series, whose experiment ``bench series`` repeats.
SERIES = "lkml-2017-02-17-khandual"


@dataclass(frozen=True)
class Row:
    """One cell: what was moved how, and GB/s of it (and of the copying alone, where given)."""

    source: str
    machine: str
    engine: str
    page_size: int
    pages: int
    threads: int
    gbps: float
    copy_gbps: float | None

    @property
    def bytes(self) -> int:
        """All pages together, in bytes."""
        return self.page_size * self.pages

    @property
    def seconds(self) -> float:
        """What the move took."""
        return self.bytes / self.gbps / 1e9


def published(source: str | None = None) -> tuple[Row, ...]:
    """Return the rows of one source, or all of them, in the order of the table."""
    text = (resources.files(__package__) / "published-throughput.csv").read_text()
    rows = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, machine, engine, size, pages, threads, gbps, copy = line.split(",")
            row = Row(
                name, machine, engine, int(size), int(pages), int(threads), float(gbps),
                float(copy) if copy else None,
            )  # fmt: skip
            if source in (None, name):
                rows.append(row)
    return tuple(rows)

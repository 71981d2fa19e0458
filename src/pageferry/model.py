# SPDX-License-Identifier: Apache-2.0
"""The cost model: how long a move takes, what holds it up, and how many threads are of use.

By n threads, each of which moves whole pages by system calls of its own (engine ``kernel``)::

    seconds      = fixed + together(bookkeeping + copy, link)

    fixed        = (calls(n) + n - 1) * call_us + waiting + handover(n), calls * call_us for one
    waiting      = (calls(n) - 1) * max(0, (n - 1) * call_us - (bookkeeping + copy) / calls(n))
    bookkeeping  = sum over page sizes of pages * page_us(size) * contention(n) / cores(n) * most(n)
    copy         = bytes * most(n)
                   / sum over last-level caches of min(cache_gbps, cores in it * thread_gbps)
    link         = bytes / link_gbps

By one thread, of which only the copying is shared out to n (engines ``split`` and
``split-batch``, the kernel patches of 2017, 2019 and 2025)::

    seconds      = fixed + bookkeeping(1) + handovers * handover(n) + together(copy, link)

with, in both::

    cores(n)      = cores used + smt_gain * SMT siblings used
    contention(n) = 1 + serial * (n - 1) + crosstalk * n * (n - 1)
    calls(n)      = 1 + log2(bytes / n / piece): shares shrink to the smallest piece
    handover(n)   = handover_us + handover_thread_us * (n - 1), or 0 for one thread
    together(a, b) = (a**s + b**s)**(1/s), s = sharpness: the larger one when s is large

``contention`` is Gunther's Universal Scalability Law ("Guerrilla Capacity Planning", 2007):
``serial`` is the share of the bookkeeping that holds a lock others want, ``crosstalk`` what every
pair of threads adds because cache lines travel between them. ``call_us`` is time that calls do not
share (the kernel drains the LRU lists of all CPUs under a mutex): the first calls of all threads
queue up, and later ones where the threads come back sooner than the others are through. So the
smallest piece takes ``CALL_WORTH`` times that, where there is so much for each thread. ``most`` is
the largest share of a thread, times n: no piece is below 2 MiB, so less than two of them are one
thread's work, and of three one of two threads has two. Times are microseconds where a name says so,
else seconds; GB/s are 10**9 bytes a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

from .flags import parse_size
from .seats import Seats
from .strict import Fields

#: Of several threads none takes less at a time, nor less than its share by this (native/pages.c).
SMALLEST_CALL_BYTES = 2 << 20
SMALLEST_CALL_SHARE = 48
#: What a call moves then should take so many times what the call itself does.
CALL_WORTH = 3.0
#: What a single thread moves by one call, about.
CALL_BYTES = 128 << 20
#: What the kernel copies in one go, in the batching patches.
SPLIT_BATCH_BYTES = 2 << 20
ENGINES = ("kernel", "split", "split-batch")
TERMS = ("fixed", "bookkeeping", "copy", "link")
#: Threads that together make the move less than this much faster are not taken.
WORTH = 0.03
#: One thread is taken where several are not this much faster: what a model of few costs leaves out
#: is more than that, and one thread is what a move would get without pageferry.
WORTH_SEVERAL = 0.1
#: The same where the costs are guesses.
WORTH_SEVERAL_GUESSED = 0.15
#: Where a number of threads is that much worse than a smaller one, none above it is tried.
_WORSE = 1.1


@dataclass(frozen=True)
class Costs:
    """What moving costs on a machine. The defaults are cautious guesses for a server of 2020.

    ``call_us``: one ``move_pages(2)``, whatever it moves (it drains lists on every CPU).
    ``page_us``: (page size in bytes, microseconds) for a page without its copying.
    ``serial``, ``crosstalk``: lock contention, see the module. ``smt_gain``: what a second thread
    on a core adds, as a share of a core; nothing, until it is measured. ``thread_gbps``: one
    thread copying between the nodes. ``cache_gbps``: all threads behind one last-level cache
    together. ``link_gbps``: all threads between two nodes. ``sharpness``: how suddenly the link
    becomes full. ``handover_us`` and ``handover_thread_us``: giving work to other threads and
    waiting for the last of them.
    """

    call_us: float = 500.0
    page_us: tuple[tuple[int, float], ...] = ((4096, 1.0), (65536, 5.0), (2 << 20, 20.0))
    serial: float = 0.03
    crosstalk: float = 0.0005
    smt_gain: float = 0.0
    thread_gbps: float = 8.0
    cache_gbps: float = 25.0
    link_gbps: float = 30.0
    sharpness: float = 2.0
    handover_us: float = 30.0
    handover_thread_us: float = 5.0

    def page(self, size: int) -> float:
        """Return the microseconds of bookkeeping for a page of ``size`` bytes.

        Between the sizes that are known it grows with the size, as page-table entries do.
        """
        below = self.page_us[0]
        for known in self.page_us:
            if known[0] >= size:
                if known[0] == size or known is below:
                    return known[1]
                share = (size - below[0]) / (known[0] - below[0])
                return below[1] + share * (known[1] - below[1])
            below = known
        return below[1]

    def as_dict(self) -> dict[str, Any]:
        """Return the costs as JSON and TOML can hold them."""
        value: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        value["page_us"] = {str(size): us for size, us in self.page_us}
        return value

    @classmethod
    def from_fields(cls, table: Fields, default: Costs | None = None) -> Costs:
        """Read costs; what is missing is taken from ``default``, if there is one.

        Raises ``ValueError`` that names the field for anything impossible.
        """
        values: dict[str, Any] = {}
        for name, (low, high) in BOUNDS.items():
            values[name] = table.number(
                name, low, high, **({} if default is None else {"default": getattr(default, name)})
            )
        known = {} if default is None else {str(size): us for size, us in default.page_us}
        pages = table.table("page_us", **({} if default is None else {"default": known}))
        page_us: list[tuple[int, float]] = []
        for key in pages.keys():  # noqa: SIM118
            size = _page_size(key)
            if size < 4096 or size > 1 << 40 or size & (size - 1):
                raise ValueError(
                    f"{pages.name(key)}: a page size is a power of two from 4096 bytes up"
                )
            page_us.append((size, pages.number(key, 0.0, 1e9)))
        if not page_us:
            raise ValueError(f"{pages.name('')} needs at least one page size")
        if len(page_us) > len({size for size, _ in page_us}):
            raise ValueError(f"{pages.name('')} has a page size twice")
        table.end()
        return cls(page_us=tuple(sorted(page_us)), **values)


#: What is possible, by field of ``Costs``.
BOUNDS = {
    "call_us": (0.0, 1e7),
    "serial": (0.0, 1.0),
    "crosstalk": (0.0, 1.0),
    "smt_gain": (0.0, 1.0),
    "thread_gbps": (1e-3, 1e4),
    "cache_gbps": (1e-3, 1e6),
    "link_gbps": (1e-3, 1e6),
    "sharpness": (1.0, 20.0),
    "handover_us": (0.0, 1e7),
    "handover_thread_us": (0.0, 1e7),
}


DEFAULT_COSTS = Costs()


@dataclass(frozen=True)
class Prediction:
    """How long a move takes: ``seconds``, and of these the seconds of each term."""

    bytes: int
    threads: int
    seconds: float
    terms: Mapping[str, float] = field(default_factory=dict)

    @property
    def gbps(self) -> float:
        """Throughput in GB/s."""
        return self.bytes / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def dominant(self) -> str:
        """The term with the largest share."""
        return max(TERMS, key=lambda term: self.terms.get(term, 0.0))

    def as_dict(self) -> dict[str, Any]:
        """Return the prediction for JSON."""
        return {
            "bytes": self.bytes,
            "threads": self.threads,
            "seconds": self.seconds,
            "gbps": self.gbps,
            "terms": dict(self.terms),
            "dominant": self.dominant,
        }


def predict(
    costs: Costs,
    seats: Seats,
    pages: Mapping[int, int],
    threads: int,
    *,
    link_gbps: float | None = None,
    engine: str = "kernel",
    handovers: int | None = None,
    smallest: int | None = None,
) -> Prediction:
    """Predict the move of ``pages`` (page size in bytes to number) by ``threads`` on ``seats``.

    ``link_gbps`` is that of the two nodes, where it is known. ``handovers``, for the engines that
    split the copying: how often work is handed to the threads; once for a page by default, or once
    for 2 MiB with ``split-batch``. ``smallest``: the smallest piece in bytes, if not what
    ``smallest_piece`` says. More threads than seats gain nothing. Raises ``ValueError``
    for fewer than one thread, and for an engine that there is not.
    """
    if threads < 1:
        raise ValueError(f"threads must be a number from 1 up, not {threads}")
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    size = sum(page_size * count for page_size, count in pages.items())
    count = sum(pages.values())
    threads = min(threads, pieces(pages)) if engine == "kernel" else threads
    if not count:
        return Prediction(0, threads, 0.0, dict.fromkeys(TERMS, 0.0))
    book = sum(n * costs.page(page_size) for page_size, n in pages.items()) / 1e6
    cores, copying = _scaling(costs, seats)
    seat = min(threads, len(cores)) - 1
    link = size / (link_gbps or costs.link_gbps) / 1e9
    copy = size / copying[seat]
    if engine == "kernel":
        piece, most = size, 1.0
        if threads > 1:
            piece = _piece(costs, size, count, threads, book + size / copying[0])
            if smallest is not None:
                least = max(_smallest(size, count), size // (SMALLEST_CALL_SHARE * threads))
                piece = max(min(smallest, size // threads), least)  # as native/kernel_run.c
            most = _most(size, piece, threads)
        book *= _contention(costs, threads) / cores[seat] * most
        copy *= most
        fixed = _fixed(costs, size, threads, piece, book + copy)
        wait = max(_together(costs, book + copy, link) - book - copy, 0.0)
    else:
        if handovers is None:
            handovers = count if engine == "split" else max(size // SPLIT_BATCH_BYTES, 1)
        fixed = (costs.call_us + handovers * _handover(costs, threads)) / 1e6
        wait = max(_together(costs, copy, link) - copy, 0.0)
    terms = {"fixed": fixed, "bookkeeping": book, "copy": copy, "link": wait}
    return Prediction(size, threads, sum(terms.values()), terms)


def best_threads(
    costs: Costs,
    seats: Seats,
    pages: Mapping[int, int],
    *,
    most: int | None = None,
    link_gbps: float | None = None,
    worth: float = WORTH_SEVERAL,
) -> int:
    """Return the number of threads for the kernel engine: no more than help.

    Of 1 to ``most`` (the seats, by default), the smallest number that is within ``WORTH`` of the
    fastest, or one where that does not save a share of ``worth`` of the time. Fast enough to be
    asked before every move.
    """
    size = sum(page_size * count for page_size, count in pages.items())
    count = sum(pages.values())
    limit = min(most or len(seats.cpus), len(seats.cpus), pieces(pages))
    if limit <= 1:
        return 1
    book = sum(n * costs.page(page_size) for page_size, n in pages.items()) / 1e6
    cores, copying = _scaling(costs, seats)
    link = size / (link_gbps or costs.link_gbps) / 1e9
    alone = book + size / copying[0]
    times: list[tuple[int, float]] = []
    fastest = float("inf")
    for n in _candidates(seats.cores, limit):
        piece = _piece(costs, size, count, n, alone)
        busy = book * _contention(costs, n) / cores[n - 1] + size / copying[n - 1]
        busy *= _most(size, piece, n)
        seconds = _fixed(costs, size, n, piece, busy) + _together(costs, busy, link)
        if n > 8 and seconds > fastest * _WORSE:
            break  # contention wins from here on
        times.append((n, seconds))
        if seconds < fastest:
            fastest = seconds
    if fastest > times[0][1] * (1 - worth):
        return 1
    enough = fastest * (1 + WORTH)
    return next(n for n, seconds in times if seconds <= enough)


def smallest_piece(costs: Costs, seats: Seats, pages: Mapping[int, int], threads: int) -> int:
    """Return the least that one of ``threads`` should take at a time, in bytes.

    So much that moving it takes ``CALL_WORTH`` times what a call does, but not more than there is
    for each thread; a whole number of pieces for each. Where that is as little as the core takes
    anyway, the least that there is.
    """
    size = sum(page_size * count for page_size, count in pages.items())
    if not size:
        return SMALLEST_CALL_BYTES
    book = sum(n * costs.page(page_size) for page_size, n in pages.items()) / 1e6
    alone = book + size / _scaling(costs, seats)[1][0]
    piece = _piece(costs, size, sum(pages.values()), threads, alone)
    # The core goes no lower than that share by itself, of what it is given to move at a time.
    if piece <= math.ceil(size / threads / SMALLEST_CALL_SHARE):
        return SMALLEST_CALL_BYTES
    return piece


def pieces(pages: Mapping[int, int]) -> int:
    """Return in how many pieces the kernel engine deals these pages out at most, at least 1."""
    size = sum(page_size * count for page_size, count in pages.items())
    return max(size // _smallest(size, sum(pages.values())), 1)


@lru_cache(maxsize=64)
def _candidates(cores: int, limit: int) -> tuple[int, ...]:
    """Return the numbers of threads to compare: all up to 6, steps of a third, cores, limit."""
    numbers = {min(cores, limit), limit}
    n = 1
    while n < limit:
        numbers.add(n)
        n += max(n // 3, 1)
    return tuple(sorted(numbers))


def _page_size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError:
        return 0


def _smallest(size: int, count: int) -> int:
    return max(SMALLEST_CALL_BYTES, size // max(count, 1))


def _piece(costs: Costs, size: int, count: int, threads: int, alone: float) -> int:
    """Return the least that one of several threads takes, as ``smallest_piece`` does.

    ``alone`` are the seconds in which one thread would do everything, calls left out.
    """
    least = CALL_WORTH * costs.call_us / 1e6 / alone * size if alone else size
    share = size / threads
    each = max(min(int(share / least) if least else SMALLEST_CALL_SHARE, SMALLEST_CALL_SHARE), 1)
    return max(_smallest(size, count), math.ceil(share / each))


def _most(size: int, piece: int, threads: int) -> float:
    """Return the largest share of a thread, as a multiple of an equal share."""
    whole, rest = divmod(size, piece)
    each, over = divmod(whole, threads)
    return (each * piece + (piece if over else rest)) * threads / size


def _fixed(costs: Costs, size: int, threads: int, piece: int, busy: float) -> float:
    """Return the seconds of calls and handing over, beside ``busy`` of each thread."""
    if threads == 1:
        return max(size / CALL_BYTES, 1.0) * costs.call_us / 1e6
    each = max(size / threads / piece, 1.0)
    calls = each if each < 2.0 else 1.0 + math.log2(each)
    others = (threads - 1) * costs.call_us / 1e6
    waiting = (calls - 1.0) * max(others - busy / calls, 0.0)
    return (calls * costs.call_us + _handover(costs, threads)) / 1e6 + others + waiting


def _handover(costs: Costs, threads: int) -> float:
    return costs.handover_us + costs.handover_thread_us * (threads - 1) if threads > 1 else 0.0


def _contention(costs: Costs, threads: int) -> float:
    others = threads - 1
    return 1.0 + costs.serial * others + costs.crosstalk * threads * others


def _together(costs: Costs, a: float, b: float) -> float:
    # The larger one is taken out, so that no power overflows.
    large, small = (a, b) if a > b else (b, a)
    if not small:
        return large
    return float(large * (1.0 + (small / large) ** costs.sharpness) ** (1.0 / costs.sharpness))


@lru_cache(maxsize=64)
def _scaling(costs: Costs, seats: Seats) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return, for 1, 2, 3 … threads, the cores they are worth and the bytes/s they copy."""
    worth: list[float] = []
    copying: list[float] = []
    cores = 0.0
    behind: dict[object, float] = {}
    total = 0.0
    for cache, sibling in zip(seats.caches, seats.siblings, strict=True):
        share = costs.smt_gain if sibling else 1.0
        cores += share
        before = behind.get(cache, 0.0)
        behind[cache] = before + share * costs.thread_gbps
        total += min(behind[cache], costs.cache_gbps) - min(before, costs.cache_gbps)
        worth.append(cores)
        copying.append(total * 1e9)
    return tuple(worth) or (1.0,), tuple(copying) or (costs.thread_gbps * 1e9,)

# SPDX-License-Identifier: Apache-2.0
"""The cost model: against sums by hand, and what must hold whatever the costs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry.model import (
    BOUNDS,
    DEFAULT_COSTS,
    ENGINES,
    TERMS,
    WORTH,
    WORTH_SEVERAL,
    Costs,
    best_threads,
    predict,
    smallest_piece,
)
from pageferry.seats import Seats
from pageferry.strict import Fields

PAGE, HUGE = 4096, 2 << 20
PLAIN = Costs(
    call_us=100.0,
    page_us=((PAGE, 1.0), (HUGE, 50.0)),
    serial=0.0,
    crosstalk=0.0,
    smt_gain=0.5,
    thread_gbps=4.0,
    cache_gbps=10.0,
    link_gbps=16.0,
    sharpness=20.0,
    handover_us=10.0,
    handover_thread_us=1.0,
)


def seats(caches: int, cores: int, siblings: int = 0) -> Seats:
    """CPUs dealt over ``caches``, the siblings last."""
    count = cores + siblings
    return Seats(
        tuple(range(count)),
        tuple(i % cores % caches for i in range(count)),
        tuple(i >= cores for i in range(count)),
    )


def test_one_thread_by_hand() -> None:
    found = predict(PLAIN, seats(1, 4), {PAGE: 1000, HUGE: 2}, 1)
    size = 1000 * PAGE + 2 * HUGE
    assert found.bytes == size and found.threads == 1
    assert found.terms["fixed"] == pytest.approx(100e-6)
    assert found.terms["bookkeeping"] == pytest.approx(1100e-6)
    assert found.terms["copy"] == pytest.approx(size / 4e9)
    assert found.seconds == pytest.approx(sum(found.terms.values()))
    assert found.dominant == "copy"
    assert found.gbps == pytest.approx(size / found.seconds / 1e9)


def test_two_threads_by_hand() -> None:
    found = predict(replace(PLAIN, serial=0.1, crosstalk=0.01), seats(1, 4), {PAGE: 10000}, 2)
    # One thread would take 20.2 ms, so that 20 MiB are worth 33 pieces of three calls' time each;
    # but none is below 2 MiB, and ten of them are left over 5 to one thread.
    calls = 1 + math.log2(10000 * PAGE / 2 / HUGE)
    most = 10 * HUGE / (10000 * PAGE / 2)
    assert found.terms["fixed"] == pytest.approx(((calls + 1) * 100 + 11) * 1e-6)
    assert found.terms["bookkeeping"] == pytest.approx(1e-2 * (1 + 0.1 + 0.02) / 2 * most)
    assert found.terms["copy"] == pytest.approx(10000 * PAGE / 8e9 * most)


def test_dear_calls_make_large_pieces() -> None:
    """12 MiB are 3072 pages of 1 µs each, and 3.1 ms of copying."""
    for call_us, mib in ((0.0, 2), (100.0, 2), (500.0, 3), (600.0, 6), (1e6, 6)):
        costs = replace(PLAIN, call_us=call_us)
        assert smallest_piece(costs, seats(1, 2), {PAGE: 3072}, 2) == mib << 20
    assert smallest_piece(PLAIN, seats(1, 2), {1 << 30: 4}, 2) == 1 << 30  # no less than a page
    assert smallest_piece(PLAIN, seats(1, 2), {}, 2) == HUGE
    free = replace(PLAIN, page_us=((PAGE, 0.0),), thread_gbps=1e4, call_us=0.0)
    assert smallest_piece(free, seats(1, 2), {PAGE: 1 << 20}, 2) == HUGE  # 1/48 is the core's own


def test_calls_queue_up_where_there_is_little_between_them() -> None:
    """Eight threads with a call of 10 ms each cannot begin at once, nor go on at once."""
    costs = replace(PLAIN, call_us=10_000.0, handover_us=0.0, handover_thread_us=0.0)
    found = predict(costs, seats(8, 8), {PAGE: 8 * 512}, 8)  # a piece for each, 1.1 ms
    assert found.terms["fixed"] == pytest.approx(8 * 10e-3)
    slow = replace(costs, call_us=200.0)
    found = predict(slow, seats(8, 8), {PAGE: 32 * 512}, 8)
    busy = found.terms["bookkeeping"] + found.terms["copy"]
    calls = 1 + math.log2(4)
    assert busy / calls < 7 * 200e-6  # back before the seven others are through
    expected = (calls + 7) * 200e-6 + (calls - 1) * (7 * 200e-6 - busy / calls)
    assert found.terms["fixed"] == pytest.approx(expected)


def test_one_thread_unless_several_are_clearly_faster() -> None:
    where = seats(4, 4)
    assert best_threads(PLAIN, where, {PAGE: 512 * 2 - 1}) == 1  # one piece: one call
    assert predict(PLAIN, where, {PAGE: 1023}, 4) == predict(PLAIN, where, {PAGE: 1023}, 1)
    assert best_threads(PLAIN, where, {PAGE: 1024}) == 2
    for call_us, least in ((3000.0, 1), (100.0, 3)):
        costs = replace(PLAIN, call_us=call_us)
        assert best_threads(costs, where, {PAGE: 4096}) >= least
    for call_us in range(100, 6000, 100):
        costs = replace(PLAIN, call_us=float(call_us))
        chosen = best_threads(costs, where, {PAGE: 4096})
        one, took = (predict(costs, where, {PAGE: 4096}, n).seconds for n in (1, chosen))
        assert chosen == 1 or took <= one * (1 - WORTH_SEVERAL) * (1 + WORTH)


def test_caches_and_siblings_limit_the_copy() -> None:
    def copies(where: Seats, threads: int) -> float:
        found = predict(PLAIN, where, {HUGE: 64}, threads)
        return found.bytes / found.terms["copy"] / 1e9

    assert copies(seats(1, 4), 2) == pytest.approx(8.0)
    assert copies(seats(1, 4), 4) == pytest.approx(10.0)  # one cache is full
    assert copies(seats(2, 4), 4) == pytest.approx(16.0)
    assert copies(seats(4, 4, 4), 8) == pytest.approx(24.0)  # a sibling is half a core
    assert copies(seats(1, 4), 64) == pytest.approx(10.0)  # no more than there are seats


def test_the_link_limits_everything() -> None:
    fast = replace(PLAIN, call_us=0.0, page_us=((PAGE, 0.0),), handover_us=0, handover_thread_us=0)
    wide = seats(16, 16)
    assert predict(fast, wide, {HUGE: 1000}, 16).gbps == pytest.approx(16.0, rel=0.01)
    assert predict(fast, wide, {HUGE: 1000}, 16, link_gbps=5.0).gbps == pytest.approx(5.0, rel=0.01)
    assert predict(fast, wide, {HUGE: 1000}, 16).dominant == "link"


def test_an_engine_that_splits_the_copy_does_the_bookkeeping_alone() -> None:
    where = seats(4, 8)
    split = predict(PLAIN, where, {PAGE: 1000}, 4, engine="split")
    assert split.terms["bookkeeping"] == pytest.approx(1e-3)
    assert split.terms["fixed"] == pytest.approx((100 + 1000 * 13) * 1e-6)
    batch = predict(PLAIN, where, {PAGE: 1024}, 4, engine="split-batch")
    assert batch.terms["fixed"] == pytest.approx((100 + 2 * 13) * 1e-6)
    once = predict(PLAIN, where, {PAGE: 1000}, 4, engine="split-batch", handovers=1)
    assert once.terms["fixed"] == pytest.approx(113e-6)
    one = predict(PLAIN, where, {PAGE: 1000}, 1, engine="split")
    assert one.terms["fixed"] == pytest.approx(100e-6)


def test_bookkeeping_between_known_sizes() -> None:
    costs = Costs(page_us=((PAGE, 1.0), (16 * PAGE, 4.0), (HUGE, 20.0)))
    assert costs.page(PAGE) == 1.0 and costs.page(16 * PAGE) == 4.0 and costs.page(HUGE) == 20.0
    assert 1.0 < costs.page(4 * PAGE) < 4.0 < costs.page(32 * PAGE) < 20.0
    assert costs.page(1 << 30) == 20.0 and costs.page(512) == 1.0


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_below_one(threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        predict(PLAIN, seats(1, 1), {PAGE: 1}, threads)


def test_an_engine_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="engine"):
        predict(PLAIN, seats(1, 1), {PAGE: 1}, 1, engine="warp")


def test_nothing_takes_no_time() -> None:
    found = predict(PLAIN, seats(1, 1), {}, 3)
    assert (found.seconds, found.gbps, found.bytes) == (0.0, 0.0, 0)
    assert best_threads(PLAIN, seats(1, 8), {}) == 1


# --- whatever the costs

_costs = st.builds(
    Costs,
    page_us=st.builds(lambda a, b: ((PAGE, a), (HUGE, b)), *[st.floats(0.01, 1e4)] * 2),
    **{name: st.floats(low, min(high, 1e4)) for name, (low, high) in BOUNDS.items()},
)
_seats = st.builds(seats, st.integers(1, 9), st.integers(1, 70), st.integers(0, 1))
_pages = st.fixed_dictionaries({PAGE: st.integers(0, 10**7), HUGE: st.integers(0, 10**5)})


@given(_costs, _seats, _pages, st.integers(1, 200), st.sampled_from(ENGINES))
def test_a_prediction_is_the_sum_of_its_terms(
    costs: Costs, where: Seats, pages: dict[int, int], threads: int, engine: str
) -> None:
    found = predict(costs, where, pages, threads, engine=engine)
    assert set(found.terms) == set(TERMS) and found.dominant in TERMS
    assert all(term >= 0 for term in found.terms.values())
    assert found.seconds == pytest.approx(sum(found.terms.values()))
    limit = costs.link_gbps * (1 + 1e-9)
    assert found.gbps <= limit
    more = predict(costs, where, {**pages, PAGE: pages[PAGE] + 512}, threads, engine=engine)
    # A page more can make one thread more of use, never the move shorter otherwise.
    if more.threads == found.threads and not (engine == "kernel" and threads > 1):
        assert more.seconds >= found.seconds


@given(_costs, _seats, _pages)
def test_the_threads_that_are_chosen_are_nearly_the_best_of_those_tried(
    costs: Costs, where: Seats, pages: dict[int, int]
) -> None:
    chosen = best_threads(costs, where, pages)
    assert 1 <= chosen <= len(where.cpus) and chosen <= max(sum(pages.values()), 1)
    took = predict(costs, where, pages, chosen).seconds
    # One thread is given more: several must be clearly faster.
    more = 1 / (1 - WORTH_SEVERAL) if chosen == 1 else 1 + WORTH
    for threads in (1, 2, 3, 4):
        if threads <= min(len(where.cpus), sum(pages.values())):
            assert took <= predict(costs, where, pages, threads).seconds * more * (1 + 1e-9)


@given(_costs)
def test_costs_survive_a_file(costs: Costs) -> None:
    assert Costs.from_fields(Fields(costs.as_dict())) == costs


@given(st.sampled_from(sorted(BOUNDS)), st.integers() | st.floats() | st.text() | st.none())
def test_costs_are_read_or_refused_by_name(name: str, value: object) -> None:
    table = {**DEFAULT_COSTS.as_dict(), name: value}
    try:
        costs = Costs.from_fields(Fields(table, "costs"))
    except ValueError as error:
        assert f"costs.{name}" in str(error)
    else:
        low, high = BOUNDS[name]
        assert low <= getattr(costs, name) <= high


@pytest.mark.parametrize(
    ("page_us", "words"),
    [
        ({}, "at least one"),
        ({"4095": 1.0}, "power of two"),
        ({"12288": 1.0}, "power of two"),
        ({"huge": 1.0}, "power of two"),
        ({"4096": -1.0}, "4096"),
        ({"4096": 1.0, "04096": 2.0}, "twice"),
        ({4096: 1.0}, "must be a text"),
        ([1.0], "must be a table"),
    ],
)
def test_impossible_page_costs(page_us: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Costs.from_fields(Fields({**DEFAULT_COSTS.as_dict(), "page_us": page_us}, "costs"))

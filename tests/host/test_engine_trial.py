# SPDX-License-Identifier: Apache-2.0
"""engine="auto": which engine is found to be faster, and what becomes of the rest."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import numpy as np
import pytest
from regions import PAGE

from pageferry.engine_trial import RATES, Rates, split, try_user
from pageferry.nodes import machine
from pageferry.pages import BASE, EXTENT, THP, extents_bytes
from pageferry.user_engine import UserRun

NODE = next(node.id for node in machine().nodes if node.has_memory)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rates]:
    monkeypatch.setattr(RATES, "_rates", {})
    yield RATES


def base_extents(size: int) -> np.ndarray:
    return np.array([(1 << 40, size // PAGE, 12, BASE)], EXTENT)


def test_auto_tries_both_engines_first_and_goes_on_with_the_faster(rates: Rates) -> None:
    run = UserRun(NODE, "auto", trial=True, stall_ms=None, exact=False)
    steps = run.choose(base_extents(1 << 30))
    assert [name for name, _ in steps] == ["trial kernel", "trial user", "faster"]
    assert sum(extents_bytes(part) for _, part in steps) == 1 << 30
    starts = [int(part["start"][0]) for _, part in steps]
    assert starts == sorted(starts)
    rates.note(12, "checked", "kernel", 32 << 20, 0.5)
    rates.note(12, "checked", "user", 1 << 20, 1e-9)  # too little to say anything
    assert run.choose(base_extents(1 << 30))[0][0] == "trial kernel"
    rates.note(12, "checked", "user", 32 << 20, 0.4)
    assert [name for name, _ in run.choose(base_extents(1 << 30))] == ["faster"]
    assert run.faster(base_extents(1 << 30)) == "user"
    rates.note(12, "checked", "user", 32 << 20, 0.6)
    assert run.faster(base_extents(1 << 30)) == "kernel"
    small = UserRun(NODE, "auto", trial=True, stall_ms=None, exact=False)
    small.choose(np.array([(1 << 40, 4, 21, THP)], EXTENT))
    assert "kernel" in [name for name, _ in small.choose(np.array([(1 << 40, 4, 21, THP)], EXTENT))]


@pytest.mark.parametrize(
    ("milliseconds", "steps"),
    [(0, 3), (60, 1)],  # the kernel engine would need 64 us for what takes 60 ms
)
def test_a_trial_ends_early_where_the_user_engine_is_far_too_slow(
    milliseconds: int, steps: int, rates: Rates
) -> None:
    """Where a host takes virtual CPUs away, each page may take milliseconds."""
    rates.note(12, "checked", "kernel", 32 << 20, 0.032)
    moved: list[int] = []

    def run(part: np.ndarray) -> tuple[int, np.ndarray]:
        kept = part[:1].copy()  # one page is pinned, say
        kept["pages"] = 1
        moved.append(extents_bytes(part) - PAGE)
        return 0, kept

    tried = try_user(
        base_extents(32 << 20), "checked", run, lambda: sum(moved),
        lambda: len(moved) * milliseconds / 1000,
    )  # fmt: skip
    assert tried.code == 0 and len(moved) == steps
    assert sum(moved) + extents_bytes(tried.left) == 32 << 20
    assert tried.bytes_untried == (0 if steps == 3 else (32 << 20) - (64 << 10))
    assert (np.diff(tried.left["start"].astype(np.int64)) > 0).all()
    user = rates.get(12, "checked", "user")
    assert user is not None and (user < 2e6) == (steps == 1)


def test_a_trial_in_which_nothing_could_move_says_nothing(rates: Rates) -> None:
    rates.note(12, "checked", "kernel", 32 << 20, 0.032)
    clock = iter(range(10))
    tried = try_user(
        base_extents(32 << 20), "checked", lambda part: (0, part), lambda: 0,
        lambda: float(next(clock)),
    )  # fmt: skip
    assert tried.code == 0 and extents_bytes(tried.left) == 32 << 20
    assert rates.get(12, "checked", "user") is None


def test_a_trial_that_fails_leaves_the_rest(rates: Rates) -> None:
    rates.note(12, "checked", "kernel", 32 << 20, 0.032)
    tried = try_user(
        base_extents(32 << 20), "checked", lambda part: (errno.EPERM, part), lambda: 0, lambda: 0.0
    )
    assert tried.code == errno.EPERM and extents_bytes(tried.left) == 32 << 20
    assert rates.get(12, "checked", "user") is None


def test_without_the_kernels_rate_the_kernel_engine_does_it(rates: Rates) -> None:
    """As where what was to be tried by it had moved before."""

    def run(part: np.ndarray) -> tuple[int, np.ndarray]:
        raise AssertionError("tried")

    tried = try_user(base_extents(32 << 20), "checked", run, lambda: 0, lambda: 0.0)
    assert tried.code == 0 and extents_bytes(tried.left) == 32 << 20
    rates.note(12, "checked", "user", 32 << 20, 0.001)
    user = UserRun(NODE, "auto", trial=True, stall_ms=None, exact=False)
    assert user.faster(base_extents(1 << 30)) == "kernel"


def test_one_page_that_is_worth_a_trial() -> None:
    """A THP of 512 MiB, which has 64 KiB base pages."""
    run = UserRun(NODE, "auto", trial=True, stall_ms=None, exact=False)
    steps = run.choose(np.array([(1 << 40, 1, 29, THP)], EXTENT))
    assert [extents_bytes(part) for _, part in steps] == [512 << 20, 0, 0]


def test_splitting_keeps_every_page() -> None:
    extents = np.array([(0, 3, 12, BASE), (8 * PAGE, 5, 12, BASE)], EXTENT)
    for pages in range(1, 10):
        head, tail = split(extents, pages * PAGE)
        listed = [
            int(e["start"]) + i * PAGE
            for part in (head, tail)
            for e in part
            for i in range(e["pages"])
        ]
        assert listed == [i * PAGE for i in (0, 1, 2, 8, 9, 10, 11, 12)]
        assert extents_bytes(head) == min(pages, 8) * PAGE

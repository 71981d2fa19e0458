# SPDX-License-Identifier: Apache-2.0
"""Limits on traffic and on the length of calls: what is refused, and what they leave alone."""

from __future__ import annotations

import os

import pytest
from regions import PAGE, Region

from pageferry import cli, move
from pageferry.limits import Limits

BAD = [0, -1, 0.0, -0.5, float("nan"), float("inf"), float("-inf"), 1e9, True, "1", [], 1j]


@pytest.mark.parametrize("value", BAD, ids=repr)
@pytest.mark.parametrize("name", ["max_gbps", "stall_ms"])
def test_what_makes_no_sense_is_refused(name: str, value: object) -> None:
    region = Region(PAGE)
    region.write(0, PAGE)
    with pytest.raises(ValueError, match=f"{name} must be a number of .* above 0"):
        Limits(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=name):
        move(region.range(), 0, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e9", "fast", ""])
@pytest.mark.parametrize("option", ["--max-gbps", "--stall-ms"])
def test_the_command_refuses_it_too(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["move", str(os.getpid()), "--to", "0", f"{option}={value}"])
    assert caught.value.code == 2
    assert f"{value!r} is no number above 0" in capsys.readouterr().err


def test_a_rate_for_the_core() -> None:
    assert Limits().max_rate == 0
    assert Limits(max_gbps=2.5).max_rate == 2_500_000_000
    assert Limits(max_gbps=1e-12).max_rate == 1  # 0 would be no limit


@pytest.mark.parametrize("threads", [1, 2])
def test_pages_that_need_no_move_are_not_charged(threads: int) -> None:
    """At a kilobyte a second this would take hours."""
    region = Region(1024 * PAGE)
    region.write(0, 1024 * PAGE)
    result = move(region.range(), 0, threads=threads, max_gbps=1e-6, exact=True)
    assert result.complete and result.bytes_already == region.size


def test_nothing_is_judged_without_a_move() -> None:
    region = Region(1024 * PAGE)
    region.write(0, 1024 * PAGE)
    result = move(region.range(), 0)
    assert (result.alone_gbps, result.together_gbps, result.fell_back) == (0, 0, None)
    assert result.as_dict()["fell_back"] is None

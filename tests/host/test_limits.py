# SPDX-License-Identifier: Apache-2.0
"""Limits on traffic and on the length of calls: what is refused, and what they leave alone."""

from __future__ import annotations

import os
import re
import time

import pytest
from regions import PAGE, Region

from pageferry import Progress, cli, engine, move, move_processes, plan
from pageferry.limits import Limits

BAD = [0, -1, 0.0, -0.5, float("nan"), float("inf"), float("-inf"), 1e9, True, "1", [], 1j]


@pytest.mark.parametrize("value", BAD, ids=repr)
@pytest.mark.parametrize("name", ["max_gbps", "stall_ms", "timeout"])
def test_what_makes_no_sense_is_refused(name: str, value: object) -> None:
    region = Region(PAGE)
    region.write(0, PAGE)
    with pytest.raises(ValueError, match=f"{name} must be a number of .* above 0"):
        Limits(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=name):
        move(region.range(), 0, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e9", "fast", ""])
@pytest.mark.parametrize("option", ["--max-gbps", "--stall-ms", "--timeout"])
def test_the_command_refuses_it_too(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["move", str(os.getpid()), "--to", "0", f"{option}={value}"])
    assert caught.value.code == 2
    assert re.search(f"{value!r} is no number (of seconds )?above 0", capsys.readouterr().err)


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


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Region:
    """Memory that takes hundreds of batches, with a poll after each of them."""
    monkeypatch.setattr(engine, "_POLL_US", 1)
    monkeypatch.setattr(plan, "FIRST_BATCH_BYTES", 16 << 10)
    monkeypatch.setattr(plan, "CALL_MS", 0)
    region = Region(16 << 20)
    region.write(0, region.size)
    return region


def test_a_timeout_ends_it_between_two_batches(slow: Region) -> None:
    def hold(progress: Progress) -> None:
        if progress.bytes_done >= slow.size // 2:
            time.sleep(limit)  # the time is over after this

    limit = 0.5
    result = move(slow.range(), 0, threads=1, timeout=limit, progress=hold)
    assert result.timed_out and not result.cancelled and not result.complete
    assert result.stopped == 0 and result.bytes_skipped > 0
    assert result.bytes_already + result.bytes_skipped == slow.size
    assert result.bytes_not_present == 0
    assert result.as_dict()["timed_out"] is True


def test_a_timeout_that_is_not_reached(slow: Region) -> None:
    result = move(slow.range(), 0, timeout=3600)
    assert result.complete and not result.timed_out and result.bytes_skipped == 0
    result = move(slow.range(0, PAGE), 0, timeout=1e-6)
    assert result.timed_out != result.complete  # the one page in time, or it says so


def test_a_timeout_for_several_processes(capsys: pytest.CaptureFixture[str]) -> None:
    pids = [os.getpid(), 1]
    result = move_processes(pids, 0, timeout=1e-6)
    assert result.timed_out and not result.cancelled and not result.complete
    assert result.results[0].timed_out
    assert [process.pid for process in result.untouched] == pids[1:]
    with pytest.raises(ValueError, match="timeout"):
        move_processes(pids, 0, timeout=0)
    words = ["move", *map(str, pids), "--to", "0", "--timeout", "1e-6"]
    assert cli.main(words) == 1
    out = capsys.readouterr().out
    assert "ended by --timeout" in out
    assert out.endswith(f"Untouched, as --timeout ended it: {pids[1]}\n")
    assert cli.main(["move", str(pids[0]), "--to", "0", "--timeout", "1e-6"]) == 1
    assert "the move ended by --timeout" in capsys.readouterr().out

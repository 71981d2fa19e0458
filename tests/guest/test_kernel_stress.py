# SPDX-License-Identifier: Apache-2.0
"""The patched kernel, with its own checks on, under all kinds of load at once.

Run by: pageferry lab run --topology hot-plug --memory 640M --cpus 4 --kernel patched-debug
for $PAGEFERRY_STRESS_SECONDS (20), and longer where a slow machine needs more until each load has
done something. make test-kernel says 900, make soak-kernel 3600.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kernel_loads as loads
import pytest
from kernel_log import complaints, log_after
from placement import HUGE
from together import Counts, Load, Together

from pageferry.procfs import migration_counters

SECONDS = float(os.environ.get("PAGEFERRY_STRESS_SECONDS", "20"))
_MORE_SECONDS = 900.0
_LONG = 120.0  # long enough for a node to lose all its memory
_SAID_EVERY = 30.0
_LOOKED_EVERY = 5.0
# What an emulator that shares its host's CPUs must not be taken for: a CPU that hangs.
_PATIENCE = {
    "/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout": "300",
    "/sys/module/workqueue/parameters/watchdog_thresh": "300",
    "/proc/sys/kernel/hung_task_timeout_secs": "600",
}


@pytest.fixture
def ready(pools: tuple[Path, Path]) -> Iterator[Callable[[int], None]]:
    """A machine with pools and patience; given is what makes copies fail."""
    for file, value in _PATIENCE.items():
        Path(file).write_text(value)
    balancing = Path("/proc/sys/kernel/numa_balancing")
    balancing.write_text("1")
    for pool in pools:
        pool.write_text(str(2 * loads.SIZE // HUGE))
    assert complaints() == []
    with loads.failing_copies() as fail:
        yield fail
    (loads.VM / "mt_page_copy").write_text("0")
    (loads.VM / "mt_page_copy_threads").write_text("4")
    balancing.write_text("0")


def test_everything_at_once(
    ready: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    works: dict[str, Load] = {
        "base": loads.moving("base"),
        "thp": loads.moving("thp"),
        "hugetlb": loads.moving("hugetlb"),
        "mbind": loads.binding,
        "written": loads.writing("base"),
        "written thp": loads.writing("thp"),
        "fork": loads.forking,
        "split": loads.splitting,
        "ext4": loads.filing,
        "pool": loads.pooling,
        "cpus": loads.unplugging_cpus,
        "node": loads.unplugging_memory,
        "fail": loads.failing(ready),
        "tune": loads.tuning,
    }
    counts = Counts([*works, "nodes gone"])
    before = migration_counters()
    begin = said = time.monotonic()
    found: list[str] = []

    def copies_failed_and_not() -> bool:
        """Both take a CPU that is idle when a copy begins: on a busy host not soon."""
        success = "pgmigrate_mt_success"
        return migration_counters()[success] > before[success] and loads.failures() > 0

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{time.monotonic() - begin:5.0f} s: {text}", end="", flush=True)

    with Together(works, counts) as running:
        say(f"{len(works)} loads have begun")
        end = time.monotonic() + SECONDS
        wanted = [*works, *(["nodes gone"] if SECONDS >= _LONG else [])]
        while running.all_run() and not found:
            now = time.monotonic()
            all_done = all(counts[name] for name in wanted) and copies_failed_and_not()
            if now > (end if all_done else end + _MORE_SECONDS):
                break
            time.sleep(min(_LOOKED_EVERY, SECONDS))
            found = complaints()
            if now > said + _SAID_EVERY:
                said = now
                say(str(counts))
        say("stopping")
    after = migration_counters()
    done = {name: after[name] - before[name] for name in after}
    say(f"{counts}; copies failed {loads.failures()}; {done}\n")
    found = found or complaints()
    assert not found, log_after(found[0])
    assert all(counts[name] for name in wanted), f"something did nothing: {counts}"
    assert copies_failed_and_not()

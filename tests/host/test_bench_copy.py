# SPDX-License-Identifier: Apache-2.0
"""The copy experiment: it runs, its arithmetic, table and plot, and what it refuses."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pageferry import copying
from pageferry.bench import copy as experiment
from pageferry.bench.copy import MANY, MEMCPY, ONE, run_copy, summary
from pageferry.bench.copy_report import conclusions, plot, print_table

AUTO = f"{MANY} auto, 2 threads"


def figures() -> dict[str, Any]:
    samples = {
        MEMCPY: [0.010, 0.012, 0.008],
        "avx512": [0.005, 0.006, 0.004],
        f"{ONE} auto": [0.004, 0.006, 0.008],
        "avx512, 2 threads": [0.003, 0.003, 0.003],
        AUTO: [0.002, 0.006, 0.016],
    }
    cases = [
        {"bytes": size, "count": 2, "ways": [summary(name, size * 2, samples) for name in samples]}
        for size in (4096, 10_000_000)
    ]
    return {
        "experiment": "copy",
        "machine": {
            "pageferry": "0",
            "kernel": "6.12",
            "machine": "x86_64",
            "cpu": "test",
            "cpus": 2,
            "memory_nodes": [0],
            "guest": False,
            "emulated": False,
            "numa_balancing": False,
        },
        "other_load": 0.0,
        "repeats": 3,
        "page_size": 4096,
        "cached": False,
        "threads": [2],
        "tuning": {"large_method": "avx512", "large_bytes": 1 << 20, "thread_bytes": 2 << 20},
        "cases": cases,
    }


def test_summary_takes_ratios_inside_a_repeat() -> None:
    ways = {way["name"]: way for way in figures()["cases"][1]["ways"]}
    wide = ways["avx512"]
    assert wide["gbps"] == pytest.approx(20e6 / 0.005 / 1e9)
    assert (wide["gbps_low"], wide["gbps_high"]) == pytest.approx((20 / 6, 5))
    assert (wide["ratio"], wide["ratio_low"], wide["ratio_high"]) == pytest.approx((2, 2, 2))
    many = ways[AUTO]
    assert (many["ratio_to_one"], many["ratio_to_one_low"], many["ratio_to_one_high"]) == (
        1,
        0.5,
        2,
    )
    assert "ratio_to_one" not in wide


def test_conclusions_are_about_the_aims() -> None:
    first, second = conclusions(figures())
    assert first == f"{ONE}, 1 thread, 10 MB: 2.00× memcpy (1.00–2.50); the aim is 1.3×."
    assert second == (
        f"{MANY} against {ONE}, both auto: 1.00× at the least (0.50–2.00; 4 KiB, 2 threads); "
        "the aim is 1×."
    )


def shown(value: dict[str, Any]) -> str:
    text = io.StringIO()
    print_table(value, Console(file=text, width=200))
    return text.getvalue()


def test_table() -> None:
    text = shown(figures())
    assert "avx512              " in text and "4.0 2.00×" in text
    assert "avx512 from 1 MiB on, a thread for each 2 MiB" in text
    assert "busy" not in text
    assert "busy" in shown(figures() | {"other_load": 0.9})
    assert "in one place" in shown(figures() | {"cached": True})


def test_plot_is_a_picture_with_ink(tmp_path: Path) -> None:
    from matplotlib import image

    path = tmp_path / "plot.png"
    plot(figures(), path)
    pixels = image.imread(path)
    assert pixels.shape[0] > 300 and pixels.shape[1] > 900
    assert 0.005 < (pixels[..., :3].min(axis=2) < 0.5).mean() < 0.5


@pytest.mark.parametrize("cached", [False, True])
def test_every_way_is_run(cached: bool) -> None:
    result = run_copy(
        sizes=(4096, 300_000), threads=(1, 3), repeats=2, page_size=4096, cached=cached
    )
    assert json.loads(json.dumps(result)) == result
    assert [case["bytes"] for case in result["cases"]] == [4096, 300_000]
    expected = {MEMCPY, "numpy.copyto", "STREAM copy", *copying.methods(), f"{ONE} auto"}
    expected |= {f"{name}, 3 threads" for name in copying.methods()} | {f"{MANY} auto, 3 threads"}
    for case in result["cases"]:
        assert {way["name"] for way in case["ways"]} == expected
        for way in case["ways"]:
            assert 0 < way["gbps_low"] <= way["gbps"] <= way["gbps_high"]
            assert len(way["seconds"]) == 2
    shown(result)


def test_a_wrong_copy_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment.np, "copyto", lambda dst, src: None)
    with pytest.raises(AssertionError, match=r"numpy\.copyto: the copy differs"):
        run_copy(sizes=(4096,), repeats=1, page_size=4096, cached=True)


def test_copies_go_on_through_memory() -> None:
    """Whoever copies next begins where the last one ended, so that nobody finds warm memory."""
    arrays = experiment.PageArray(64, 4096), experiment.PageArray(64, 4096)
    pair = experiment._Pair(*arrays, cached=False)
    ways = experiment._ways(pair, (2,), (0,))
    arrays[1].words[:] = 0
    for count, name in enumerate((MEMCPY, "numpy.copyto", "STREAM copy", "words, 2 threads"), 1):
        ways[name](4096, 3)
        assert pair.at == 3 * count * 4096
    assert np.array_equal(*(array.words[: 12 * 512] for array in arrays))
    assert not arrays[1].words[12 * 512 :].any()


def run_cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pageferry", "bench", "copy", *words],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_command(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    done = run_cli(
        *("--size", "4K,100000", "--repeats", "1", "--page-size", "4K", "--cached"),
        *("--output", str(path), "--plot", str(tmp_path / "plot.png")),
    )
    assert done.returncode == 0, done.stderr
    assert "copy_pages auto" in done.stdout and "100000 B" in done.stdout
    assert (tmp_path / "plot.png").stat().st_size > 10000
    again = run_cli("--from-json", str(path), "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(path.read_text())


@pytest.mark.parametrize(
    "words", [("--size", "4K,x"), ("--size", "4"), ("--size", "2T"), ("--threads", "0")]
)
def test_usage_errors(words: tuple[str, ...]) -> None:
    done = run_cli(*words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr

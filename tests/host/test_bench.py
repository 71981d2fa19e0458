# SPDX-License-Identifier: Apache-2.0
"""The experiments' arithmetic, table and plot. The experiment itself runs in the guest tests."""

import copy
import io
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console

from pageferry import cli
from pageferry.bench.call import run_call
from pageferry.bench.machine import OtherLoad
from pageferry.bench.memory import HUGE, Child, PageArray
from pageferry.bench.published import SERIES, published
from pageferry.bench.series import PLAIN, _powers_of_two, _summary, merge, run_series
from pageferry.bench.series_report import plot, print_table, published_figures
from pageferry.commands.bench import series as command
from pageferry.errors import NodeError
from pageferry.locate import locate
from pageferry.topology import topology

SIZE = 100000 * 4096


def figures():
    samples = {
        PLAIN: [(1.0, 1.0), (1.1, 1.1), (0.9, 0.9)],
        "pageferry, 2 threads": [(0.5, 0.5), (0.6, 0.5), (0.4, 0.5)],
    }
    return {
        "experiment": "series",
        "machine": {
            "pageferry": "0",
            "kernel": "6.12",
            "machine": "x86_64",
            "cpu": "test",
            "cpus": 2,
            "memory_nodes": [0, 1],
            "guest": True,
            "emulated": True,
            "numa_balancing": False,
        },
        "nodes": [0, 1],
        "repeats": 3,
        "cases": [
            {
                "page_size": 4096,
                "pages": 100000,
                "word": "normal",
                "bytes": SIZE,
                "ways": [_summary(name, SIZE, samples, PLAIN) for name in samples],
            }
        ],
    }


def test_summary_takes_ratios_inside_a_repeat():
    way = figures()["cases"][0]["ways"][1]
    assert way["milliseconds"] == pytest.approx(500)
    assert way["gbps"] == pytest.approx(2 * SIZE / 1.0 / 1e9)
    assert (way["ratio"], way["ratio_low"], way["ratio_high"]) == pytest.approx((2.0, 2.0, 2.0))


def test_published_figures_are_those_of_the_series():
    assert len(published(SERIES)) == 12
    assert published_figures(4096)["thp+mt"] == pytest.approx(0.240069)
    assert published_figures(HUGE)["thp+mt"] / published_figures(HUGE)["thp"] == pytest.approx(
        2.22, abs=0.01
    )


def test_table_has_the_shape_of_the_series():
    text = io.StringIO()
    print_table(figures(), Console(file=text, width=200, soft_wrap=True))
    shown = text.getvalue()
    assert "Moved 100000 normal pages in   500.00 msecs  0.819 GB/s (emulated)   2.00×" in shown
    assert "2017: 100000 normal pages" in shown and "0.16× of thp" in shown
    assert "Under emulation only ratios mean anything" in shown


@pytest.mark.parametrize(("others", "told"), [(0.05, False), (0.9, True)])
def test_table_tells_of_a_busy_host(others, told):
    busy = figures()
    busy["machine"] |= {"host_cpus": 2, "host_other_load": others}
    text = io.StringIO()
    print_table(busy, Console(file=text, width=200, soft_wrap=True))
    assert ("The host was busy" in text.getvalue()) is told


def test_other_load_leaves_out_ourselves_and_our_children():
    others = OtherLoad()
    code = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    with_child = others.cpus()
    stranger = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        others = OtherLoad()
        time.sleep(1)
        with_stranger = others.cpus()  # not waited for: it counts as another's
    finally:
        stranger.kill()
        stranger.wait()
    assert 0 <= with_child < (os.cpu_count() or 1)
    assert with_stranger > 0.2


def test_kernels_in_one_table():
    both = merge({"stock": figures(), "patched": figures()})
    assert [way["name"] for way in both["cases"][0]["ways"]] == [
        PLAIN,
        "pageferry, 2 threads",
        f"patched: {PLAIN}",
        "patched: pageferry, 2 threads",
    ]
    text = io.StringIO()
    print_table(both, Console(file=text, width=200, soft_wrap=True))
    assert "patched: Linux 6.12, a guest of its own" in text.getvalue()
    assert text.getvalue().count("Moved 100000 normal pages") == 4


def test_a_case_that_the_first_kernel_has_not():
    more = figures()
    more["cases"].append(more["cases"][0] | {"word": "64K", "page_size": 65536})
    both = merge({"stock": figures(), "patched": more})
    assert [case["word"] for case in both["cases"]] == ["normal", "64K"]
    assert both["cases"][1]["ways"][0]["name"] == f"patched: {PLAIN}"


def test_kinds_of_pages_that_the_series_did_not_measure(tmp_path):
    more = figures()
    more["cases"] += [
        more["cases"][0] | {"word": "64K", "page_size": 65536},
        more["cases"][0] | {"word": "hugetlb", "page_size": HUGE},
    ]
    more["machine"] |= {"host_cpus": 1, "host_other_load": 0}
    text = io.StringIO()
    print_table(more, Console(file=text, width=200, soft_wrap=True))
    assert "100000 64K pages" in text.getvalue() and "100000 hugetlb pages" in text.getvalue()
    assert text.getvalue().count("  2017: 100000 normal") == len(published_figures(4096))
    more["cases"][0]["pages"] = 4096  # the series' own rows stay what they were
    text = io.StringIO()
    print_table(more, Console(file=text, width=200, soft_wrap=True))
    assert "Moved   4096 normal" in text.getvalue()
    assert text.getvalue().count("  2017: 100000 normal") == len(published_figures(4096))
    assert "no number of threads can gain more than 1 do" in text.getvalue()
    plot(more, tmp_path / "plot.png")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], [("normal", 100000), ("huge", 195)]),
        (["--pages", "512", "3", "--kinds", "huge,64K"], [("64K", 96), ("huge", 3)]),
        (["--mib", "8", "--kinds", "hugetlb,normal"], [("normal", 2048), ("hugetlb", 4)]),
    ],
)
def test_which_cases_are_measured(words, expected):
    args = cli.build_parser().parse_args(["bench", "series", *words])
    assert [(case.word, case.pages) for case in command._cases(args)] == expected


def test_folios_are_for_the_kernel_that_keeps_them_whole():
    args = cli.build_parser().parse_args(["bench", "series", "--kernel", "all"])
    args.kinds = ("normal", "64K")
    assert "normal" in command._options(args, "stock")
    assert "normal,64K" in command._options(args, "patched")


def test_what_guests_after_the_first_are_told():
    args = cli.build_parser().parse_args(["bench", "series", "--kernel", "all"])
    assert args.kernel == ("stock", "stock+module", "patched")
    args.user_engine = True
    assert "--user-engine" in command._options(args, "stock")
    assert "--calls-only" not in command._options(args, "stock")
    later = command._options(args, "patched")
    assert {"--calls-only", "--no-migratepages"} <= set(later) and "--user-engine" not in later


def test_plot_is_a_picture_with_ink(tmp_path):
    from matplotlib import image

    path = tmp_path / "plot.png"
    plot(merge({"stock": figures(), "patched": figures()}), path)
    pixels = image.imread(path)
    assert pixels.shape[0] > 200 and pixels.shape[1] > 500
    assert 0.005 < (pixels[..., :3].min(axis=2) < 0.5).mean() < 0.5


def test_powers_of_two():
    assert _powers_of_two(1) == (1,)
    assert _powers_of_two(6) == (1, 2, 4)


def test_page_array_finds_a_damaged_word():
    array = PageArray(64, 4096)
    array.check()
    array.words[1000] ^= np.uint64(1)
    with pytest.raises(AssertionError, match=hex(array.address + 8000)):
        array.check()


def test_page_array_of_huge_pages_is_huge():
    array = PageArray(2, HUGE)
    assert array.address % HUGE == 0
    assert locate(array.words).by_kind("thp") == 2 * HUGE
    array.check()


def test_child_checks_its_own_memory():
    with Child(16, 4096) as child:
        assert locate(child.addresses, pid=child.pid).by_kind("base") == 16 * 4096
        child.check()


def test_call_measures_both():
    result = run_call(repeats=20)
    assert result["raw_us"] > 0 and result["move_us"] > 0


@pytest.mark.skipif(len(topology().target_nodes) > 1, reason="this machine has two nodes")
def test_series_refuses_one_node():
    with pytest.raises(NodeError, match="two nodes"):
        run_series(repeats=1)


def run_cli(*words):
    return subprocess.run(
        [sys.executable, "-m", "pageferry", "bench", *words], capture_output=True, text=True
    )


def test_earlier_figures_are_shown_again(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(figures()))
    done = run_cli("series", "--from-json", str(path), "--plot", str(tmp_path / "plot.png"))
    assert done.returncode == 0, done.stderr
    assert "Moved 100000 normal pages" in done.stdout
    assert (tmp_path / "plot.png").stat().st_size > 10000


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"experiment": "call"}', "\x00"])
def test_foreign_figures_are_refused(tmp_path, content):
    path = tmp_path / "figures.json"
    path.write_text(content)
    done = run_cli("series", "--from-json", str(path))
    assert done.returncode == 1
    assert "no figures of bench series" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words", [("--repeats", "0"), ("--threads", "2,x"), ("--pages", "0", "1"), ("--cpus", "-1")]
)
def test_bad_numbers_are_usage_errors(words):
    done = run_cli("series", *words)
    assert done.returncode == 2
    assert "number from 1 up" in done.stderr


def test_figures_survive_json():
    before = figures()
    assert json.loads(json.dumps(before)) == copy.deepcopy(before)

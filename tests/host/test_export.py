# SPDX-License-Identifier: Apache-2.0
"""``pageferry export``: what it shows of machine and processes, scraped on the loopback."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from regions import PAGE

from pageferry import cli, metrics, move, scan
from pageferry.errors import PageferryError
from pageferry.exporter import MachineCollector
from pageferry.report import Stalls
from pageferry.scan import PATIENCE, BackgroundScan, ProcessScan, memory_by_node
from pageferry.topology import topology

PROGRAM = [sys.executable, "-m", "pageferry", "export"]
NAME = Path("/proc/self/comm").read_text().strip()
needs_numa_maps = pytest.mark.skipif(
    not Path("/proc/self/numa_maps").exists(), reason="a kernel without NUMA"
)


def samples(text: str) -> dict[tuple[str, ...], float]:
    """By name and the values of its labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def collected(collector: Any) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry()
    registry.register(collector)
    return samples(generate_latest(registry).decode())


# ---- Reading processes


class Proc:
    """A /proc of processes that are not there, and a clock that moves when one is read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = 0.0

    def add(self, pid: int, name: str, pages: int, cpu: int = 0, started: int = 7) -> None:
        fields = ["S"] + ["0"] * 40
        fields[19], fields[20], fields[21], fields[36] = str(started), "4096", str(pages), str(cpu)
        for folder in (self.root / str(pid), self.root / str(pid) / "task" / str(pid)):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "stat").write_text(f"{pid} ({name}) {' '.join(fields)}\n")
        self.maps(pid, f"7f00 default anon={pages} N0={pages} kernelpagesize_kB=4\n")

    def maps(self, pid: int, content: str) -> None:
        (self.root / str(pid) / "numa_maps").write_text(content)

    def scan(self, monkeypatch: pytest.MonkeyPatch, cost: float = 1.0) -> tuple[ProcessScan, list]:
        read: list[int] = []

        def counted(pid: int, *, proc: Path) -> tuple[dict[int, int], int]:
            read.append(pid)
            self.now += cost
            return memory_by_node(pid, proc=proc)

        monkeypatch.setattr(scan, "memory_by_node", counted)
        return ProcessScan(proc=self.root, clock=lambda: self.now), read


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_pages_by_node_and_size(proc: Proc) -> None:
    proc.add(1, "x", 1)
    proc.maps(
        1,
        "7f00 default file=/a\\040N3=4 mapped=5 N0=3 N2=2 kernelpagesize_kB=4\n"
        "7f10 bind:0 file=/dev/hugepages/x huge dirty=2 N0=2 kernelpagesize_kB=2048\n"
        "7f20 default stack anon=1 N2=1\n7f30 default\n",
    )
    sizes, hugetlb = memory_by_node(1, proc=proc.root)
    assert sizes == {0: 3 * 4096 + (4 << 20), 2: 2 * 4096 + PAGE}
    assert hugetlb == 4 << 20


def test_the_largest_is_read_first_and_the_budget_ends_it(
    proc: Proc, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pid, pages in ((5, 10), (6, 30), (7, 20)):
        proc.add(pid, f"p{pid}", pages)
    scanned, read = proc.scan(monkeypatch)
    found = {stat.pid: stat for stat in scanned.refresh(1.5)}
    assert read == [6, 7]
    assert found[5].nodes is None and found[5].resident == 10 * PAGE
    assert found[6].nodes == {0: 30 * 4096} and found[6].age == 1
    assert scanned.refresh(0.0)[0].pid and read == [6, 7, 5]  # at least one, whatever the budget


def test_nobody_is_read_again_at_once(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    proc.add(5, "p", 10)
    scanned, read = proc.scan(monkeypatch, cost=2.0)
    scanned.refresh(9)
    proc.now += 2 * PATIENCE - 1
    scanned.refresh(9)
    assert read == [5]
    proc.now += 1
    scanned.refresh(9)
    assert read == [5, 5]


def test_a_reused_id_is_another_process(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    proc.add(5, "old", 10, started=7)
    scanned, read = proc.scan(monkeypatch)
    scanned.refresh(9)
    proc.add(5, "new (1) x", 20, started=8)
    (stat,) = scanned.refresh(9)
    assert read == [5, 5] and stat.name == "new (1) x" and stat.nodes == {0: 20 * 4096}


def test_home_is_where_threads_run_and_the_rest_is_remote(proc: Proc) -> None:
    home = topology().cpus[0]
    proc.add(5, "p", 10, cpu=home.id)
    proc.maps(5, f"7f00 default N{home.node}=3 N900=5 kernelpagesize_kB=4\n")
    (stat,) = ProcessScan(proc=proc.root).refresh(1)
    assert stat.home == {home.node} and stat.remote == 5 * 4096
    assert stat.as_dict()["bytes_remote"] == 5 * 4096


def test_what_may_not_be_read_is_said_and_left_alone(proc: Proc) -> None:
    proc.add(5, "p", 10)
    (proc.root / "5/numa_maps").unlink()
    proc.add(6, "kernel thread", 0)
    stat_file = proc.root / "6/stat"
    stat_file.write_text(stat_file.read_text().replace(" 4096 ", " 0 "))
    (proc.root / "7").mkdir()
    (stat,) = ProcessScan(proc=proc.root).refresh(1)
    assert (stat.pid, stat.readable, stat.nodes) == (5, False, None)


def test_a_process_that_holds_the_reading_up_holds_nobody_else_up(proc: Proc) -> None:
    proc.add(5, "stuck", 10)
    (proc.root / "5/numa_maps").unlink()
    os.mkfifo(proc.root / "5/numa_maps")  # to read it blocks, as with a lock that is taken
    for pid in (6, 7):
        proc.add(pid, "p", 5)
    scanned = ProcessScan(proc=proc.root)
    watch = BackgroundScan(scanned)
    while watch.waiting != 5:  # until its thread has had a CPU
        watch.refresh(0.01)
    for _ in range(3):
        found = {stat.pid: stat for stat in watch.refresh(0.01)}
        assert set(found) == {5, 6, 7} and found[5].nodes is None
    assert watch.waiting == 5
    with open(proc.root / "5/numa_maps", "w") as fifo:
        fifo.write("7f00 default N0=10 kernelpagesize_kB=4\n")
    (proc.root / "5/numa_maps").unlink()
    for _ in range(1000):
        found = {stat.pid: stat for stat in watch.refresh(1.0)}
        if all(stat.nodes for stat in found.values()):
            break
    assert found[5].nodes == {0: 40960} and found[7].nodes == {0: 5 * 4096}
    assert watch.waiting is None


@needs_numa_maps
def test_this_process_is_found() -> None:
    (stat,) = ProcessScan(lambda pid, name: pid == os.getpid()).refresh(5)
    assert stat.name == NAME
    assert stat.nodes is not None and sum(stat.nodes.values()) > 20 << 20
    assert stat.home <= set(topology().node_ids) and stat.home


# ---- The machine


@needs_numa_maps
def test_metrics_of_machine_and_processes() -> None:
    found = collected(MachineCollector([NAME, "no such process"]))
    for node in topology().node_ids:
        total = found["pageferry_node_memory_total_bytes", str(node)]
        uses = ("anonymous", "shared", "file", "hugetlb", "kernel", "free")
        parts = [found["pageferry_node_memory_bytes", str(node), use] for use in uses]
        assert total > 0 and sum(parts) >= total
    assert found["pageferry_vmstat_total", "pgmigrate_success"] >= 0
    assert found["pageferry_processes", NAME] >= 1
    assert found["pageferry_processes", "no such process"] == 0
    placed = [v for k, v in found.items() if k[0] == "pageferry_process_memory_bytes"]
    assert sum(placed) > 20 << 20
    assert found["pageferry_scrape_seconds",] > 0


def test_every_metric_is_in_the_documentation() -> None:
    told = (Path(__file__).parents[2] / "docs/monitoring.md").read_text()
    for collector in (MachineCollector(["x"]), metrics.MoveCollector()):
        registry = CollectorRegistry()
        registry.register(collector)
        names = re.findall(r"^# TYPE (\S+)", generate_latest(registry).decode(), re.M)
        assert names and [name for name in names if f"`{name}`" not in told] == []


def test_moves_of_this_process_are_counted() -> None:
    before = metrics.totals()
    array = np.ones(1 << 16)
    result = move(array, topology().target_nodes[0])
    after = metrics.totals()
    assert after.moves["complete"] == before.moves.get("complete", 0) + 1
    assert after.seconds >= before.seconds + result.seconds
    registry = CollectorRegistry()
    metrics.register(registry)
    found = samples(generate_latest(registry).decode())
    assert found["pageferry_moves_total", "complete"] == after.moves["complete"]
    assert found["pageferry_moved_bytes_total", str(result.node)] == after.moved[result.node]
    assert found["pageferry_failed_bytes_total",] == after.bytes_failed
    # This machine may have no user engine: what it would have told.
    metrics.count(replace(result, stalls=Stalls(7, 0.25, 1.0, 2.0)))
    metrics.count(result)
    found = samples(generate_latest(registry).decode())
    told = [found["pageferry_stall_seconds", quantile] for quantile in ("0.5", "0.99", "1")]
    assert told == [0.00025, 0.001, 0.002]


# ---- The command


@contextmanager
def serving(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [*PROGRAM, "--listen", "127.0.0.1:0", *words], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"http://\S+", line)
        assert found, line
        yield process, found[0]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def scrape(url: str) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(url, timeout=300) as answer:
        return samples(answer.read().decode())


@needs_numa_maps
def test_served_until_sigterm() -> None:
    with serving("--process", "python*", "--process", NAME) as (process, url):
        assert url.startswith("http://127.0.0.1:")
        answers: list[dict[tuple[str, ...], float]] = []
        threads = [threading.Thread(target=lambda: answers.append(scrape(url))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 4
        assert all(answer["pageferry_processes", NAME] >= 1 for answer in answers)
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0
        assert process.stderr is not None and process.stderr.read() == ""


def test_ctrl_c_ends_it() -> None:
    with serving() as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 130
        assert process.stderr is not None
        assert process.stderr.read() == "pageferry: ended by Ctrl-C\n"


def test_address_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*PROGRAM, "--listen", f"127.0.0.1:{port}"], capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port} [EADDRINUSE" in done.stderr


@pytest.mark.parametrize(
    "words", [("--listen", "9099"), ("--listen", "x:70000"), ("--budget", "0"), ("--budget", "x")]
)
def test_bad_words_are_usage_errors(words: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["export", *words])
    assert end.value.code == 2


def test_no_such_host(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "--listen", "192.0.2.1:0"]) == 1
    assert "cannot listen on 192.0.2.1:0" in capsys.readouterr().err


def test_textfile_appears_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pageferry.prom"
    path.write_text("old")
    assert cli.main(["export", "--textfile", str(path)]) == 0
    assert ("pageferry_vmstat_total", "pgmigrate_success") in samples(path.read_text())
    assert [entry.name for entry in tmp_path.iterdir()] == ["pageferry.prom"]
    assert cli.main(["export", "--textfile", "-"]) == 0
    assert set(samples(capsys.readouterr().out)) >= {("pageferry_numa_balancing",)}
    assert cli.main(["export", "--textfile", "/nowhere/x.prom"]) == 1
    assert "cannot write /nowhere/x.prom [ENOENT" in capsys.readouterr().err


def test_without_the_package_the_cure_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "prometheus_client":
            monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["export", "--textfile", "-"]) == 1
    assert "pip install 'pageferry[export]'" in capsys.readouterr().err
    with pytest.raises(PageferryError, match="prometheus-client"):
        metrics.register()

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Move memory back and forth for a long time, under writers, and see that nothing grows.

Base and huge pages of this process, by both engines in turn, and a child's, from outside. Writers
count up words of their own in every line; a count that is lost, or a byte that changes, ends it
with 1, and so does anything of this process that goes on growing: memory, descriptors, threads,
mappings, addresses that could not be unmapped. On a machine with one node the user engine gives
pages new ones of the same node, and the kernel engine has nothing to move.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from pageferry import move, plan_move, topology
from pageferry._native import lib
from pageferry.bench.memory import HUGE, PageArray
from pageferry.pages import BASE, EXTENT, PAGE_SHIFT, PAGE_SIZE, THP
from pageferry.user_engine import UserRun, why_not

BYTES = 24 << 20
WRITERS = 2
MOST = 1 << 20  # moves that are remembered
SAMPLE_SECONDS = 1.0
#: What a process that is given no work may still grow by, in its second half: the allocator's air.
ROOM = {"resident KiB": 2048, "mapped KiB": 4096, "descriptors": 0, "threads": 0, "mappings": 2,
        "kept bytes": 0}  # fmt: skip


def holdings() -> dict[str, int]:
    """Return what this process holds now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return {
        "resident KiB": int(status["VmRSS"].split()[0]),
        "mapped KiB": int(status["VmSize"].split()[0]),
        "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "threads": int(status["Threads"]),
        "mappings": Path("/proc/self/maps").read_text().count("\n"),
        "kept bytes": int(lib.pf_kept_bytes()),
    }


class Written:
    """Memory of one page size with writers, each with a word of its own in every line."""

    def __init__(self, page_size: int) -> None:
        self.memory = PageArray(BYTES // page_size, page_size)
        self.memory.keep_from_children()
        self.lines = self.memory.words.reshape(-1, 8)
        self.lines[:, :WRITERS] = 0
        self.still = self.lines[:, WRITERS:].copy()
        self.rounds = [0] * WRITERS
        self.end = threading.Event()
        self.lost: list[str] = []
        self.threads = [threading.Thread(target=self.write, args=(n,)) for n in range(WRITERS)]
        for thread in self.threads:
            thread.start()

    def write(self, number: int) -> None:
        """Count up, line by line, and look whether the count before was there."""
        column = self.lines[:, number]
        while not self.end.is_set():
            if (column != self.rounds[number]).any():
                self.lost.append(f"writer {number} lost a write in round {self.rounds[number]}")
                return
            self.rounds[number] += 1
            column += np.uint64(1)

    def finish(self) -> list[str]:
        """End the writers; return what is wrong."""
        self.end.set()
        for thread in self.threads:
            thread.join()
        if (self.lines[:, WRITERS:] != self.still).any():
            self.lost.append("a byte that nobody wrote has changed")
        for number in range(WRITERS):
            if (self.lines[:, number] != self.rounds[number]).any():
                self.lost.append(f"writer {number} lost a write")
        return self.lost


def child() -> tuple[int, range, int]:
    """Fork a process that waits and then checks: its id, its memory, a pipe that ends it."""
    memory = PageArray(BYTES // PAGE_SIZE // 2, PAGE_SIZE)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        code = 1
        try:
            memory.words[:] = memory.words.copy()  # its own pages, no longer its parent's
            os.read(reader, 1)
            memory.check()
            code = 0
        finally:
            os._exit(code)
    os.close(reader)
    return pid, range(memory.address, memory.address + memory.bytes), writer


def again(memory: PageArray, node: int, threads: int) -> int:
    """Give pages new ones of the same node. Returns how many bytes got some."""
    huge = memory.page_size == HUGE
    run = UserRun(node, "checked", trial=False, stall_ms=None, exact=False, again=True)
    run.follow(plan_move(memory.words, node, threads=threads))
    shift = 21 if huge else PAGE_SHIFT
    extent = (memory.address, memory.bytes >> shift, shift, THP if huge else BASE)
    code, _ = run.run(np.array([extent], EXTENT))
    assert not code, os.strerror(code)
    return run.bytes_moved


def soak(seconds: float, seed: int) -> dict[str, Any]:
    """Move until the time is over. Returns what is to be told of it."""
    nodes = topology().memory_nodes[:2]
    engines = ["kernel", *(["user"] if why_not("checked") is None else [])]
    pid, theirs, pipe = child()
    parts = [Written(PAGE_SIZE), Written(HUGE)]
    choice = random.Random(seed)
    latencies = np.zeros(
        (MOST, 3)
    )  # when, how long, which engine; written once, so that it is there
    latencies.fill(0.0)
    samples: list[dict[str, float]] = []
    moved = count = turn = 0
    begun = time.monotonic()
    while (now := time.monotonic() - begun) < seconds:
        turn += 1
        node, threads = nodes[turn // 6 % len(nodes)], choice.choice((1, 2))
        engine = choice.choice((*engines, "outside"))
        memory = parts[turn % 2].memory
        start = time.monotonic()
        if engine == "outside":
            moved += move(theirs, node, pid=pid, threads=threads).bytes_moved
        elif engine == "user" and len(nodes) == 1:
            moved += again(memory, node, threads)
        else:
            moved += move(memory.words, node, engine=engine, threads=threads).bytes_moved
        if count < MOST:
            latencies[count] = now, time.monotonic() - start, [*engines, "outside"].index(engine)
            count += 1
        if not samples or now - samples[-1]["at"] >= SAMPLE_SECONDS:
            lib.pf_crew_stop()
            samples.append({"at": now, **holdings()})
        if any(part.lost for part in parts):
            break
    wrong = [text for part in parts for text in part.finish()]
    os.close(pipe)
    if os.waitpid(pid, 0)[1]:
        wrong.append("the child's bytes are not what they were")
    wrong += grown(samples)
    done = latencies[:count]
    names = [*engines, "outside"]
    return {
        "seconds": seconds, "seed": seed, "nodes": len(nodes), "moves": turn, "bytes_moved": moved,
        "writes": sum(sum(part.rounds) for part in parts), "wrong": wrong,
        "latency_ms": {
            name: percentiles(done[done[:, 2] == i, 1] * 1e3) for i, name in enumerate(names)
        },
        "samples": samples,
        "latencies": [[round(float(at), 3), round(float(took) * 1e3, 3), names[int(which)]]
                      for at, took, which in done[:: max(count // 20000, 1)]],
    }  # fmt: skip


def percentiles(values: np.ndarray[Any, Any]) -> dict[str, float]:
    """Return median, p99 and the largest."""
    if not len(values):
        return {}
    p50, p99, most = np.percentile(values, (50, 99, 100))
    return {"p50": round(p50, 3), "p99": round(p99, 3), "max": round(most, 3)}


def grown(samples: list[dict[str, float]]) -> list[str]:
    """Return what the last quarter has more of than the second."""
    quarter = len(samples) // 4
    if quarter < 2:
        return []
    wrong = []
    for name, room in ROOM.items():
        early = statistics.median(sample[name] for sample in samples[quarter : 2 * quarter])
        late = statistics.median(sample[name] for sample in samples[-quarter:])
        if late - early > room:
            wrong.append(f"{name} grew from {early:.0f} to {late:.0f}")
    return wrong


def draw(result: dict[str, Any], path: str) -> None:
    """Draw latencies, and what the process held, over time into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 7), sharex=True)
    for name in result["latency_ms"]:
        points = [(at, took) for at, took, which in result["latencies"] if which == name]
        if points:
            above.plot(*zip(*points, strict=True), ".", markersize=2, label=name)
    above.set(yscale="log", ylabel="one move, ms")
    above.legend(markerscale=5)
    above.grid(alpha=0.3)
    at = [sample["at"] for sample in result["samples"]]
    for name in ROOM:
        values = [sample[name] for sample in result["samples"]]
        first = values[len(values) // 4]
        below.plot(at, [value - first for value in values], label=f"{name} ({first:.0f})")
    below.set(xlabel="seconds", ylabel="more than after a quarter of the time")
    below.set_yscale("symlog")
    below.legend(fontsize="small", ncols=2)
    below.grid(alpha=0.3)
    figure.suptitle(f"{result['moves']} moves, {result['bytes_moved'] / 1e9:.0f} GB")
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> int:
    """Soak, tell, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--plot", metavar="FILE")
    given = parser.parse_args()
    signal.alarm(int(given.seconds) + 300)  # what hangs ends, too
    print(f"seed {given.seed}", flush=True)
    result = soak(given.seconds, given.seed)
    if given.json:
        given.json.write_text(json.dumps(result) + "\n")
    if given.plot:
        draw(result, given.plot)
    print(
        f"{result['moves']} moves of {result['bytes_moved'] / 1e9:.1f} GB between"
        f" {result['nodes']} node(s), {result['writes']} rounds of writes"
    )
    for name, times in result["latency_ms"].items():
        print(f"{name}: " + ", ".join(f"{key} {value} ms" for key, value in times.items()))
    last = result["samples"][-1]
    print(", ".join(f"{name} {last[name]}" for name in ROOM))
    for text in result["wrong"]:
        print(f"WRONG: {text}")
    return bool(result["wrong"])


if __name__ == "__main__":
    sys.exit(main())

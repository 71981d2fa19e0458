# SPDX-License-Identifier: Apache-2.0
"""Moves on a busy machine: what they take by one thread, by many, by the plan; what others lose.

For each size of move and each number of busy processes beside it, all ways are measured in every
repeat, in an order of its own and each after a short pause, so that neither drift of the machine
nor what ran before prefers one. A sample of each way is the same number of moves. Ratios are taken
inside one repeat; what is reported are medians, lowest and highest.

Others are compared over windows of one length, in which the same was moved: who is done earlier
leaves them the rest of the window undisturbed. How fast they run while a move runs is told, too.
"""

from __future__ import annotations

import errno
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import NodeError
from ..flags import MigrateMode
from ..pages import PAGE_SIZE
from ..topology import Topology, topology
from ..user_engine import why_not
from .machine import machine_facts
from .memory import PageArray
from .movers import Mover
from .spinners import Spinners

EXPERIMENT = "load"
SIZES = (PAGE_SIZE, 64 << 10, 2 << 20, 16 << 20, 128 << 20, 1 << 30)
#: Busy processes beside the move, as a share of the CPUs.
LOADS = {"idle": 0.0, "half": 0.5, "all": 1.0, "twice": 2.0}
REPEATS = 9
#: A sample is as many moves to and fro as one thread does in so many seconds, at least one of each.
SAMPLE_SECONDS = 0.2
ENGINES = ("kernel", "user")
#: Shorter runs of pages the user engine leaves to the kernel engine.
USER_SMALLEST = 64 << 10
AUTO = "auto"
_REST = "rest"
_AIR = 160 << 20
_MOST_ROUNDS = 10_000
_PATIENCE = 1000
#: Before each sample: how the scheduler has spread the busy processes depends on what ran before.
_SETTLE_SECONDS = 0.03

#: What has to be reached: the ratio, over which loads, and the least it may be.
TARGETS: dict[str, tuple[str, tuple[str, ...], float]] = {
    "auto_best": ("auto against the best fixed number of threads", tuple(LOADS), 0.95),
    "auto_one": ("auto against one thread", tuple(LOADS), 0.97),
    "many_one": ("all threads against one, all CPUs busy", ("all", "twice"), 0.95),
    "others": ("others beside all threads against beside one", ("all", "twice"), 0.95),
    "others_auto": ("others beside auto against beside one thread", ("all", "twice"), 0.95),
}

Say = Callable[[str], None]


def run_load(
    *,
    sizes: tuple[int, ...] = SIZES,
    loads: tuple[str, ...] = tuple(LOADS),
    page_size: int = PAGE_SIZE,
    repeats: int = REPEATS,
    seconds: float = SAMPLE_SECONDS,
    engine: str = "kernel",
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Run the experiment between the first two nodes with memory; return figures ready for JSON.

    With ``engine="user"`` one node will do, whose pages get new places on it, and sizes begin at
    64 KiB. Sizes are made whole pages. Those that a node has no room for are left out, and named in
    ``left_out``. ``seconds`` is the least length of one sample by one thread. Raises ``NodeError``
    (ENODEV) on a machine with one node, ``NotPermittedError`` and ``UnsupportedError`` where there
    is no user engine, ``MemoryError`` when the kernel gives no pages of ``page_size``, and
    ``AssertionError`` should a byte be wrong afterwards.
    """
    machine = topology()
    nodes = machine.target_nodes[:2]
    smallest = page_size
    if engine == "user":
        error = why_not("checked")
        if error is not None:
            raise error
        smallest = max(page_size, USER_SMALLEST)
    elif len(nodes) < 2:
        raise NodeError(
            errno.ENODEV,
            "the experiment needs two nodes with memory",
            "run it in a guest: pageferry bench load --lab always",
        )
    cpus = len(machine.allowed_cpus)
    wanted = sorted({-(-max(size, smallest) // page_size) * page_size for size in sizes})
    room = min(machine.free(node) for node in nodes) - _AIR
    fitting = tuple(size for size in wanted if size <= room)
    if not fitting:
        raise MemoryError(f"the nodes have no {wanted[0]} bytes free, and some air")
    say(f"memory of {fitting[-1] >> 10} KiB")
    array = PageArray(fitting[-1] // page_size, page_size)
    array.keep_from_children()  # the busy processes
    ways = _ways(machine)
    cells = []
    for load in loads:
        spinners = round(cpus * LOADS[load])
        with Spinners(spinners) as others:
            for size in fitting:
                say(f"{load}, {spinners} busy processes: moves of {size >> 10} KiB")
                mover = Mover(array.words[: size // 8], nodes, engine)
                cell = _cell(mover, ways, others, repeats, seconds)
                cells.append({"load": load, "busy": spinners, "bytes": size, **cell})
    array.check()
    return {
        "experiment": EXPERIMENT,
        "machine": machine_facts(),
        "engine": engine,
        "nodes": list(nodes),
        "repeats": repeats,
        "page_size": page_size,
        "ways": list(ways),
        "left_out": [size for size in wanted if size not in fitting],
        "cells": cells,
        "targets": targets(cells),
    }


def _ways(machine: Topology) -> dict[str, dict[str, Any]]:
    """Return the arguments of move() for each way: powers of two, all CPUs, and auto."""
    cpus = len(machine.allowed_cpus)
    counts = [1]
    while counts[-1] * 2 < cpus:
        counts.append(counts[-1] * 2)
    counts += [max(cpus, 2)]
    ways: dict[str, dict[str, Any]] = {}
    for count in counts:
        kind = MigrateMode.ST if count == 1 else MigrateMode.MT
        ways[str(count)] = {"threads": count, "mode": MigrateMode.SYNC | kind}
    ways[AUTO] = {"threads": "auto"}
    return ways


@dataclass(frozen=True)
class Sample:
    """What some moves by one way took, each: seconds of the caller, CPU seconds of all threads.

    ``others``: turns a second of the busy processes meanwhile.
    """

    seconds: float
    cpu_seconds: float
    others: float


def _cell(
    mover: Mover, ways: dict[str, dict[str, Any]], others: Spinners, repeats: int, seconds: float
) -> dict[str, Any]:
    one, *_ = ways.values()
    for how in ways.values():  # a warm-up
        _sample(mover, how, others, 1)
    took = _sample(mover, one, others, 1).seconds
    rounds = min(max(math.ceil(seconds / (2 * took)), 1), _MOST_ROUNDS)
    taken: dict[str, list[Sample]] = {name: [] for name in ways}
    rest: list[float] = []
    order = [*ways, _REST]
    chance = random.Random(repeats)
    for _ in range(repeats):
        chance.shuffle(order)  # nobody always goes first, or behind the same other
        for name in order:
            time.sleep(_SETTLE_SECONDS)
            if name == _REST:
                rest.append(_at_rest(others, seconds))
            else:
                taken[name].append(_sample(mover, ways[name], others, rounds))
    return {"moves": 2 * rounds, **summary(taken, rest)}


def _sample(mover: Mover, how: dict[str, Any], others: Spinners, rounds: int) -> Sample:
    """Move to and fro so many times."""
    turns, cpu_begun, begun = others.turns, time.process_time(), time.perf_counter()
    for _ in range(2 * rounds):
        mover.moved(**how)
    passed, cpu = time.perf_counter() - begun, time.process_time() - cpu_begun
    moves = 2 * rounds
    return Sample(passed / moves, cpu / moves, (others.turns - turns) / passed)


def _at_rest(others: Spinners, seconds: float) -> float:
    """Let the others run undisturbed; return their turns a second.

    Until they have run at all: what emulates the machine may have had no CPU itself meanwhile.
    """
    turns, begun = others.turns, time.perf_counter()
    for _ in range(_PATIENCE):
        time.sleep(seconds)
        if others.turns > turns or not others.count:
            break
    return (others.turns - turns) / (time.perf_counter() - begun)


def summary(taken: dict[str, list[Sample]], rest: list[float]) -> dict[str, Any]:
    """Return one cell from its samples by way, and from others' turns a second at rest.

    ``others`` of a way is their speed beside its moves as a share of their speed at rest, None
    when there are no others. Ratios are above 1 where the first named is quicker; those of others
    are of what they got done in windows as long as the longer of both moves.
    """
    fixed = [name for name in taken if name != AUTO]
    one, many = fixed[0], fixed[-1]
    seconds = {name: [sample.seconds for sample in taken[name]] for name in taken}
    best = min(fixed, key=lambda name: statistics.median(seconds[name]))
    busy = all(rest)
    return {
        "ways": {
            name: {
                "seconds": _spread(seconds[name]),
                "cpu_seconds": _spread([sample.cpu_seconds for sample in taken[name]]),
                "others": _spread([s.others / r for s, r in zip(taken[name], rest, strict=True)])
                if busy
                else None,
                "samples": seconds[name],
            }
            for name in taken
        },
        "best": best,
        "ratios": {
            "auto_best": _ratio(_quotients(seconds[best], seconds[AUTO])),
            "auto_one": _ratio(_quotients(seconds[one], seconds[AUTO])),
            "many_one": _ratio(_quotients(seconds[one], seconds[many])),
            "others": _equal_windows(taken[many], taken[one], rest) if busy else None,
            "others_auto": _equal_windows(taken[AUTO], taken[one], rest) if busy else None,
        },
    }


def _equal_windows(a: list[Sample], b: list[Sample], rest: list[float]) -> dict[str, float]:
    """Return what others got done beside ``a`` against beside ``b``, each of the same moves."""
    ratios = []
    for left, right, speed in zip(a, b, rest, strict=True):
        window = max(left.seconds, right.seconds)
        done = [s.others * s.seconds + speed * (window - s.seconds) for s in (left, right)]
        ratios.append(done[0] / done[1])
    return _ratio(ratios)


def _spread(samples: list[float]) -> dict[str, float]:
    return {"median": statistics.median(samples), "low": min(samples), "high": max(samples)}


def _quotients(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def _ratio(ratios: list[float]) -> dict[str, float]:
    from_, to = interval(ratios)
    return {**_spread(ratios), "from": from_, "to": to}


def interval(samples: list[float]) -> tuple[float, float]:
    """Return what the true median lies between with a probability of 90 % or more.

    By the ranks of the samples, so that nothing is taken for granted of how they are distributed;
    with fewer than five it is all that was seen, and the probability less.
    """
    ordered, count, cut = sorted(samples), len(samples), 0
    while 2 * sum(math.comb(count, k) for k in range(cut + 2)) <= 0.1 * 2**count:
        cut += 1
    return ordered[cut], ordered[-1 - cut]


def targets(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each of ``TARGETS``, its worst cell, and which cells miss it.

    ``missed``: its median does; ``beyond_doubt``: so does the interval's upper end.
    """
    found = []
    for name, (words, loads, least) in TARGETS.items():
        measured = [cell for cell in cells if cell["load"] in loads and cell["ratios"][name]]
        if not measured:
            continue
        ratios = [cell["ratios"][name] for cell in measured]
        places = [{"load": cell["load"], "bytes": cell["bytes"]} for cell in measured]
        worst = min(range(len(ratios)), key=lambda i: float(ratios[i]["median"]))
        found.append(
            {
                "name": name,
                "words": words,
                "least": least,
                "cells": len(measured),
                "missed": [places[i] for i, r in enumerate(ratios) if r["median"] < least],
                "beyond_doubt": [places[i] for i, r in enumerate(ratios) if r["to"] < least],
                "worst": ratios[worst]["median"],
                "worst_at": places[worst],
            }
        )
    return found


def quick() -> dict[str, Any]:
    """Return the arguments of ``run_load`` for a look of a few seconds: one size, few repeats."""
    return {"sizes": (2 << 20,), "loads": ("idle", "all"), "repeats": 2, "seconds": 0.02}

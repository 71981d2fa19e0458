# SPDX-License-Identifier: Apache-2.0
"""Sweep: what a machine moves with 1, 2, 4 … threads, as figures and as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from . import extras
from .described import Machine
from .model import Prediction, best_threads, predict


def thread_numbers(cores: int, most: int) -> tuple[int, ...]:
    """Return powers of two, all cores and all CPUs, in order: the threads worth comparing."""
    numbers = {most, min(max(cores, 1), most)}
    power = 1
    while power < most:
        numbers.add(power)
        power *= 2
    return tuple(sorted(numbers))


def sweep(
    machine: Machine,
    source: int,
    target: int,
    pages: Mapping[int, int],
    *,
    engine: str = "kernel",
) -> tuple[Prediction, ...]:
    """Return the predictions for all ``thread_numbers`` of the machine's CPUs."""
    seats = machine.seats(source, target)
    link = machine.link(source, target)
    return tuple(
        predict(machine.costs, seats, pages, threads, link_gbps=link, engine=engine)
        for threads in thread_numbers(seats.cores, len(seats.cpus))
    )


def plot(
    machine: Machine, source: int, target: int, size: int, page_sizes: tuple[int, ...], path: Path
) -> None:
    """Draw throughput against threads into a PNG, a curve for each page size. Needs matplotlib.

    ``size`` bytes are moved each time, by the kernel engine. A dot marks the number of threads
    that a plan takes.
    """
    extras.require("matplotlib", "plot", "a plot").use("Agg")
    from matplotlib import pyplot

    seats = machine.seats(source, target)
    link = machine.link(source, target)
    figure, axes = pyplot.subplots(figsize=(8.5, 5))
    colours = ("#1769aa", "#2e8b57", "#8a5fbf", "#c0392b")
    for page_size, colour in zip(page_sizes, colours, strict=False):
        pages = {page_size: max(size // page_size, 1)}
        # More threads than pages are as many as pages.
        numbers = range(1, min(len(seats.cpus), sum(pages.values())) + 1)
        found = [predict(machine.costs, seats, pages, n, link_gbps=link).gbps for n in numbers]
        chosen = best_threads(machine.costs, seats, pages, link_gbps=link, worth=machine.worth)
        label = f"{words(page_size)}: a plan takes {chosen}, {found[chosen - 1]:.1f} GB/s"
        axes.plot(list(numbers), found, color=colour, label=label)
        axes.plot([chosen], [found[chosen - 1]], "o", color=colour)
    axes.axhline(link, color="black", linestyle=":", linewidth=1)
    axes.annotate(
        f"link {link:.4g} GB/s", (1, link), textcoords="offset points", xytext=(0, 4), fontsize=8
    )
    if seats.cores < len(seats.cpus):
        axes.axvline(seats.cores, color="#8a8f98", linestyle="--", linewidth=1)
        axes.annotate(
            "all cores", (seats.cores, 0), textcoords="offset points", xytext=(4, 6), fontsize=8,
            color="#8a8f98",
        )  # fmt: skip
    ticks = thread_numbers(seats.cores, len(seats.cpus))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set(xlim=(0.95, len(seats.cpus) * 1.05), ylim=(0, None))
    axes.set_xlabel("threads")
    axes.set_ylabel("GB/s expected")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="size of page", frameon=False, fontsize=9, title_fontsize=9)
    axes.set_title(
        f"{machine.name}: {words(size)} from node {source} to node {target}\n{machine.about}",
        fontsize=9,
        loc="left",
    )
    figure.savefig(path, dpi=130, bbox_inches="tight")
    pyplot.close(figure)


def words(size: int) -> str:
    """Return a size in the largest binary unit that it is a multiple of, such as ``2 MiB``."""
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size and not size % (1 << shift):
            return f"{size >> shift} {unit}"
    return f"{size} bytes"

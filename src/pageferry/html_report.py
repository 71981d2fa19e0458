# SPDX-License-Identifier: Apache-2.0
"""One HTML file of figures: facts, tables, plots, and the commands that repeat them."""

from __future__ import annotations

import base64
import errno
import html
import importlib
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .bench.machine import describe
from .console import Console
from .errors import PageferryError
from .version import __version__

_FACTS = (
    ("kernel", "kernel"),
    ("cpu", "CPU"),
    ("cpus", "CPUs used"),
    ("memory_nodes", "nodes with memory"),
    ("numa_balancing", "NUMA balancing"),
    ("pageferry", "pageferry"),
)
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
  max-width: 1100px; padding: 2rem 1.5rem 4rem }
h1 { font-size: 1.7rem; margin: 0 } h2 { margin: 3rem 0 .3rem; border-top: 1px solid #d9dce1;
  padding-top: 1.5rem }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem }
.dim { color: #5b6270 }
pre { background: #f6f7f9; border-radius: 6px; padding: .8rem 1rem; overflow-x: auto;
  font: 13px/1.45 ui-monospace, monospace }
table { border-collapse: collapse } th { text-align: left; font-weight: 600; padding-right: 2rem }
td, th { padding-top: .15rem; padding-bottom: .15rem; vertical-align: top }
img { max-width: min(100%, 1000px); height: auto } nav a { margin-right: 1.2rem }
.note { border-left: 4px solid #E69F00; padding: .2rem .9rem; background: #fdf6e7 }
"""


def read_figures(path: Path) -> dict[str, Any]:
    """Read what ``--output`` of an experiment wrote. Raises ``PageferryError`` for all else."""
    try:
        figures: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(figures["experiment"], str) or not isinstance(figures, dict):
            raise ValueError("no experiment is named")
    except OSError as error:
        raise PageferryError(error.errno or errno.EIO, f"cannot read {path}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise PageferryError(
            errno.EINVAL,
            f"{path} has no figures of an experiment: {error}",
            "give files that pageferry bench … --output wrote",
        ) from None
    return figures


def page(
    all_figures: Sequence[tuple[str, dict[str, Any]]], *, title: str, plots: bool = True
) -> str:
    """Return the HTML. ``all_figures`` are pairs of a file's name and what it holds.

    Nothing in it comes from elsewhere: pictures are in it, and no script. Raises
    ``PageferryError`` when figures lack what their table needs.
    """
    sections = [
        _section(f"part{number}", name, figures, plots)
        for number, (name, figures) in enumerate(all_figures, 1)
    ]
    links = "".join(
        f'<a href="#part{number}">bench {_text(figures["experiment"])}</a>'
        for number, (_, figures) in enumerate(all_figures, 1)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{_text(title)}</h1>
<p class="dim">made by pageferry {_text(__version__)} from {len(all_figures)}
{"file" if len(all_figures) == 1 else "files"} of figures</p>
<nav>{links}</nav></header>
{"".join(sections)}
</body>
</html>
"""


def _section(anchor: str, name: str, figures: dict[str, Any], plots: bool) -> str:
    experiment = figures["experiment"]
    reporter = _reporter(experiment)
    facts = figures.get("machine")
    parts = [f'<section id="{anchor}"><h2>bench {_text(experiment)}</h2>']
    parts.append(f'<p class="dim">{_text(name)}</p>')
    try:
        if facts:
            parts.append(_facts(facts))
        parts.append(f"<h3>Figures</h3>{_table(reporter, figures)}")
        if plots and reporter is not None:
            parts.append(f"<h3>Plot</h3>{_plot(reporter, figures)}")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise PageferryError(
            errno.EINVAL, f"{name}: these are not figures of bench {experiment}: {error!r}"
        ) from None
    command = figures.get("command") or f"pageferry bench {experiment}"
    parts.append(f"<h3>Again</h3><pre><code>{_text(command)}</code></pre>")
    raw = _text(json.dumps(figures, indent=1))
    parts.append(f"<details><summary>All figures as JSON</summary><pre>{raw}</pre></details>")
    return "".join([*parts, "</section>\n"])


def _reporter(experiment: str) -> ModuleType | None:
    """Return the module with the experiment's table and plot; None if it has none."""
    if not experiment.isidentifier():
        return None
    try:
        return importlib.import_module(f".bench.{experiment}_report", __package__)
    except ModuleNotFoundError:
        return None


def _facts(facts: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{word}</th><td>{_text(_shown(facts[key]))}</td></tr>"
        for key, word in _FACTS
        if key in facts
    )
    warning = ""
    if facts.get("emulated"):
        warning = (
            '<p class="note">Measured in an emulated guest: only ratios inside one run mean '
            "anything.</p>"
        )
    return f"<h3>Machine</h3><p>{_text(describe(facts))}</p><table>{rows}</table>{warning}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(reporter: ModuleType | None, figures: dict[str, Any]) -> str:
    if reporter is None:
        rows = "".join(
            f"<tr><th>{_text(key)}</th><td>{_text(_shown(value))}</td></tr>"
            for key, value in figures.items()
            if not isinstance(value, dict) and key not in ("experiment", "command")
        )
        return f"<table>{rows}</table>"
    out = Console(
        file=io.StringIO(), record=True, width=160, highlight=False, soft_wrap=True, no_color=True
    )
    reporter.print_table(figures, out)
    return f"<pre>{out.export_html(inline_styles=True, code_format='{code}')}</pre>"


def _plot(reporter: ModuleType, figures: dict[str, Any]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "plot.png")
        reporter.plot(figures, path)
        data = base64.b64encode(path.read_bytes()).decode()
    words = _text(f"Plot of the figures of bench {figures['experiment']}")
    return f'<img alt="{words}" src="data:image/png;base64,{data}">'


def _text(text: object) -> str:
    return html.escape(str(text))

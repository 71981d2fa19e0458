# SPDX-License-Identifier: Apache-2.0
"""Write pageferry(1) and the shells' completion files from the command's own parser.

Usage: command_files.py NATIVE OUT

meson calls it while it builds: NATIVE is the extension module just linked, OUT the directory for
pageferry.1, pageferry.bash, _pageferry and pageferry.fish. Beside them goes command_files.d, which
names the modules that they were made from.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPLETIONS = {"bash": "pageferry.bash", "zsh": "_pageferry", "fish": "pageferry.fish"}
SECTIONS = {
    "Exit status": """.TP
0
all moved, or the check passed
.TP
1
something was not moved (also for \\-\\-timeout), or was refused; with several processes: of one of
them, also as it ended
.TP
2
usage: an option, node or range that makes no sense
.TP
125
lab run: the guest failed, not the command in it
.TP
130
ended by Ctrl\\-C""",
    "Examples": """.nf
pageferry locate 4711                   # where the memory of process 4711 is
pageferry move 4711 \\-\\-to 1 \\-\\-dry\\-run    # what would be done, and how
pageferry move 4711 \\-\\-to 1              # all of it to node 1
pageferry move 4711 \\-\\-to 1 \\-\\-from 0,2\\-3 # only what is on these nodes
pageferry move \\-\\-unit db.service \\-\\-to 1   # all processes of a systemd unit
.fi""",
    "See also": ".BR move_pages (2),\n.BR numa (7),\n.BR numactl (8),\n.BR migratepages (8)",
}


def load(native: Path) -> None:
    """Make ``import pageferry`` mean this tree with that extension module."""
    sys.dont_write_bytecode = True  # the source tree is none of ours
    spec = importlib.util.spec_from_file_location("pageferry._native", native)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["pageferry._native"] = module
    sys.path.insert(0, str(ROOT / "src"))


def manual(parser: argparse.ArgumentParser) -> str:
    """Return pageferry(1)."""
    from argparse_manpage.manpage import Manpage

    _tell_all(parser)
    page = Manpage(
        parser,
        {
            "project_name": "pageferry",
            "version": (ROOT / "VERSION").read_text().strip(),
            "manual_title": "User Commands",
            "description": "move memory pages between NUMA nodes with many threads",
            "date": "",
        },
        format="single-commands-section",
    )
    # The day of the build says nothing, and would make no two builds alike.
    page.date = ""
    for heading, content in SECTIONS.items():
        page.add_section(heading, ">", content)
    return str(page)


def _tell_all(parser: argparse.ArgumentParser) -> None:
    """Put what is below the options of each verb where argparse-manpage looks for it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                below.description = " ".join(filter(None, (below.description, below.epilog)))
                _tell_all(below)
    parser.epilog = None


def main() -> None:
    """Write the files."""
    native, out = Path(sys.argv[1]), Path(sys.argv[2])
    os.environ["COLUMNS"] = "10000"  # man breaks the lines
    load(native)
    from pageferry.cli import build_parser
    from pageferry.commands.completion import script

    for shell, name in COMPLETIONS.items():
        (out / name).write_text(script(build_parser(), shell))
    (out / "pageferry.1").write_text(manual(build_parser()))
    sources = sorted(
        file
        for name, module in list(sys.modules.items())
        if name.startswith("pageferry.")
        and (file := getattr(module, "__file__", None) or "").endswith(".py")
    )
    (out / "command_files.d").write_text(f"pageferry.1: {' '.join([__file__, *sources])}\n")


if __name__ == "__main__":
    main()

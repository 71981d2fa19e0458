# SPDX-License-Identifier: Apache-2.0
"""``pageferry completion``: what a shell needs to complete the command's words."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from .. import extras

SHELLS = ("bash", "zsh", "fish")

# What is typed for an argument shows in its metavar, also for verbs that do not exist yet.
_NODES = {"bash": "_pageferry_nodes", "zsh": "_pageferry_nodes", "fish": "(_pageferry_nodes)"}
_PIDS = {"bash": "_pageferry_pids", "zsh": "_pids", "fish": "(__fish_complete_pids)"}
_COMPLETERS = {"NODE": _NODES, "NODES": _NODES, "PID": _PIDS}
_FOLDERS = frozenset({"PATH"})
_FILES = frozenset({"FILE", "PNG", "HTML", "JSON"})

_FOLDER = "/sys/devices/system/node"
_PREAMBLE = {
    "bash": f"""
_pageferry_nodes() {{
  compgen -W "$(cd {_FOLDER} 2>/dev/null && printf '%s ' node[0-9]* | sed 's/node//g')" -- "$1"
}}
_pageferry_pids() {{
  compgen -W "$(cd /proc && printf '%s ' [0-9]*)" -- "$1"
}}
""",
    "zsh": f"""
_pageferry_nodes() {{
  local -a nodes
  nodes=({_FOLDER}/node<->(N:t:s/node//))
  compadd -a nodes
}}
""",
    "fish": f"""
function _pageferry_nodes
  string replace -rf '.*/node([0-9]+)$' '$1' -- {_FOLDER}/node*
end
""",
}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb's parser."""
    parser = subparsers.add_parser(
        "completion",
        help="print the shell's completion of this command",
        description="Print a script that makes a shell complete verbs, options, node numbers, "
        "process ids and files.",
        epilog='bash: eval "$(pageferry completion bash)" in ~/.bashrc; zsh: pageferry '
        "completion zsh > _pageferry, in a directory of $fpath; fish: pageferry completion fish "
        "> ~/.config/fish/completions/pageferry.fish. Needs pip install 'pageferry[completion]'.",
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from ..cli import build_parser

    sys.stdout.write(script(build_parser(), args.shell))
    return 0


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the completion of ``parser``'s command for one of ``SHELLS``, made by shtab.

    Raises ``PageferryError`` (ENOPKG) without shtab.
    """
    shtab = extras.require("shtab", "completion", "shell completion")
    for action in _actions(parser):
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif isinstance(action.metavar, str) and action.metavar in _COMPLETERS:
            action.complete = _COMPLETERS[action.metavar]  # type: ignore[attr-defined]
    text: str = shtab.complete(parser, shell, preamble=_PREAMBLE)
    return text.rstrip() + "\n"


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of ``parser`` and of the verbs below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)

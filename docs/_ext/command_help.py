# SPDX-License-Identifier: Apache-2.0
"""The directive ``command-help``: what each verb of the command says with ``--help``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

_COLUMNS = "88"


def verbs(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parser and those of all that is below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from verbs(below)


class CommandHelp(SphinxDirective):
    """A section for each verb."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        from pageferry.cli import build_parser

        before = os.environ.get("COLUMNS")
        os.environ["COLUMNS"] = _COLUMNS
        try:
            return [self._section(parser) for parser in verbs(build_parser())]
        finally:
            if before is None:
                del os.environ["COLUMNS"]
            else:
                os.environ["COLUMNS"] = before

    def _section(self, parser: argparse.ArgumentParser) -> nodes.section:
        section = nodes.section(ids=[nodes.make_id(parser.prog)], names=[])
        section += nodes.title(text=parser.prog)
        text = parser.format_help()
        block = nodes.literal_block(text, text)
        block["language"] = "none"
        section += block
        return section


def setup(app: Any) -> dict[str, Any]:
    """Make the directive known."""
    app.add_directive("command-help", CommandHelp)
    return {"version": "1", "parallel_read_safe": True}

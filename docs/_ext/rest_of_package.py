# SPDX-License-Identifier: Apache-2.0
"""The directive ``rest-of-package``: public names of pageferry that the page has not named so far.

So a name that is new is in the reference before anyone has found its place there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


def kind(value: object) -> str:
    """Return the directive of autodoc that shows a function, a class or an exception."""
    if isinstance(value, type):
        return "autoexception" if issubclass(value, BaseException) else "autoclass"
    return "autofunction" if callable(value) else "autodata"


class RestOfPackage(SphinxDirective):
    """One entry for each name, in the order of the alphabet."""

    def run(self) -> list[nodes.Node]:
        """Return the entries."""
        import pageferry

        text = Path(self.env.doc2path(self.env.docname)).read_text(encoding="utf-8")
        named = set(re.findall(r"auto\w+:: (\w+)$", text, re.MULTILINE))
        lines: list[str] = []
        for name in sorted(set(pageferry.__all__) - named - {"__version__"}):
            lines += [f".. {kind(getattr(pageferry, name))}:: pageferry.{name}"]
            if kind(getattr(pageferry, name)) == "autoclass":
                lines += ["   :members:"]
            lines += [""]
        parent = nodes.container()
        self.state.nested_parse(StringList(lines, source=""), self.content_offset, parent)
        return list(parent.children)


def setup(app: Any) -> dict[str, Any]:
    """Make the directive known."""
    app.add_directive("rest-of-package", RestOfPackage)
    return {"version": "1", "parallel_read_safe": True}

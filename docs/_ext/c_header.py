# SPDX-License-Identifier: Apache-2.0
"""The directive ``c-header``: a C header's comments and declarations as reference pages have them.

A section begins at ``/* ---- Title ---- */``. In it, what stands between two blank lines outside
braces is one entry: a comment, then declarations. Functions go to Sphinx's C domain, so that they
are in the index; structures and enumerations are shown as they are written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

TITLE = re.compile(r"/\* ---- (.+?) -+ \*/")
BEGIN, END = "/* cffi: begin", "/* cffi: end"


@dataclass
class Entry:
    """A comment and the declarations that it is about."""

    comment: str
    code: str

    @property
    def functions(self) -> list[str]:
        """The signatures of its functions, each on one line."""
        found = re.findall(r"PF_API\s+([^;{]+);", self.code)
        return [" ".join(signature.split()) for signature in found]

    @property
    def others(self) -> str:
        """Its structures and enumerations."""
        return re.sub(r"PF_API\s+[^;{]+;[^\n]*\n?", "", self.code).strip()


@dataclass
class Section:
    """The entries below one title."""

    title: str
    entries: list[Entry] = field(default_factory=list)


def parse(text: str) -> tuple[str, list[Section]]:
    """Return the header's first comment that is not a licence, and its sections."""
    opening = next(
        words
        for words in map(_words, re.findall(r"/\*.*?\*/", text, re.DOTALL))
        if "SPDX" not in words
    )
    body = text[text.index(BEGIN) : text.index(END)].split("*/", 1)[1]
    sections = [Section("Limits")]
    for part in _parts(body):
        title = TITLE.match(part)
        if title:
            sections.append(Section(title.group(1)))
            continue
        comment = re.match(r"/\*.*?\*/", part, re.DOTALL)
        code = part[comment.end() :].strip("\n") if comment else part
        sections[-1].entries.append(Entry(_words(comment.group()) if comment else "", code))
    return opening, [section for section in sections if section.entries]


def _parts(body: str) -> list[str]:
    """Split at blank lines that are in neither comment nor braces."""
    parts: list[list[str]] = [[]]
    for line in body.splitlines():
        so_far = "\n".join(parts[-1])
        code = re.sub(r"/\*.*?\*/", "", so_far, flags=re.DOTALL)
        inside = "/*" in code or code.count("{") > code.count("}")
        if not line.strip() and not inside:
            parts.append([])
        else:
            parts[-1].append(line)
    return ["\n".join(part).strip() for part in parts if any(line.strip() for line in part)]


def _words(comment: str) -> str:
    """Return the text of a comment, paragraphs apart."""
    lines = comment.strip().removeprefix("/*").removesuffix("*/").splitlines()
    return "\n".join(line.strip().removeprefix("*").strip() for line in lines).strip()


def _escaped(text: str) -> str:
    """Return text that reStructuredText takes as plain words, its `names` as code."""
    plain = re.sub(r"([*_|\\])", r"\\\1", text)
    return re.sub(r"`([^`]+)`", lambda name: f"``{name.group(1)}``".replace("\\", ""), plain)


class CHeader(SphinxDirective):
    """``c-header:: FILE``, the path relative to the document."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the header's sections."""
        relative, name = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(relative)
        opening, sections = parse(Path(name).read_text(encoding="utf-8"))
        found: list[nodes.Node] = self._parsed(_escaped(opening))
        for section in sections:
            node = nodes.section(ids=[nodes.make_id(section.title)], names=[])
            node += nodes.title(text=section.title)
            for entry in section.entries:
                node += self._entry(entry)
            found.append(node)
        return found

    def _entry(self, entry: Entry) -> list[nodes.Node]:
        text = _escaped(entry.comment)
        result: list[nodes.Node] = []
        if entry.others:
            result += self._parsed(text)
            block = nodes.literal_block(entry.others, entry.others)
            block["language"] = "c"
            result.append(block)
            text = ""
        if entry.functions:
            first, *rest = entry.functions
            lines = [f".. c:function:: {first}"]
            lines += [f"                {other}" for other in rest]
            lines += ["", *(f"   {line}" for line in text.splitlines())]
            result += self._parsed("\n".join(lines))
        elif text:
            result += self._parsed(text)
        return result

    def _parsed(self, text: str) -> list[nodes.Node]:
        parent = nodes.container()
        lines = StringList(text.splitlines(), source=self.get_source_info()[0])
        self.state.nested_parse(lines, self.content_offset, parent)
        return list(parent.children)


def setup(app: Any) -> dict[str, Any]:
    """Make the directive known."""
    app.add_directive("c-header", CHeader)
    return {"version": "1", "parallel_read_safe": True}

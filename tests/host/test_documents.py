# SPDX-License-Identifier: Apache-2.0
"""The documentation: its code runs, its site is built without a warning, its header is whole."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import documents

ROOT = Path(__file__).parents[2]
# The others' blocks all need two nodes: tests/guest/test_documents.py.
ANY_MACHINE = [
    page for page in documents.PAGES if any(not block.mark for block in documents.blocks(page))
]


def test_each_block_is_run_or_says_why_not() -> None:
    languages = {"python", "sh"}
    seen = [block for page in documents.PAGES for block in documents.blocks(page)]
    assert len(documents.PAGES) >= 5 and len(seen) > 30
    for block in seen:
        runs = block.mark in ("", documents.TWO_NODES, documents.DASK)
        assert (
            block.language in languages | {"check"} if runs else block.mark.startswith("not run: ")
        ), f"{block.page}:{block.line}: {block.language}, {block.mark}"


@pytest.mark.parametrize("page", ANY_MACHINE, ids=lambda page: page.stem)
def test_blocks_for_any_machine(page: Path, tmp_path: Path) -> None:
    ours = [block for block in documents.blocks(page) if block.mark == ""]
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            ran = documents.run_shell(page, "", tmp_path, PID=str(process.pid))
            ran += documents.run_python(page, "")
        finally:
            process.kill()
    assert ran == sum(block.language != "check" for block in ours)


def test_a_block_that_fails_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\npageferry move 1 --to 4095\n```\n")
    with pytest.raises(AssertionError, match="node 4095"):
        documents.run_shell(page, "", tmp_path)
    page.write_text("```python\nvalue = 1\n```\n<!-- check: value == 2 -->\n")
    with pytest.raises(AssertionError, match=r"page\.md:4"):
        documents.run_python(page, "")


def test_the_site(tmp_path: Path) -> None:
    for module in ("sphinx", "furo", "myst_parser"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", tmp_path / "doctrees",
         ROOT / "docs", tmp_path / "site"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    page = (tmp_path / "site/reference/header.html").read_text()
    header = (ROOT / "native/include/pageferry.h").read_text()
    functions = set(re.findall(r"^PF_API [^;]*?\b(pf_\w+)\(", header, re.MULTILINE))
    structures = set(re.findall(r"^(?:struct|enum) (pf_\w+) \{", header, re.MULTILINE))
    assert len(functions) > 30 and len(structures) > 10
    assert {name for name in functions if f'id="c.{name}"' not in page} == set()
    text = re.sub(r"<[^>]+>", "", page)
    assert {name for name in structures if f" {name} {{" not in text} == set()
    import pageferry

    reference = (tmp_path / "site/reference/python.html").read_text()
    named = re.sub(r"<[^>]+>", "", reference)
    assert {name for name in pageferry.__all__ if name not in named} <= {"__version__"}
    verbs = (tmp_path / "site/reference/commands.html").read_text()
    from pageferry.cli import COMMANDS

    assert {verb for verb in COMMANDS if f'id="pageferry-{verb}"' not in verbs} == set()

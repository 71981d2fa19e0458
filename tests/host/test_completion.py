# SPDX-License-Identifier: Apache-2.0
"""The shells' completion, and the manual page: made from the parser, and complete."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pageferry import cli
from pageferry.commands import completion
from pageferry.errors import PageferryError
from pageferry.topology import topology

SHARE = Path(sys.prefix, "share")
MAN = SHARE / "man/man1/pageferry.1"


def complete(*words: str) -> list[str]:
    """What bash offers for the last of ``words``."""
    code = (
        'source /dev/stdin; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_shtab_pageferry 2>/dev/null; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", code, "bash", "pageferry", *words],
        input=completion.script(cli.build_parser(), "bash"),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return done.stdout.split()


def test_bash_completes_verbs() -> None:
    assert set(complete("")) == set(cli.COMMANDS)
    assert complete("lo") == ["locate"]
    assert {"series", "call"} <= set(complete("bench", ""))


def test_bash_completes_options_nodes_processes_and_files() -> None:
    assert {"--to", "--from", "--dry-run", "--json"} <= set(complete("move", "--"))
    nodes = [str(node) for node in topology().node_ids]
    assert sorted(complete("move", "1", "--to", "")) == sorted(nodes)
    assert str(os.getpid()) in complete("move", str(os.getpid())[:-1])
    assert complete("move", "x") == []
    assert complete("move", "--to", "0", "--cgroup", "/pro") == ["/proc"]
    assert complete("bench", "series", "--plot", f"{__file__[:-4]}") == [__file__]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_shell_takes_its_script(shell: str) -> None:
    text = completion.script(cli.build_parser(), shell)
    assert all(verb in text for verb in cli.COMMANDS)
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here to read it")
    subprocess.run([shell, "-n"], input=text, text=True, check=True, timeout=300)


def test_the_command_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "fish"]) == 0
    assert capsys.readouterr().out == completion.script(cli.build_parser(), "fish")


def test_without_shtab_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)  # what Python does about a missing module
    with pytest.raises(PageferryError, match=r"needs the Python package shtab.*ENOPKG.*pageferry"):
        completion.script(cli.build_parser(), "bash")
    assert cli.main(["completion", "bash"]) == 1


@pytest.mark.skipif(not MAN.exists(), reason="installed without the packages that make it")
def test_manual_page_and_completion_are_installed() -> None:
    page = MAN.read_text()
    assert page.startswith(".TH PAGEFERRY")
    for verb in cli.COMMANDS:
        assert f"\\fBpageferry {verb}\\fR" in page
    for heading in ("NAME", "SYNOPSIS", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"):
        assert f".SH {heading}" in page.replace(".SH\n", ".SH ")
    for place, shell in (
        ("bash-completion/completions/pageferry.bash", "bash"),
        ("zsh/site-functions/_pageferry", "zsh"),
        ("fish/vendor_completions.d/pageferry.fish", "fish"),
    ):
        assert (SHARE / place).read_text() == completion.script(cli.build_parser(), shell)

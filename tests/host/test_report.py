# SPDX-License-Identifier: Apache-2.0
"""``pageferry report``: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pageferry import cli
from pageferry.errors import PageferryError
from pageferry.html_report import page, read_figures

SERIES = Path(__file__).parents[2] / "docs/pageferry-series.json"
VOID = {"meta", "img", "br", "hr", "link"}


class Elements(HTMLParser):
    """The elements of a page, each closed where it has to be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def written(tmp_path: Path, figures: object, name: str = "figures.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(figures))
    return path


def test_a_report_of_the_series(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert cli.main(["report", str(SERIES), "--output", str(out), "--title", "A <title>"]) == 0
    assert capsys.readouterr().out == f"Written: {out}\n"
    text = out.read_text()
    elements = Elements(text)
    told = " ".join(elements.text)
    for part in ("A <title>", "bench series", "Moved 100000 normal pages", "nodes with memory",
                 "Measured in an emulated guest", "pageferry bench series"):  # fmt: skip
        assert part in told
    (image,) = (attrs for tag, attrs in elements.found if tag == "img")
    head, _, data = (image["src"] or "").partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG") and len(data) > 10000
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_nothing_comes_from_elsewhere() -> None:
    elements = Elements(page([("x.json", read_figures(SERIES))], title="t"))
    for tag, attrs in elements.found:
        assert tag not in ("script", "link", "iframe", "object")
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href"):
            assert re.match("data:|#", attrs.get(name) or "#")


def test_what_figures_hold_is_text_and_nothing_else(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    figures = {"experiment": evil, "command": evil, "value": evil, "on": True}
    text = page([(evil, figures)], title=evil)
    assert "<script" not in text and "&lt;script&gt;" in text
    nested = read_figures(SERIES)
    nested["machine"]["cpu"] = nested["machine"]["kernel"] = evil
    assert "<script" not in page([("x", nested)], title="t", plots=False)


def test_several_files_and_one_without_a_plot(tmp_path: Path) -> None:
    machine = read_figures(SERIES)["machine"]
    call = {"experiment": "call", "machine": machine, "move_us": 12.5, "nodes": [0, 1]}
    call["command"] = "pageferry bench call"
    out = tmp_path / "out.html"
    files = [str(SERIES), str(written(tmp_path, call))]
    assert cli.main(["report", *files, "--no-plots", "--output", str(out)]) == 0
    elements = Elements(out.read_text())
    told = " ".join(elements.text)
    assert "12.5" in told and "0, 1" in told and "pageferry bench call" in told
    assert [attrs["href"] for tag, attrs in elements.found if tag == "a"] == ["#part1", "#part2"]
    assert not any(tag == "img" for tag, _ in elements.found)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"experiment": 3}', '"experiment"', "\x00", '{"a": 1}']
)
def test_foreign_files_are_refused(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    assert cli.main(["report", str(path), "--output", str(tmp_path / "x.html")]) == 1
    assert "has no figures of an experiment" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_figures_that_lack_something_are_refused(tmp_path: Path) -> None:
    figures = read_figures(SERIES)
    del figures["cases"][0]["ways"]
    with pytest.raises(PageferryError, match="not figures of bench series"):
        page([("x.json", figures)], title="t")


def test_files_that_cannot_be_read_or_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(tmp_path / "none.json")]) == 1
    assert "cannot read" in capsys.readouterr().err
    words = ["report", str(SERIES), "--no-plots", "--output"]
    assert cli.main([*words, "/nowhere/x.html"]) == 1
    assert "cannot write /nowhere/x.html [ENOENT" in capsys.readouterr().err
    (tmp_path / "folder").mkdir()
    assert cli.main([*words, str(tmp_path / "folder")]) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_without_matplotlib_the_cure_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    words = ["report", str(SERIES), "--output", str(tmp_path / "x.html")]
    assert cli.main(words) == 1
    assert "pip install 'pageferry[plot]'" in capsys.readouterr().err
    assert cli.main([*words, "--no-plots"]) == 0


def test_figures_tell_the_command_that_made_them(tmp_path: Path) -> None:
    out = tmp_path / "m.json"
    words = ["bench", "matrix", "--lab", "never", "--size", "2M", "--repeats", "1"]
    assert cli.main([*words, "--output", str(out)]) == 0
    command = json.loads(out.read_text())["command"]
    assert command == " ".join(["pageferry", *words, "--output", str(out)])

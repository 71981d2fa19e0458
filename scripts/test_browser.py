# SPDX-License-Identifier: Apache-2.0
"""Look at the report and the documentation in a real browser, wide and narrow.

Usage: test_browser.py OUT FILE.html ...     or a directory, for all pages in it

Chromium without a window, steered over a pipe (its DevTools protocol, --remote-debugging-pipe).
For each page and width: no error on the console, nothing that was not found, every image drawn,
nothing wider than the window. Screenshots go into OUT. Exits with 1 if anything is wrong.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WIDTHS = {1280: 900, 390: 844}
PATIENCE = 60.0
TALLEST = 6000  # pixels of a screenshot
LOOK = """(() => {
  const wide = document.documentElement.clientWidth;
  const scrolls = e => e && e !== document.body && e !== document.documentElement &&
    (["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(e).overflowX) ||
     scrolls(e.parentElement));
  return {
    title: document.title,
    images: [...document.images].filter(i => !i.complete || !i.naturalWidth)
      .map(i => i.alt || i.src),
    overflow: document.documentElement.scrollWidth - wide,
    culprits: [...document.body.querySelectorAll("*")].filter(
        e => e.getBoundingClientRect().right > wide + 1 && !scrolls(e.parentElement)
      ).slice(0, 5).map(e => e.tagName + "." + e.className),
    text: document.body.innerText.length,
    height: document.documentElement.scrollHeight,
  };
})()"""


class Browser:
    """Chromium with one page."""

    def __init__(self, profile: str) -> None:
        names = ("chromium", "chromium-browser", "google-chrome")
        program = next(filter(None, map(shutil.which, names)), None)
        if program is None:
            raise SystemExit("test_browser: no chromium here; scripts/install chromium")
        commands, self._out = os.pipe()
        self._in, answers = os.pipe()

        def places() -> None:  # which file descriptors the browser reads and writes
            high = [os.dup(commands), os.dup(answers)]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self._process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars",
             "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=places, close_fds=False,
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        self._rest = b""
        self._number = 0
        self._session = ""
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Have the browser do something; return its answer. Events are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self.events.append(answer)

    def until(self, method: str) -> None:
        """Wait for an event."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(end - time.monotonic(), 0))
            data = os.read(self._in, 1 << 20) if ready else b""
            if not data:
                raise RuntimeError("the browser says nothing any more")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def close(self) -> None:
        """End it."""
        os.close(self._out)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)


def complaints(events: list[dict[str, Any]]) -> list[str]:
    """Return what the console and the network had to complain of."""
    found = []
    for event in events:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            found.append(f"exception: {params['exceptionDetails'].get('text')}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            found.append(f"console: {[each.get('value') for each in params['args']]}")
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.loadingFailed" and not params.get("canceled"):
            found.append(f"not loaded: {params.get('errorText')}")
    return found


def look(browser: Browser, page: Path, width: int, picture: Path) -> list[str]:
    """Open a page in a window of that width; return what is wrong with it."""
    height = WIDTHS[width]
    browser.ask(
        "Emulation.setDeviceMetricsOverride",
        width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
    )  # fmt: skip
    browser.events.clear()
    browser.ask("Page.navigate", url=page.absolute().as_uri())
    browser.until("Page.loadEventFired")
    seen = browser.ask("Runtime.evaluate", expression=LOOK, returnByValue=True)["result"]["value"]
    wrong = complaints(browser.events)
    wrong += [f"image not drawn: {image[:80]}" for image in seen["images"]]
    if seen["overflow"] > 0:
        wrong.append(f"{seen['overflow']} px wider than the window: {', '.join(seen['culprits'])}")
    if not seen["title"] or seen["text"] < 50:
        wrong.append("an empty page")
    clip = {"x": 0, "y": 0, "width": width, "height": min(seen["height"], TALLEST), "scale": 1}
    shot = browser.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
    picture.write_bytes(base64.b64decode(shot["data"]))
    return wrong


def main() -> int:
    """Look at all pages."""
    out, *names = map(Path, sys.argv[1:])
    pages = [page for name in names for page in sorted(name.rglob("*.html")) or [name]]
    if not pages:
        print(__doc__)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(profile)
        try:
            for page in pages:
                for width in WIDTHS:
                    name = "-".join(page.with_suffix("").parts[-2:])
                    wrong = look(browser, page, width, out / f"{name}-{width}.png")
                    failed += bool(wrong)
                    print(f"{page} at {width}: {'; '.join(wrong) or 'good'}")
        finally:
            browser.close()
    print(f"browser: {len(pages)} pages, {len(WIDTHS)} widths each, failed: {failed}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Take a picture of a page with a real browser.

`python tests/support/screenshots.py URL out.png [WIDTHxHEIGHT] [CLICK …]`.

Needs Chromium or Chrome (`apt-get install chromium`, or its path in CHROMIUM); spoken to over its DevTools pipe,
so nothing else is to be installed. Each CLICK is the visible text of something to click before the picture, or
`css=SELECTOR` for all that match, or `js=EXPRESSION` to be evaluated; `wait=S` changes the seconds a page gets to
draw itself (6), `then=S` those after each click (2), `dark` asks for its dark colours, `print` for its look on paper,
and `whole` takes the page from top to end. The MLflow UI is shown for model training, its assistant closed:

    python -m workbench ui                        # in another terminal; it prints the address
    python tests/support/screenshots.py http://127.0.0.1:5000/#/experiments/1/runs runs.png 1440x900 \
        "css=.ag-row[row-index='0'] .ag-cell:nth-child(2) button"
    python tests/support/screenshots.py http://127.0.0.1:5000/#/models/legal_lora versions.png
    python tests/support/screenshots.py experiments/legal_lora/1a2b3c4d/evaluate/report.html report.png \
        1200x1600 whole dark
    python tests/support/screenshots.py http://127.0.0.1:5000/#/experiments/1/runs/ID mlflow_live.png 1440x1000
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)  # fmt: skip
# What a user of the MLflow UI would have clicked once.
MLFLOW_SETTINGS = {
    "mlflow.workflowType_v1": "machine_learning",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,
    "mlflow.assistant.panelOpen_v1": False,
}
CLICK = """(() => { const text = %s;
  if (text.startsWith('js=')) { eval(text.slice(3)); return true; }
  if (text.startsWith('css=')) {
  const all = [...document.querySelectorAll(text.slice(4))]; all.forEach(e => e.click()); return all.length > 0; }
  const all = [...document.querySelectorAll('button, a, label, [role], span, div')];
  const hit = all.reverse().find(e => e.textContent.trim() === text || e.title === text || e.ariaLabel === text);
  if (hit) hit.click(); return Boolean(hit); })()"""


def program() -> str | None:
    """The browser's path, or None where there is none."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


class Browser:
    """A browser at the other end of two pipes; messages are JSON ended by a zero byte. `events` keeps what it told."""

    def __init__(self, to: BinaryIO, back: BinaryIO):
        self.to, self.back, self.number, self.session = to, back, 0, ""
        self.events: list[dict[str, Any]] = []
        self.rest = b""

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one DevTools command and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        self.to.write(json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while True:
            answer = json.loads(self.read())
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def read(self) -> bytes:
        """The next message."""
        while b"\0" not in self.rest:
            more = os.read(self.back.fileno(), 1 << 16)
            if not more:
                raise RuntimeError("the browser went away")
            self.rest += more
        message, _, self.rest = self.rest.partition(b"\0")
        return message

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def look(self, width: int, height: int, *, dark: bool = False, media: str = "") -> None:
        """The size of the window, in CSS pixels, and what its user likes."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        likes = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", media=media, features=likes)

    def know_mlflow(self) -> None:
        """Be one who has clicked away what the MLflow UI shows a newcomer."""
        stored = "".join(
            f"localStorage.setItem({json.dumps(k)}, {json.dumps(json.dumps(v))});" for k, v in MLFLOW_SETTINGS.items()
        )
        self.ask("Page.addScriptToEvaluateOnNewDocument", source=f"try {{ {stored} }} catch (e) {{}}")

    def go(self, url: str, wait_s: float) -> None:
        """Open a page or a file and let it draw itself."""
        self.ask("Page.navigate", url=url if "://" in url else Path(url).resolve().as_uri())
        time.sleep(wait_s)

    def png(self, *, whole: bool = False) -> bytes:
        """What is to be seen; `whole`: the page to its end."""
        answer = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])


@contextmanager
def browse() -> Iterator[Browser]:
    """A browser with one empty page, its console and requests told as events; it is gone afterwards."""
    path = program()
    if not path:
        sys.exit("no Chromium or Chrome here: apt-get install chromium, or set CHROMIUM to its path")
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The browser reads descriptor 3 and writes 4: a shell puts the pipes there.
        shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        words = [path, *QUIET, f"--user-data-dir={profile}", "about:blank"]
        chrome = subprocess.Popen(
            ["bash", "-c", shell, "chrome", *words], pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            with os.fdopen(ours_out, "wb", buffering=0) as to, os.fdopen(ours_in, "rb", buffering=0) as back:
                browser = Browser(to, back)
                target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
                browser.session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
                for domain in ("Page", "Runtime", "Network", "Log"):
                    browser.ask(f"{domain}.enable")
                yield browser
                browser.session = ""
                browser.ask("Browser.close")
        finally:
            try:
                chrome.wait(10)
            except subprocess.TimeoutExpired:
                chrome.kill()


def picture(
    url: str, out: Path, size: str, clicks: list[str], *, wait_s: float, then_s: float, words: set[str]
) -> None:
    """Open the page, let it draw itself, click what is to be clicked, write the PNG."""
    width, height = map(int, size.split("x"))
    with browse() as browser:
        browser.look(width, height, dark="dark" in words, media="print" if "print" in words else "")
        browser.know_mlflow()
        browser.go(url, wait_s)
        for text in clicks:
            if not browser.evaluate(CLICK % json.dumps(text)):
                print(f"nothing on the page reads {text!r}", file=sys.stderr)
            time.sleep(then_s)
        if "whole" in words:
            height = browser.evaluate("Math.ceil(document.documentElement.getBoundingClientRect().height)")
            browser.look(width, height, dark="dark" in words, media="print" if "print" in words else "")
        out.write_bytes(browser.png())


def main() -> None:
    """Read the command line."""
    words = sys.argv[1:]
    if len(words) < 2:
        sys.exit(__doc__)
    seconds = {"wait": 6.0, "then": 2.0}
    flags, rest = set(), []
    for word in words:
        name, _, value = word.partition("=")
        if name in seconds and value:
            seconds[name] = float(value)
        elif word in ("dark", "print", "whole"):
            flags.add(word)
        else:
            rest.append(word)
    sizes = [word for word in rest[2:3] if word.replace("x", "", 1).isdigit()]
    size = sizes[0] if sizes else "1440x900"
    times = {"wait_s": seconds["wait"], "then_s": seconds["then"]}
    picture(rest[0], Path(rest[1]), size, rest[2 + len(sizes) :], words=flags, **times)
    print(rest[1])


if __name__ == "__main__":
    main()

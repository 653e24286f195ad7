"""Take a picture of a page with a real browser: `python tests/screenshots.py URL out.png [WIDTHxHEIGHT] [CLICK …]`.

Needs Chromium or Chrome (`apt-get install chromium`, or its path in CHROMIUM); spoken to over its DevTools pipe,
so nothing else is to be installed. Each CLICK is the visible text of something to click before the picture, or
`css=SELECTOR` for all that match; `wait=S` changes the seconds a page gets to draw itself (6). The MLflow UI is
shown for model training, its assistant closed:

    python -m workbench ui                        # in another terminal; it prints the address
    python tests/screenshots.py http://127.0.0.1:5000/#/experiments/1/runs runs.png 1440x900 \
        "css=.ag-row[row-index='0'] .ag-cell:nth-child(2) button"
    python tests/screenshots.py http://127.0.0.1:5000/#/models/legal_lora versions.png
    python tests/screenshots.py experiments/legal_lora/1a2b3c4d/evaluate/report.html report.png 1200x1600
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
CLICK = """(() => { const text = %s; if (text.startsWith('css=')) {
  const all = [...document.querySelectorAll(text.slice(4))]; all.forEach(e => e.click()); return all.length > 0; }
  const all = [...document.querySelectorAll('button, a, label, [role], span, div')];
  const hit = all.reverse().find(e => e.textContent.trim() === text || e.title === text || e.ariaLabel === text);
  if (hit) hit.click(); return Boolean(hit); })()"""


class Browser:
    """A browser at the other end of two pipes; messages are JSON ended by a zero byte."""

    def __init__(self, to: BinaryIO, back: BinaryIO):
        self.to, self.back, self.number, self.session = to, back, 0, ""

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one DevTools command and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        self.to.write(json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while True:
            answer = json.loads(self.read())
            if answer.get("id") == self.number:
                if "error" in answer:
                    sys.exit(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def read(self) -> bytes:
        """The next message."""
        message = bytearray()
        while (byte := self.back.read(1)) != b"\0":
            if not byte:
                sys.exit("the browser went away")
            message += byte
        return bytes(message)


def picture(url: str, out: Path, size: str, clicks: list[str], wait_s: float) -> None:
    """Open the page, let it draw itself, click what is to be clicked, write the PNG."""
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not program:
        sys.exit("no Chromium or Chrome here: apt-get install chromium, or set CHROMIUM to its path")
    width, height = map(int, size.split("x"))
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The browser reads descriptor 3 and writes 4: a shell puts the pipes there.
        shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        words = [program, *QUIET, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"]
        chrome = subprocess.Popen(
            ["bash", "-c", shell, "chrome", *words], pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            with os.fdopen(ours_out, "wb", buffering=0) as to, os.fdopen(ours_in, "rb") as back:
                browser = Browser(to, back)
                target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
                browser.session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
                browser.ask("Page.enable")
                browser.ask("Emulation.setDeviceMetricsOverride", width=width, height=height,
                            deviceScaleFactor=1, mobile=False)  # fmt: skip
                stored = "".join(f"localStorage.setItem({json.dumps(k)}, {json.dumps(json.dumps(v))});"
                                 for k, v in MLFLOW_SETTINGS.items())  # fmt: skip
                source = f"try {{ {stored} }} catch (e) {{}}"
                browser.ask("Page.addScriptToEvaluateOnNewDocument", source=source)
                browser.ask("Page.navigate", url=url if "://" in url else Path(url).resolve().as_uri())
                time.sleep(wait_s)
                for text in clicks:
                    found = browser.ask("Runtime.evaluate", expression=CLICK % json.dumps(text), returnByValue=True)
                    if not found["result"].get("value"):
                        print(f"nothing on the page reads {text!r}", file=sys.stderr)
                    time.sleep(2)
                png = browser.ask("Page.captureScreenshot", format="png")["data"]
                out.write_bytes(base64.b64decode(png))
                browser.session = ""
                browser.ask("Browser.close")
        finally:
            try:
                chrome.wait(10)
            except subprocess.TimeoutExpired:
                chrome.kill()


if __name__ == "__main__":
    words = sys.argv[1:]
    if len(words) < 2:
        sys.exit(__doc__)
    waits = [float(word.removeprefix("wait=")) for word in words if word.startswith("wait=")]
    rest = [word for word in words if not word.startswith("wait=")]
    sizes = [word for word in rest[2:3] if word.replace("x", "", 1).isdigit()]
    clicks = rest[2 + len(sizes) :]
    picture(rest[0], Path(rest[1]), sizes[0] if sizes else "1440x900", clicks, waits[0] if waits else 6.0)
    print(rest[1])

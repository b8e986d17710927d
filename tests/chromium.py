"""A headless Chromium for tests of pages: what it shows, what it asks of the network, what its console says.

It is steered over two pipes by the DevTools protocol (https://chromedevtools.github.io/devtools-protocol), as Puppeteer
does: no driver, no port, no further package.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ANSWER_S = 60.0


class Page:
    """One tab.

    Attributes:
        errors: uncaught exceptions, and what the console and the browser's log call errors or warnings.
        requests: addresses that were asked for, but for data addresses.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from, self._rest, self._number = to_browser, from_browser, b"", 0
        self._session: str | None = None
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + ANSWER_S
        while True:
            answer = self._read(deadline, method)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self._note(answer)

    def open(self, file: Path) -> None:
        """Open a file from the disk, and wait until it is loaded and has drawn twice."""
        self.call("Page.navigate", url=file.resolve().as_uri())
        self.run(
            "new Promise(done => { const look = () =>"
            " document.readyState === 'complete' && location.protocol === 'file:'"
            " ? requestAnimationFrame(() => requestAnimationFrame(done)) : setTimeout(look, 20); look(); })"
        )

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it comes to."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def settle(self) -> None:
        """Wait for two frames."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """`mouseMoved`, `mousePressed`, `mouseReleased` or `mouseWheel`, in px of the window."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        self.mouse("mouseMoved", x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)
        self.settle()

    def key(self, name: str) -> None:
        """Press a key, such as `ArrowLeft`, `Enter`, `Tab` or `+`."""
        codes = {"Enter": (13, "\r"), "Tab": (9, ""), " ": (32, " ")}
        code, text = codes.get(name, (ord(name), name) if len(name) == 1 else (0, ""))
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, windowsVirtualKeyCode=code, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name, windowsVirtualKeyCode=code)
        self.settle()

    def cpu_s(self) -> float:
        """Seconds of CPU that the page's main thread has used, by the clock that `Performance.enable` names."""
        metrics = self.call("Performance.getMetrics")["metrics"]
        return float(next(one["value"] for one in metrics if one["name"] == "ThreadTime"))

    def look(self, *, width: int, height: int, media: str = "", scheme: str = "light") -> None:
        """Set the window's size in px, the medium ("print") and the colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.settle()

    def picture(self, file: Path) -> Path:
        """A PNG of the window."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return file

    def _read(self, deadline: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"Chromium has not answered {method} within {ANSWER_S:g} s"
            if select.select([self._from], [], [], left_s)[0]:
                some = os.read(self._from, 1 << 20)
                assert some, "Chromium has ended"
                self._rest += some
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        what = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(what["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if what["type"] in ("error", "warning", "assert"):
                self.errors.append(json.dumps(what["args"]))
            case "Log.entryAdded" if what["entry"]["level"] in ("error", "warning"):
                self.errors.append(what["entry"]["text"])
            case "Network.requestWillBeSent" if not what["request"]["url"].startswith("data:"):
                self.requests.append(what["request"]["url"])


@contextmanager
def chromium_page(folder: Path) -> Iterator[Page]:
    """A tab of a Chromium of its own, whose profile lies in `folder`; skips where there is none."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(PROGRAMS)} is installed")
    words = [
        program, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-sandbox",
        "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
        "--hide-scrollbars",
    ]  # fmt: skip
    # The browser reads from 3 and writes to 4; ours must be none of these.
    browser_reads, to_browser = _high_pipe()
    from_browser, browser_writes = _high_pipe()
    nowhere = os.open(os.devnull, os.O_RDWR)
    actions = [(os.POSIX_SPAWN_DUP2, browser_reads, 3), (os.POSIX_SPAWN_DUP2, browser_writes, 4),
               *((os.POSIX_SPAWN_DUP2, nowhere, end) for end in (0, 1, 2))]  # fmt: skip
    process = os.posix_spawn(program, words, os.environ, file_actions=actions, setsid=True)
    for end in (browser_reads, browser_writes, nowhere):
        os.close(end)
    try:
        yield Page(to_browser, from_browser)
    finally:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(to_browser)
        os.close(from_browser)


def _high_pipe() -> tuple[int, int]:
    """Reading and writing end of a pipe, with numbers from 10 on."""
    low = os.pipe()
    reads, writes = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low)
    for end in low:
        os.close(end)
    return reads, writes

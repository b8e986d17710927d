"""A headless Chromium for tests of pages: what it shows, what it asks of the network, what its console says.

It is steered over two pipes by the DevTools protocol (https://chromedevtools.github.io/devtools-protocol), as Puppeteer
does: no driver, no port, no further package.
"""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless=new", "--remote-debugging-pipe", "--no-startup-window", "--no-first-run", "--no-sandbox",
    "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-extensions", "--hide-scrollbars",
)  # fmt: skip
ANSWER_S = 90.0
END_S = 10.0
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
LEFT_BUTTON: dict[str, Any] = {"button": "left", "clickCount": 1}


class Browser:
    """A Chromium that is driven through two pipes."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from, self._rest, self._number = to_browser, from_browser, b"", 0
        self._pages: dict[str, Page] = {}

    def call(self, method: str, *, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The answer to one command of the protocol; events that arrive meanwhile go to their pages."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        end_s = time.monotonic() + ANSWER_S
        while True:
            answer = self._read(end_s, method)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            if page := self._pages.get(answer.get("sessionId", "")):
                page.note(answer)

    @contextlib.contextmanager
    def open_page(self) -> Iterator["Page"]:
        """A tab in a window of its own that shares no storage with others; closed afterwards."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._pages[session] = Page(self, session)
        try:
            yield self._pages[session]
        finally:
            del self._pages[session]
            self.call("Target.disposeBrowserContext", browserContextId=context)

    def _read(self, end_s: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            left_s = end_s - time.monotonic()
            assert left_s > 0, f"Chromium has not answered {method} within {ANSWER_S:g} s"
            if select.select([self._from], [], [], left_s)[0]:
                some = os.read(self._from, 1 << 20)
                assert some, "Chromium has ended"
                self._rest += some
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))


class Page:
    """One tab.

    Attributes:
        errors: uncaught exceptions, and what the console and the browser's log call errors or warnings.
        requests: addresses that were asked for, but for data addresses.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command of the protocol."""
        return self._browser.call(method, session=self._session, **parameters)

    def note(self, event: dict[str, Any]) -> None:
        """Record an event of this page."""
        what = event["params"]
        match event["method"]:
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(what["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if what["type"] in ("error", "warning", "assert"):
                self.errors.append(json.dumps(what["args"]))
            case "Log.entryAdded" if what["entry"]["level"] in ("error", "warning"):
                self.errors.append(f"{what['entry']['text']} {what['entry'].get('url', '')}")
            case "Network.requestWillBeSent" if not what["request"]["url"].startswith("data:"):
                self.requests.append(what["request"]["url"])

    def open(self, place: Path | str) -> None:
        """Open a file or an address, and wait until it is loaded."""
        url = place.resolve().as_uri() if isinstance(place, Path) else place
        answer = self.call("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"
        self.wait_for("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; of a promise, its result."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, script: str) -> None:
        """Wait until a JavaScript expression is true."""
        end_s = time.monotonic() + ANSWER_S
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < end_s, f"not true within {ANSWER_S:g} s: {script}; {self.errors}"
            time.sleep(0.03)

    def settle(self) -> None:
        """Wait for two frames."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def window(self, width: int, height: int, *, scheme: str = "light", media: str = "") -> None:
        """The window's size in px, the scheme (`light`, `dark`) and the medium (`print`, or else the screen)."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.settle()

    def middle_of(self, selector: str) -> tuple[float, float]:
        """Scroll to the first such element; returns its centre in the window, in px."""
        x, y = self.run(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            " one.scrollIntoView({block: 'center'}); const box = one.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        return x, y

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """`mouseMoved`, `mousePressed`, `mouseReleased` or `mouseWheel`, in px of the window."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        self.mouse("mouseMoved", x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, **LEFT_BUTTON)
        self.settle()

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press, move and release the mouse."""
        self.mouse("mouseMoved", *start)
        self.mouse("mousePressed", *start, **LEFT_BUTTON)
        for part in (0.3, 0.6, 1.0):
            x, y = (a + part * (b - a) for a, b in zip(start, end, strict=True))
            self.mouse("mouseMoved", x, y, **LEFT_BUTTON, buttons=1)
        self.mouse("mouseReleased", *end, **LEFT_BUTTON)
        self.settle()

    def key(self, name: str) -> None:
        """Press a key of `KEYS`, or one that writes a character, such as `+`."""
        code = KEYS[name] if name in KEYS else ord(name)
        text = "\r" if name == "Enter" else "" if name in KEYS else name
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, windowsVirtualKeyCode=code, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name, windowsVirtualKeyCode=code)
        self.settle()

    def cpu_s(self) -> float:
        """Seconds of CPU that the page's main thread has used, by the clock that `Performance.enable` names."""
        metrics = self.call("Performance.getMetrics")["metrics"]
        return float(next(one["value"] for one in metrics if one["name"] == "ThreadTime"))

    def picture(self, file: Path) -> None:
        """A PNG of the window."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def pdf(self, file: Path) -> None:
        """The page as it is printed."""
        file.write_bytes(base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"]))


@contextlib.contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """A Chromium whose profile lies in the folder `profile`, ended afterwards; skips where there is none."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(PROGRAMS)} is installed")
    # The browser reads from 3 and writes to 4; ours must be none of these.
    browser_reads, to_browser = _high_pipe()
    from_browser, browser_writes = _high_pipe()
    nowhere = os.open(os.devnull, os.O_RDWR)
    actions = [(os.POSIX_SPAWN_DUP2, browser_reads, 3), (os.POSIX_SPAWN_DUP2, browser_writes, 4),
               *((os.POSIX_SPAWN_DUP2, nowhere, end) for end in (0, 1, 2))]  # fmt: skip
    words = [program, *OPTIONS, f"--user-data-dir={profile}"]
    process = os.posix_spawn(program, words, os.environ, file_actions=actions, setsid=True)
    for end in (browser_reads, browser_writes, nowhere):
        os.close(end)
    try:
        yield Browser(to_browser, from_browser)
    finally:
        os.close(
            to_browser
        )  # it then ends by itself, also when this process is killed; a kill leaves its files in /tmp
        os.close(from_browser)
        _wait_or_kill(process)


def _wait_or_kill(process: int) -> None:
    end_s = time.monotonic() + END_S
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        if time.monotonic() > end_s:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return
        time.sleep(0.05)


def _high_pipe() -> tuple[int, int]:
    """Reading and writing end of a pipe, with numbers from 10 on."""
    low = os.pipe()
    reads, writes = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low)
    for end in low:
        os.close(end)
    return reads, writes

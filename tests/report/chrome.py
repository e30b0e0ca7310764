"""A headless Chromium, driven over a pipe by its own protocol: what a reader of a page would see.

    with Chrome(profile) as chrome:
        tab = chrome.open(path, width=390, dark=True, scripts=False)
        tab.evaluate("document.title"); tab.press("Tab"); tab.screenshot(file)
        tab.console, tab.requests           # both empty, if the page is as it should be

No package and no port: the protocol's messages go through two pipes, each ended by a zero byte.
"""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

FOUND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
KEYS = {
    "Tab": 9,
    "Enter": 13,
    "PageUp": 33,
    "PageDown": 34,
    "ArrowLeft": 37,
    "ArrowRight": 39,
    "Home": 36,
    "End": 35,
}
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--no-first-run", "--hide-scrollbars", "--force-color-profile=srgb"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe"),
)


class Chrome:
    """The process. Its pages are told apart by a session each."""

    def __init__(self, profile: Path) -> None:
        assert FOUND is not None
        their_in, self._out = os.pipe()
        self._in, their_out = os.pipe()
        self._process = subprocess.Popen(
            [
                *("bash", "-c", f'exec "$@" 3<&{their_in} 4>&{their_out}', "chrome", FOUND),
                *(*FLAGS, f"--user-data-dir={profile}", "about:blank"),
            ],
            pass_fds=(their_in, their_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(their_in)
        os.close(their_out)
        self._read = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> "Chrome":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._out)
        self._process.kill()
        self._process.wait()
        os.close(self._in)

    def call(self, method: str, session: str | None = None, **params: object) -> Any:
        """The answer to a message; what happened meanwhile is kept in `events`."""
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            part = os.read(self._in, 1 << 20)
            assert part, "Chromium has ended"
            self._read += part
        message, _, self._read = self._read.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def open(
        self,
        path: Path,
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        scripts: bool = True,
    ) -> "Tab":
        """A page, loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        tab.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                 deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.call("Emulation.setEmulatedMedia", features=[scheme])
        tab.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        tab.call("Page.navigate", url=path.absolute().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in tab.events):
            self.events.append(self.receive())
        return tab


class Tab:
    """One page."""

    def __init__(self, chrome: Chrome, session: str) -> None:
        self._chrome, self._session = chrome, session

    def call(self, method: str, **params: object) -> Any:
        return self._chrome.call(method, self._session, **params)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for event in self._chrome.events if event.get("sessionId") == self._session]

    @property
    def console(self) -> list[str]:
        """All that was written on the console, and every error."""
        self.evaluate("0")
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in kinds]

    @property
    def requests(self) -> list[str]:
        """Addresses that were asked for, the page's own apart."""
        self.evaluate("0")
        kind = "Network.requestWillBeSent"
        asked = [e["params"]["request"]["url"] for e in self.events if e["method"] == kind]
        return asked[1:]

    def evaluate(self, expression: str) -> Any:
        """The value of an expression; also where the page's own scripts are off."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                      windowsVirtualKeyCode=KEYS[key])  # fmt: skip

    def point(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, file: Path, *, top: int = 0, height: int | None = None) -> None:
        """The page, or a stretch of it."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": top, "width": size["width"], "scale": 1}
        clip["height"] = height or size["height"]
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

"""Headless Chromium, driven through the DevTools protocol over two pipes; needs nothing of PyPI."""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NAMES = ("chromium-headless-shell", "chrome-headless-shell", "chromium", "chromium-browser", "google-chrome")
_SECONDS = 60


def find() -> str | None:
    """The program: that of the environment's CHROMIUM, or the first on PATH."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


class Page:
    """A tab, and what has happened in it."""

    def __init__(self, read: int, write: int):
        self._read, self._write, self._rest, self._numbers = read, write, b"", itertools.count(1)
        self.events: list[dict[str, Any]] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **parameters) -> dict[str, Any]:
        """Result of a command to the tab."""
        return self._call(method, self._session, **parameters)

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, path: Path, width: int, dark: bool = False) -> None:
        """Load a file as a phone or a screen of that width shows it, without a network."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=path.absolute().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message())

    def screenshot(self) -> bytes:
        """All of the page as PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=self._whole())
        return base64.b64decode(found["data"])

    def _whole(self) -> dict[str, Any]:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def _call(self, method: str, session: str | None = None, **parameters) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], _SECONDS)[0], "Chromium does not answer"
            part = os.read(self._read, 1 << 16)
            assert part, "Chromium has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """A tab of a Chromium of its own, which keeps its files in `folder`."""
    theirs_read, write = os.pipe()
    read, theirs_write = os.pipe()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    bash = ["bash", "-c", f'exec "$@" 3<&{theirs_read} 4>&{theirs_write}', "bash", find(), *flags]
    with subprocess.Popen(bash, pass_fds=(theirs_read, theirs_write), stderr=subprocess.DEVNULL) as process:
        os.close(theirs_read)
        os.close(theirs_write)
        try:
            yield Page(read, write)
        finally:
            process.kill()
            os.close(read)
            os.close(write)

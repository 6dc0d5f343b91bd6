"""Drive headless Chromium over its DevTools pipe: no driver, no socket, only the standard library.

Used by the page tests and by tools/bench_page.py.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def find_chromium() -> str | None:
    """The path of an installed Chromium or Chrome, or None."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    return None


class Page:
    """One tab. Collects console errors, exceptions and every address that is asked for."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self._browser = browser
        self._target = target
        self._session = session
        self.errors: list[str] = []
        self.requests: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, params, self._session)

    def open(self, path: Path) -> tuple[float, float]:
        """Open a file; seconds until its text is shown, and until the plots in view are drawn."""
        start = time.monotonic()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self._browser.wait_event("Page.loadEventFired", self._session)
        shown = time.monotonic() - start
        self.evaluate(
            """(async () => {
              const frame = () => new Promise((r) => requestAnimationFrame(() => r()));
              while (document.getElementById("plotly") && !document.documentElement.dataset.plots) {
                await frame();
              }
              await frame(); await frame(); // what is in view draws itself after a frame
            })()"""
        )
        return shown, time.monotonic() - start

    def view(
        self, width: int, height: int = 900, *, dark: bool = False, print_: bool = False
    ) -> None:
        """Emulate a viewport of `width` CSS pixels and a colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            media="print" if print_ else "",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )

    def evaluate(self, script: str) -> Any:
        """The value of an expression; promises are awaited. Raises RuntimeError on exceptions."""
        reply = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in reply:
            raise RuntimeError(json.dumps(reply["exceptionDetails"])[:2000])
        return reply["result"].get("value")

    def draw_all(self) -> None:
        """Scroll through the page so that everything that draws itself when seen has done so."""
        self.evaluate(
            """(async () => {
              document.querySelectorAll("details").forEach((d) => { d.open = true; });
              await new Promise((r) => setTimeout(r, 200)); // a resize is answered after a pause
              const frame = () => new Promise((r) => requestAnimationFrame(() => r()));
              for (let y = 0; y < document.documentElement.scrollHeight; y += innerHeight) {
                scrollTo({ top: y, behavior: "instant" }); await frame(); await frame();
              }
              scrollTo({ top: 0, behavior: "instant" }); await frame(); await frame();
            })()"""
        )

    def screenshot(self, path: Path, *, height: int | None = None) -> None:
        """The page as PNG, whole or the top `height` pixels."""
        height = height or self.evaluate("document.documentElement.scrollHeight")
        width = self.evaluate("innerWidth")
        reply = self.call(
            "Page.captureScreenshot",
            format="png",
            captureBeyondViewport=True,
            clip={"x": 0, "y": 0, "width": width, "height": height, "scale": 1},
        )
        path.write_bytes(base64.b64decode(reply["data"]))

    def pdf(self, path: Path) -> None:
        reply = self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        path.write_bytes(base64.b64decode(reply["data"]))

    def close(self) -> None:
        """Close the tab, which frees its memory."""
        self._browser.call("Target.closeTarget", {"targetId": self._target})

    def collect(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event["method"] == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:500])
        elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in {
            "error",
            "warning",
            "assert",
        }:
            words = [str(a.get("value", a.get("description", ""))) for a in params["args"]]
            self.errors.append(" ".join(words))
        elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif event["method"] == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])


class Browser:
    """A running Chromium; messages are JSON ended by NUL on two pipes."""

    def __init__(self, executable: str, profile: str) -> None:
        # Chromium reads from its descriptor 3 and writes to 4. Both ends are first moved out of
        # the way: a pipe may have got one of these two numbers itself.
        to_read, self._out = os.pipe()
        self._in, to_write = os.pipe()
        command = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, executable, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._next = 0
        self._buffer = b""
        self._events: list[dict[str, Any]] = []
        self._pages: dict[str, Page] = {}

    def page(self) -> Page:
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        page = Page(self, attached["sessionId"], target)
        self._pages[attached["sessionId"]] = page
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            page.call(f"{domain}.enable")
        return page

    def call(
        self, method: str, params: dict[str, Any], session: str | None = None
    ) -> dict[str, Any]:
        self._next += 1
        number = self._next
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._read()
            if reply.get("id") == number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']['message']}")
                result: dict[str, Any] = reply["result"]
                return result
            self._event(reply)

    def wait_event(self, method: str, session: str) -> None:
        while True:
            for index, event in enumerate(self._events):
                if event["method"] == method and event.get("sessionId") == session:
                    del self._events[: index + 1]
                    return
            self._event(self._read())

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def _event(self, message: dict[str, Any]) -> None:
        if "method" not in message:
            return
        if (page := self._pages.get(message.get("sessionId", ""))) is not None:
            page.collect(message)
        if message["method"] == "Page.loadEventFired":
            self._events.append(message)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = os.read(self._in, 1 << 20)
            if not data:
                raise RuntimeError("Chromium ended.")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        return message


@contextmanager
def chromium(executable: str) -> Iterator[Browser]:
    """A fresh Chromium with its own profile, ended when the block is left."""
    with tempfile.TemporaryDirectory(
        prefix="qhost-chromium-", ignore_cleanup_errors=True
    ) as folder:
        browser = Browser(executable, folder)
        try:
            yield browser
        finally:
            browser.close()

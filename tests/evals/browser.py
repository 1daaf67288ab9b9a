"""A headless chromium driven over its DevTools protocol, with nothing but a pair of pipes."""

import base64
import fcntl
import json
import os
import select
import shutil
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run"
FLAGS += " --remote-debugging-pipe --disable-background-networking --disable-component-update"


class Browser:
    """One page: what it logs, throws and fetches is in `events`."""

    def __init__(self, patience: float = 60.0):
        self.patience, self.events, self.numbers, self.rest = patience, [], count(1), b""
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        # the browser reads commands from its descriptor 3 and writes to 4; ours are moved out of their way first
        (read, self.send_to), (self.read_from, write) = os.pipe(), os.pipe()
        child = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (read, write)]
        os.close(read), os.close(write)
        moves = [(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]
        moves += [(os.POSIX_SPAWN_DUP2, end, number) for end, number in zip(child, (3, 4), strict=True)]
        arguments = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={self.profile.name}"]
        self.pid = os.posix_spawn(CHROMIUM, arguments, os.environ, file_actions=moves)
        for end in child:
            os.close(end)
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict:
        """One command and its result; events on the way are kept."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.send_to, data) :]
        while True:
            answer = self.receive()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def receive(self) -> dict:
        deadline = time.monotonic() + self.patience
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read_from], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self.read_from, 1 << 20) if ready else b""
            assert part, "chromium says nothing more"
            self.rest += part
        text, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, file: Path, width: int, height: int = 800, phone: bool = False, dark: bool = False) -> None:
        """Load a file as a screen of that many CSS pixels shows it; events of the page before are forgotten."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=phone)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.events.clear()
        self.call("Page.navigate", url=file.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.receive()

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, as JSON carries it."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def complaints(self) -> list[dict]:
        """Whatever reached the console or was thrown."""
        names = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [event for event in self.events if event["method"] in names]

    def requests(self) -> list[str]:
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]

    def screenshot(self, file: Path) -> None:
        """The whole page as PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self.session = None
        self.call("Browser.close")
        os.waitpid(self.pid, 0)
        os.close(self.send_to), os.close(self.read_from)
        self.profile.cleanup()

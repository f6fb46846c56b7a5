"""A headless Chromium, driven by the DevTools protocol: enough of it to open ComfyUI and press Run."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / "workflows" / "shapeworld_quick_start.json"
REWRITER, PARM, SCORER = (f"app.graph.getNodeById({i})" for i in (4, 8, 10))
LOOP = "app.graph._nodes.find(n => n.comfyClass === 'RepriseReflectionLoop')"
CHROMIUM = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium") or shutil.which("google-chrome")


class Browser:
    """One page. `js` runs an expression in it and returns its value, promises awaited."""

    def __init__(self, width: int = 1700, height: int = 1000):
        if not CHROMIUM:
            pytest.skip("no Chromium; set CHROMIUM_PATH")
        connect = pytest.importorskip("websockets.sync.client").connect
        self.profile = tempfile.mkdtemp(prefix="reprise-browser-")
        self.process = subprocess.Popen(
            [
                CHROMIUM,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                "--remote-debugging-port=0",
                f"--window-size={width},{height}",
                f"--user-data-dir={self.profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port_file, end = Path(self.profile) / "DevToolsActivePort", time.monotonic() + 60
        while not (port_file.is_file() and len(port_file.read_text().split()) == 2):
            assert self.process.poll() is None and time.monotonic() < end, "Chromium did not start"
            time.sleep(0.1)
        port, path = port_file.read_text().split()
        self.socket = connect(
            f"ws://127.0.0.1:{port}{path}", max_size=None, open_timeout=60, ping_interval=None
        )  # a busy page may be silent for long
        self.count, self.session = 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.errors: list[str] = []
        self.call("Runtime.enable")
        self.call("Page.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def call(self, method: str, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            answer = json.loads(self.socket.recv(timeout=120))
            if answer.get("method") == "Runtime.exceptionThrown":
                details = answer["params"]["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description") or details["text"])
            if answer.get("method") == "Page.javascriptDialogOpening":  # "leave the page?"
                yes = {"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                self.socket.send(json.dumps(yes | {"sessionId": self.session}))
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def js(self, expression: str):
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def run(self):
        """Presses Run. Whoever waits for its promise may be told "Promise was collected" instead: the page
        itself does not hold it."""
        self.js("void (window.reprise_run = app.queuePrompt(0))")

    def until(self, expression: str, seconds: float = 120):
        """Waits for `expression` to be true; the value it then has, true for an object."""
        end, found = time.monotonic() + seconds, None
        while time.monotonic() < end:
            value = f"(() => {{ try {{ return {expression} }} catch (e) {{ return null }} }})()"
            found = self.js(f"(found => found instanceof Object || found)({value})")
            if found:
                return found
            time.sleep(0.25)
        raise AssertionError(f"never true: {expression}; errors: {self.errors}")

    def open(self, url: str) -> None:
        """Opens ComfyUI and waits until it has its nodes and its first graph."""
        self.call("Page.navigate", url=url)
        self.until(
            "location.href.startsWith('http') && document.readyState === 'complete' && "
            "window.app?.graph && window.LiteGraph?.registered_node_types?.RepriseRewriter && "
            # It turns until the first graph is there, which would take the place of any other.
            "window.app.extensionManager && !window.app.extensionManager.spinner"
        )
        time.sleep(2)

    def screenshot(self, path: Path, clip: dict | None = None) -> None:
        options = {"clip": {**clip, "scale": 1}} if clip else {}
        shot = self.call("Page.captureScreenshot", format="png", **options)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self.socket.close()
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)


def drafted(page: Browser, node: str, key: str) -> None:
    """Waits until the frontend's draft has what a node's view shows now: it is written a while after each
    change, so that an earlier one may have the same words in it."""
    plain = "replaceAll('\\\\', '')"  # the graph is text in a text there
    stores = "[...Object.values(localStorage), ...Object.values(sessionStorage)]"
    shown = f"JSON.stringify({node}.properties.{key}).{plain}"
    page.until(f"{stores}.some(draft => draft.{plain}.includes({shown}))")


def view(key: str) -> str:
    """The element of a view in the quick start: of the node's own widget."""
    node = {"reprise_rewrite": REWRITER, "reprise_parm": PARM, "reprise_scores": SCORER}[key]
    return f"{node}.widgets.find(w => w.name === '{key}').element"


def value(node: str, widget: str) -> str:
    return f"{node}.widgets.find(w => w.name === '{widget}').value"


def press(key: str, label: str) -> str:
    buttons = f"[...{view(key)}.querySelectorAll('button')]"
    return f"{buttons}.find(b => b.textContent === {json.dumps(label)}).click()"


def load_reflection(page: Browser) -> str:
    """Opens the graph of the Reflection Loop; the element of its view, not yet filled."""
    graph = (ROOT / "tests" / "data" / "api" / "reflection_loop.json").read_text(encoding="utf-8")
    page.js(f"app.loadApiJson({graph}, 'reflection')")
    shown = f"{LOOP}?.widgets.find(w => w.name === 'reprise_reflection')?.element"
    page.until(f"{shown}?.querySelector('.reprise-hint')")
    return shown

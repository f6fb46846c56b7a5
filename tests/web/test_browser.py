"""The views in a real frontend, in both of its node renderers: run, lock, turn back, reload."""

import json
import time
from pathlib import Path

import pytest

from .browser import Browser

pytestmark = pytest.mark.comfyui
WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "shapeworld_quick_start.json"
REWRITER, PARM, SCORER = (f"app.graph.getNodeById({i})" for i in (4, 8, 10))


def view(key: str) -> str:
    """The element of a view: of the node's own widget."""
    node = {"reprise_rewrite": REWRITER, "reprise_parm": PARM, "reprise_scores": SCORER}[key]
    return f"{node}.widgets.find(w => w.name === '{key}').element"


def value(node: str, widget: str) -> str:
    return f"{node}.widgets.find(w => w.name === '{widget}').value"


def press(key: str, label: str) -> str:
    buttons = f"[...{view(key)}.querySelectorAll('button')]"
    return f"{buttons}.find(b => b.textContent === {json.dumps(label)}).click()"


@pytest.fixture(params=["LiteGraph", "Vue"])
def page(server, request, tmp_path):
    server.http.post("/settings/Comfy.TutorialCompleted", json=True)
    server.http.post("/settings/Comfy.VueNodes.Enabled", json=request.param == "Vue")
    browser = Browser()
    try:
        browser.open(f"http://127.0.0.1:{server.port}/")
        browser.js(f"app.loadGraphData({WORKFLOW.read_text(encoding='utf-8')}, true, true, 'quick start')")
        yield browser
        browser.screenshot(tmp_path / "page.png")
    finally:
        browser.close()


def test_views_lock_and_reload(page, server):
    page.until(f"{view('reprise_parm')}.textContent.includes('after a run')")
    page.js("app.queuePrompt(0)")
    rewrite = page.until(f"{view('reprise_rewrite')}.querySelector('.reprise-rewrite').textContent")
    assert page.js(f"{view('reprise_rewrite')}.querySelectorAll('mark').length") > 0
    page.until(f"{view('reprise_scores')}.querySelector('.reprise-winner')")
    assert page.js(f"{view('reprise_parm')}.querySelectorAll('tbody tr').length") == 8
    assert "stopped after step" in page.js(f"{view('reprise_parm')}.textContent")
    for key in ("reprise_rewrite", "reprise_parm", "reprise_scores"):
        assert page.js(f"{view(key)}.isConnected && {view(key)}.getBoundingClientRect().height > 20"), key

    winner = page.js(f"{PARM}.properties.reprise_parm.reports[0].seed")
    page.js(press("reprise_parm", "Use winner's seed"))
    assert page.js(value(PARM, "seed")) == winner
    assert page.js(value(PARM, "control_after_generate")) == "fixed"

    page.js(press("reprise_rewrite", "Lock and edit"))
    assert page.js(value(REWRITER, "locked")) is True
    assert page.js(value(REWRITER, "locked_prompt")) == rewrite
    # An edit that was not run is kept when an earlier rewrite is locked over it.
    page.js(value(REWRITER, "locked_prompt") + " = 'my <b>own</b> words'")
    page.js(press("reprise_rewrite", "Lock and edit"))
    page.js(press("reprise_rewrite", "›"))
    shown = f"{view('reprise_rewrite')}.querySelector('.reprise-rewrite').textContent"
    assert page.js(shown) == "my <b>own</b> words"
    page.js(press("reprise_rewrite", "Lock and edit"))

    time.sleep(2)  # the frontend writes its draft
    page.open(f"http://127.0.0.1:{server.port}/")
    page.until(REWRITER)
    assert page.js(value(REWRITER, "locked")) is True
    assert page.js(value(REWRITER, "locked_prompt")) == "my <b>own</b> words"
    assert page.js(shown) == "my <b>own</b> words"
    assert page.js(f"{view('reprise_parm')}.querySelectorAll('tbody tr').length") == 8
    page.js(press("reprise_rewrite", "Unlock"))
    assert page.js(value(REWRITER, "locked")) is False
    assert page.js(f"{value(PARM, 'seed')}") == winner
    assert not [error for error in page.errors if "reprise" in error], page.errors

"""The views in a real frontend, in both of its node renderers: run, lock, turn back, reload."""

import json
import time

import pytest

from .browser import LOOP, PARM, REWRITER, WORKFLOW, Browser, drafted, load_reflection, press, value, view

pytestmark = pytest.mark.comfyui


@pytest.fixture(params=["LiteGraph", "Vue"])
def page(server, request, tmp_path):
    server.http.post("/settings/Comfy.TutorialCompleted", json=True)
    server.http.post("/settings/Comfy.VueNodes.Enabled", json=request.param == "Vue")
    browser = Browser()
    try:
        browser.open(f"http://127.0.0.1:{server.port}/")
        yield browser
        browser.screenshot(tmp_path / "page.png")
    finally:
        browser.close()


def test_views_of_a_run_can_be_locked_and_survive_a_reload(page, server):
    page.js(f"app.loadGraphData({WORKFLOW.read_text(encoding='utf-8')}, true, true, 'quick start')")
    page.until(f"{view('reprise_parm')}.textContent.includes('after a run')")
    page.run()
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

    drafted(page, REWRITER, "reprise_rewrite")
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


def test_the_rounds_of_a_reflection_survive_the_cache_and_a_reload(page, server):
    cached = []
    for _ in range(2):  # the second graph is fresh, and the server has all of it in its cache
        shown = load_reflection(page)
        page.run()
        page.until(f"{shown}.querySelector('.reprise-round-best')")
        while any(server.http.get("/queue").json().values()):
            time.sleep(0.2)
        last = max(server.http.get("/history").json().values(), key=lambda entry: entry["prompt"][0])
        messages = dict(map(tuple, last["status"]["messages"]))
        cached.append("8" in messages["execution_cached"]["nodes"])
    assert cached[1]
    (report,) = json.loads(page.js(f"JSON.stringify({LOOP}.properties.reprise_reflection.reports)"))
    assert len(report["rounds"]) >= 1 and report["high"] == 1.0
    rounds = f"{shown}.querySelectorAll('.reprise-round').length"
    assert page.js(rounds) == len(report["rounds"])
    pictures = f"[...{shown}.querySelectorAll('img')].filter(image => image.naturalWidth).length"
    page.until(f"{pictures} === {len(report['rounds'])}")
    assert page.js(f"{shown}.getBoundingClientRect().height > 60")

    drafted(page, LOOP, "reprise_reflection")
    page.open(f"http://127.0.0.1:{server.port}/")
    page.until(f"{pictures} === {len(report['rounds'])}")
    assert page.js(rounds) == len(report["rounds"])
    assert not [error for error in page.errors if "reprise" in error], page.errors

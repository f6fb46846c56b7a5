"""The views in the frontend package of requirements-dev.lock, without ComfyUI: a stub sends recorded runs.

Edit, lock, turn back, reload and the language, in both node renderers. `test_browser.py` has the real server.
"""

import json

import pytest

from .browser import LOOP, REWRITER, ROOT, WORKFLOW, Browser, drafted, load_reflection, press, value, view
from .stub import RECORDED, Stub, frontend, record


@pytest.fixture(scope="module")
def recorded():
    return json.loads(RECORDED.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=["LiteGraph", "Vue"])
def stub(recorded, request):
    running = Stub(frontend(), recorded["object_info"])
    running.settings["Comfy.VueNodes.Enabled"] = request.param == "Vue"
    yield running
    running.shutdown()


@pytest.fixture(scope="module")
def browser(stub):
    made = Browser()
    try:
        made.open(f"http://127.0.0.1:{stub.port}/")
        yield made
    finally:
        made.close()


@pytest.fixture
def page(browser, tmp_path):
    """A page with a fresh quick start; opening one takes long, so the tests share it."""
    browser.js(f"app.loadGraphData({WORKFLOW.read_text(encoding='utf-8')}, true, true, 'quick start')")
    browser.until(f"{view('reprise_parm')}.textContent.includes('after a run')")
    yield browser
    browser.screenshot(tmp_path / "page.png")


def queued(page: Browser, stub: Stub) -> dict:
    """Presses Run; the graph as the server gets it."""
    page.run()
    return stub.prompts.get(timeout=60)


def test_rounds_arrive_one_by_one_or_all_at_once_from_the_cache(page, stub, recorded):
    shown = load_reflection(page)
    (whole,) = recorded["outputs"]["reflection_loop"]["8"]["reprise_reflection"]
    loop = page.js(f"String({LOOP}.id)")
    rows = f"{shown}.querySelectorAll('.reprise-round').length"

    def send(*reports):
        stub.executed({loop: {"reprise_reflection": list(reports)}})

    send({**whole, "rounds": []})
    for count in range(1, len(whole["rounds"]) + 1):
        send({**whole, "rounds": whole["rounds"][:count], "part": True})
        page.until(f"{rows} === {count}")
    assert page.js(f"{shown}.querySelectorAll('.reprise-round-best').length") == 1
    # A new run starts: the old rounds stay until its first one is there.
    send({**whole, "rounds": []})
    send(whole, {**whole, "id": "8.1.0."})
    page.until(f"{shown}.querySelector('.reprise-pager')?.textContent.includes('1 / 2')")
    assert page.js(rows) == len(whole["rounds"])
    assert page.until(f"!{shown}.querySelector('img')")  # the stub has no pictures: none is left broken
    assert not [error for error in page.errors if "reprise" in error], page.errors


def test_the_lowest_score_is_on_top_if_lower_is_better(page, stub, recorded):
    (report,) = recorded["outputs"]["shapeworld_quick_start"]["8"]["reprise_parm"]
    candidates = [
        {"index": i, "seed": i, "score": score, "pruned_at": None, "preview_scores": {}}
        for i, score in enumerate([3.0, -1.0, 2.0])
    ]
    down = {"higher_is_better": False, "low": None, "high": 5.0, "candidates": candidates, "best": 1}
    stub.executed({"8": {"reprise_parm": [{**report, **down}]}})
    body = f"{view('reprise_parm')}.querySelector('tbody')"
    scores = f"[...{body}.querySelectorAll('td:nth-child(3)')].map(td => td.textContent).join()"
    page.until(f"{scores} === '-1.00,2.00,3.00'")
    bars = f"[...{body}.querySelectorAll('.reprise-score-bar')].map(bar => bar.style.width).join()"
    assert page.js(bars) == "100%,50%,33%"
    assert "lower is better" in page.js(f"{view('reprise_parm')}.querySelector('thead tr').title")


def test_a_refinement_is_shown_without_a_lock(page, stub, recorded):
    graph = (ROOT / "tests" / "data" / "api" / "prip_refiner.json").read_text(encoding="utf-8")
    page.js(f"app.loadApiJson({graph}, 'refiner')")
    node = "app.graph._nodes.find(n => n.type === 'RepriseRefiner')"
    shown = f"{node}?.widgets.find(w => w.name === 'reprise_rewrite')?.element"
    page.until(f"{shown}?.querySelector('.reprise-hint')")
    outputs = recorded["outputs"]["prip_refiner"]["5"]
    stub.executed({page.js(f"String({node}.id)"): outputs})
    (refined,) = outputs["reprise_rewrite"][0]["prompts"]
    assert page.until(f"{shown}.querySelector('.reprise-rewrite')?.textContent") == refined
    assert page.js(f"{shown}.querySelectorAll('mark').length") > 0
    assert page.js(f"[...{shown}.querySelectorAll('button')].every(b => !b.textContent.includes('ock'))")
    assert not [error for error in page.errors if "reprise" in error], page.errors


def test_an_edited_text_can_be_locked_and_survives_a_reload(page, stub, recorded):
    outputs = recorded["outputs"]["shapeworld_quick_start"]
    assert queued(page, stub)["4"]["inputs"]["locked"] is False
    stub.executed(outputs)
    shown = f"{view('reprise_rewrite')}.querySelector('.reprise-rewrite').textContent"
    rewrite = page.until(shown)
    assert rewrite == outputs["4"]["reprise_rewrite"][0]["prompts"][0]
    page.until(f"{view('reprise_scores')}.querySelector('.reprise-winner')")
    assert page.js(f"{view('reprise_parm')}.querySelectorAll('tbody tr').length") == 8
    for key in ("reprise_rewrite", "reprise_parm", "reprise_scores"):
        assert page.js(f"{view(key)}.isConnected && {view(key)}.getBoundingClientRect().height > 20"), key

    page.js(press("reprise_parm", "Use winner's seed"))
    page.js(press("reprise_rewrite", "Lock and edit"))
    assert page.js(value(REWRITER, "locked_prompt")) == rewrite
    page.js(value(REWRITER, "locked_prompt") + " = 'my <b>own</b> words'")
    sent = queued(page, stub)
    assert sent["4"]["inputs"]["locked"] is True
    assert sent["4"]["inputs"]["locked_prompt"] == "my <b>own</b> words"
    assert sent["8"]["inputs"]["seed"] == outputs["8"]["reprise_parm"][0]["seed"]
    own = {
        "prompt": "x",
        "prompts": ["my <b>own</b> words"],
        "reasons": ["(locked: your own text)"],
        "fallbacks": [None],
    }
    stub.executed({"4": {"reprise_rewrite": [own]}})
    page.until(f"{shown} === 'my <b>own</b> words'")  # as text, not as HTML

    # The browser has the draft; in another language the same page says it in that one.
    drafted(page, REWRITER, "reprise_rewrite")
    stub.settings["Comfy.Locale"] = "ja"
    page.open(f"http://127.0.0.1:{stub.port}/")
    page.until(REWRITER)
    assert page.until(shown) == "my <b>own</b> words"
    assert page.js(value(REWRITER, "locked_prompt")) == "my <b>own</b> words"
    assert page.js(f"{view('reprise_parm')}.querySelectorAll('tbody tr').length") == 8
    assert "自分のテキスト" in page.js(f"{view('reprise_rewrite')}.textContent")
    page.js(press("reprise_rewrite", "ロック解除"))
    assert queued(page, stub)["4"]["inputs"]["locked"] is False
    assert not [error for error in page.errors if "reprise" in error], page.errors
    del stub.settings["Comfy.Locale"]  # the tests share the page
    page.open(f"http://127.0.0.1:{stub.port}/")
    page.until(REWRITER)


def test_a_workflow_of_an_older_version_opens_with_defaults(browser, stub):
    """Saved before a node got its last settings: they have the values of a new node."""
    older = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    node = next(node for node in older["nodes"] if node["type"] == "RepriseParmBestOfN")
    saved, node["widgets_values"] = node["widgets_values"], node["widgets_values"][:-2]
    node["inputs"] = [slot for slot in node["inputs"] if slot["name"] not in ("preview", "chunk")]
    browser.js(f"app.loadGraphData({json.dumps(older)}, true, true, 'older')")
    browser.until(f"{view('reprise_parm')}.textContent.includes('after a run')")
    sent = queued(browser, stub)["8"]["inputs"]
    assert (sent["preview"], sent["chunk"]) == ("auto", 0)
    assert sent["candidates"] == 8 and sent["prune"] in saved
    assert not [error for error in browser.errors if "reprise" in error], browser.errors


EVIL = "<img src=x onerror=ran()></script><script>ran()</script>\"'><svg onload=ran()> javascript:ran()"


def test_no_text_of_a_run_becomes_html(page, stub, recorded):
    """Whatever a model, a judge or a prompt says; nothing runs, and it is there to be read."""

    def evil(value):
        if isinstance(value, dict):
            return {key: evil(part) for key, part in value.items()}
        return (
            [evil(part) for part in value]
            if isinstance(value, list)
            else EVIL
            if isinstance(value, str)
            else value
        )

    page.js("window.foreign = 0, window.ran = () => window.foreign++")
    stub.executed(evil(recorded["outputs"]["shapeworld_quick_start"]))
    shown = f"{view('reprise_rewrite')}.querySelector('.reprise-rewrite')?.textContent"
    assert page.until(shown) == EVIL
    page.until(f"{view('reprise_parm')}.textContent.includes('onerror=ran')")
    assert page.js("document.querySelectorAll('img[src=x], svg[onload], [onerror]').length") == 0
    assert page.js("window.foreign") == 0


def test_a_workflow_with_results_that_are_none_still_opens(browser, stub):
    broken = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    for node in broken["nodes"]:
        node["properties"] |= {
            "reprise_parm": {"reports": [{"candidates": EVIL}], "shown": 0},
            "reprise_rewrite": {"history": [{"rewrite": 3}], "shown": 0},
            "reprise_scores": {"reports": 7, "shown": 0},
        }
    browser.js("window.foreign = 0, window.ran = () => window.foreign++")
    browser.js(f"app.loadGraphData({json.dumps(broken)}, true, true, 'broken')")
    browser.until(f"{view('reprise_parm')}.textContent.includes('after a run')")
    assert browser.js("app.graph._nodes.length") == len(broken["nodes"])
    assert browser.js("window.foreign") == 0
    assert not [error for error in browser.errors if "reprise" in error], browser.errors


VARIES = ("options", "python_module")  # installed models, and samplers of this ComfyUI


def plain(value):
    """The parts of a schema that must be equal: all but the keys `VARIES`."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items() if key not in VARIES}
    return [plain(part) for part in value] if isinstance(value, list) else value


def keys(value):
    if isinstance(value, dict) and not any(key.isdigit() for key in value):
        return {key: keys(part) for key, part in value.items()}
    return [keys(part) for part in value[:1]] if isinstance(value, list) else None


@pytest.mark.comfyui
def test_the_recording_equals_what_comfyui_sends(server, recorded):
    now = record(server)
    again = "run `python -m tests.web.stub` to record it again"
    for name in [name for name in now["object_info"] if name.startswith("Reprise")]:
        old, new = recorded["object_info"].get(name, {}), now["object_info"][name]
        for part in ("input", "input_order", "output", "output_name", "output_is_list", "output_node"):
            assert plain(old.get(part)) == plain(new[part]), f"{name}: {part}; {again}"
    for name, outputs in now["outputs"].items():
        old = recorded["outputs"][name]
        assert {node: keys(output) for node, output in old.items()} == {
            node: keys(output) for node, output in outputs.items()
        }, again

"""The page of `reprise batch` in a browser, opened as a file: filter, sort, compare, large, what is saved."""

import json
import time

import pytest
from PIL import Image

from reprise.backend.batch.journal import PICTURES
from reprise.backend.reports.gallery import Gallery

from .browser import Browser

HOSTILE = "</script><img src=x onerror='window.hacked=1'><b>cat</b>"
GRAPH = {
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "old"}},
    "5": {"class_type": "KSampler", "inputs": {"seed": 0, "cfg": 1, "steps": 2}},
}


@pytest.fixture
def browser():
    made = Browser(1200, 900)
    try:
        yield made
    finally:
        made.close()


def a_set(out, prompts, cfgs=(2.0, 3.0, 4.0), steps=(4, 8, 16, 32), scored=True, seeds=1):
    """A sweep of `cfgs` and `steps` for each prompt; the score is cfg/10, of the last seed a little more."""
    rows = []
    for prompt in prompts:
        for cfg in cfgs:
            for step in steps:
                for seed in range(seeds):
                    name = f"p{len(rows)}.png"
                    score = {"score": cfg / 10 + seed / 100, "scores": {"r": cfg / 10}} if scored else {}
                    rows.append(
                        {
                            "run": f"run{len(rows)}",
                            "group": f"{prompt} {cfg} {step}",
                            "prompt": prompt,
                            "seed": seed,
                            "settings": {"cfg": cfg, "5.steps": step},
                            "labels": {"mood": "calm"} if cfg > 2 else {},
                            "set": {"5.cfg": cfg, "5.steps": step},
                            "server": "http://a",
                            "seconds": 1.5,
                            "files": [{"name": name, "node": "7", "xxh128": "0", **score}],
                        }
                    )
    about = {
        "title": "a set",
        "workflow": GRAPH,
        "prompts": ["2.text"],
        "seeds": ["5.seed"],
        "command": ["reprise", "batch", "my flow.json"],
        "columns": ["cfg", "5.steps"],
        "labels": ["mood"],
        "higherIsBetter": True,
    }
    gallery = Gallery(out, PICTURES, about, {row["run"]: i for i, row in enumerate(rows)})
    (out / PICTURES).mkdir(parents=True)
    gallery.begin()
    for i, row in enumerate(rows):
        Image.new("RGB", (8, 8), (i % 255, 100, 200)).save(out / PICTURES / row["files"][0]["name"])
    return gallery, rows


def opened(browser, gallery):
    browser.call("Page.navigate", url=gallery.path.absolute().as_uri())
    browser.until("document.querySelector('output').textContent")


def shown(browser):
    return browser.js("document.querySelector('output').textContent")


def choose(browser, select, value):
    event = "new Event('change', {bubbles: true})"
    found = f"document.querySelector({json.dumps(select)})"
    browser.js(f"(s => {{ s.value = {json.dumps(value)}; s.dispatchEvent({event}); }})({found})")


def test_filters_sorts_compares_and_shows_large(browser, tmp_path):
    gallery, rows = a_set(tmp_path / "o", ["a red cat", HOSTILE], seeds=2)
    for row in rows:
        gallery.add(row)
    gallery.close("48 runs")
    opened(browser, gallery)
    assert shown(browser) == "48 pictures"
    browser.until("[...document.images].length > 5 && [...document.images].every(i => i.naturalWidth === 8)")
    choose(browser, "[aria-label=prompt]", HOSTILE)
    assert shown(browser) == "24 of 48 pictures"
    assert HOSTILE in browser.js("document.querySelector('#wall').innerText")
    choose(browser, "[aria-label=prompt]", "\0")
    choose(browser, "[aria-label=cfg]", "3")
    assert shown(browser) == "16 of 48 pictures"
    choose(browser, "[aria-label=cfg]", "\0")
    browser.js("document.querySelector('#only input').click()")
    assert shown(browser) == "24 of 48 pictures"
    choose(browser, "#order", "best")
    assert browser.js("document.querySelector('.tile .score').textContent") == "0.41"
    choose(browser, "#x", "cfg")
    choose(browser, "#y", "5.steps")
    assert browser.js("document.querySelectorAll('#grids table').length") == 2
    heads = (
        "[...document.querySelectorAll('#grids table')[0].querySelectorAll('{} th')].map(t => t.textContent)"
    )
    assert browser.js(heads.format("thead")) == ["", "cfg 2", "cfg 3", "cfg 4"]
    assert browser.js(heads.format("tbody")) == ["steps 4", "steps 8", "steps 16", "steps 32"]
    assert browser.js("document.querySelectorAll('#grids table')[0].querySelectorAll('td img').length") == 12
    browser.js("document.querySelectorAll('#grids td .tile')[1].click()")
    assert browser.js("document.querySelector('dialog').open")
    large = browser.js("document.querySelector('dialog').innerText")
    assert "0.31, the best of its seeds" in large and "p9.png" in large
    workflow = json.loads(browser.js("workflowOf(shown[at])"))
    assert workflow["2"]["inputs"]["text"] == "a red cat" and workflow["5"]["inputs"] == {
        "seed": 1, "cfg": 3, "steps": 4,
    }  # fmt: skip
    assert browser.js("commandOf(shown[at])") == (
        "reprise batch 'my flow.json' --set 'prompt=a red cat' --seed 1 --set 5.cfg=3 --set 5.steps=4"
    )
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "saved"))
    browser.js("document.querySelector('#workflow').click()")
    file, end = tmp_path / "saved" / "p9.json", time.monotonic() + 30
    while not file.is_file() and time.monotonic() < end:
        time.sleep(0.1)
    assert json.loads(file.read_text()) == workflow
    browser.js("dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))")
    assert "p9.png" not in browser.js("document.querySelector('dialog').innerText")
    assert not browser.js("window.hacked") and browser.errors == []


def test_a_large_set_is_light_and_follows_the_run(browser, tmp_path, monkeypatch):
    monkeypatch.setattr("reprise.backend.reports.gallery.PAUSE", 0.0)
    gallery, rows = a_set(tmp_path / "o", [f"prompt {i}" for i in range(1_400)], (2.0,), (4,), scored=False)
    monkeypatch.setattr("reprise.backend.reports.gallery.save_thumbnail", lambda *_: False)
    for row in rows[:1_300]:
        gallery.add(row)
    gallery.update("1,300 of 1,400 runs")
    opened(browser, gallery)
    assert (
        shown(browser) == "1,300 pictures" and browser.js("document.querySelectorAll('.tile').length") < 100
    )
    assert browser.js("document.querySelector('#progress').className") == "live"
    browser.js("scrollTo(0, 9e9)")
    browser.until("[...document.querySelectorAll('.tile')].some(t => t.title === 'prompt 1299')")
    assert browser.js("document.querySelectorAll('.tile').length") < 100
    for row in rows[1_300:]:
        gallery.add(row)
    gallery.close("1,400 runs")
    browser.until("document.querySelector('output').textContent === '1,400 pictures'")
    assert browser.js("document.querySelector('#progress').textContent") == "1,400 runs"
    assert browser.js("document.querySelector('#progress').className") == "" and browser.errors == []

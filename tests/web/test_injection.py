"""No HTML from a prompt, a file's name, a judge's words or a record in any page or view, in a real browser.

The pages' Content-Security-Policy is switched off for this: escaping alone must hold. A last test shows that
the policy holds where escaping would fail.
"""

import json

import pytest
import torch
import yaml

from reprise.backend.core.types import Candidate, Cost, Outcome, ReflectionRound, Rewrite
from reprise.backend.preferences.store import Pair, PairPicture, Store
from reprise.backend.reports.figures import write_figures
from reprise.backend.reports.pairs import write_pairs
from reprise.backend.reports.render_pages import RenderPages
from reprise.backend.reports.tally import Tally
from reprise.backend.reports.training import write_report
from reprise.backend.storage import records
from reprise.backend.storage.cache import Cache

from .browser import Browser

EVIL = (
    "<img src=x onerror=ran()>",
    "<script>ran()</script>",
    "</script><script>ran()</script>",
    "</title></style><script>ran()</script>",
    '"><svg onload=ran()>',
    "' autofocus onfocus=ran() onmouseover='ran()",
    '" autofocus onfocus=ran() onmouseover="ran()',
    "javascript:ran()",
    "--><iframe srcdoc='<script>parent.ran()</script>'>",
    "]]); ran(); ([[",
    "\u2028ran()\u2028",
    "{{ 7 * 7 }} ${ran()} \\u003cscript>ran()</script>",
    "<meta http-equiv=refresh content='0;url=javascript:ran()'><base href=https://example.invalid/>",
    "&lt;script&gt;ran()&lt;/script&gt;",
)
ALL = "a red circle " + " ".join(EVIL)
PICTURE = torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(0))
# What no page of ours has, so that it came out of a text.
FOREIGN = (
    "img[src='x'], svg[onload], iframe, base, meta[content*=javascript], [onerror], [onfocus], "
    "[onmouseover], [autofocus], a[href^='javascript:'], script:not([src]):nth-of-type(n+2)"
)


@pytest.fixture(scope="module")
def browser():
    made = Browser(1600, 1000)
    made.call(
        "Page.addScriptToEvaluateOnNewDocument", source="window.ran = () => { window.foreign = true; };"
    )
    try:
        yield made
    finally:
        made.close()


def open_page(browser, path, policy=False):
    browser.call("Page.setBypassCSP", enabled=not policy)
    browser.errors.clear()
    browser.js("window.old = true")
    browser.call("Page.navigate", url=path.as_uri())
    browser.until("!window.old && document.readyState === 'complete'")


def check(browser, *texts):
    """No script of a text ran or runs when the mouse goes over everything; the texts are there as text."""
    browser.js(
        "for (const one of document.querySelectorAll('*'))"
        " for (const type of ['mouseover', 'focus', 'error', 'load']) one.dispatchEvent(new Event(type))"
    )
    assert browser.js("window.foreign") is None
    assert (
        browser.js(f"[...document.querySelectorAll({json.dumps(FOREIGN)})].map(one => one.outerHTML)") == []
    )
    shown = browser.js(
        "document.title + document.body.textContent + "
        "[...document.querySelectorAll('[title]')].map(one => one.title).join()"
    )
    for text in texts:  # words are marked one by one: any blank may be another one
        assert " ".join(text.split()) in " ".join(shown.split()), text
    assert browser.errors == []


def outcome(prompt):
    candidates = [
        Candidate(0, 4, f"{prompt} as drawn", {ALL: 0.3}, 0.3, None, PICTURE),
        Candidate(1, 5, prompt, pruned_at=2, preview_scores={2: 0.1}, preview=PICTURE),
    ]
    rewrites = [
        Rewrite(f"reason {ALL}", f"{prompt} as drawn", ALL, f"fallback {ALL}"),
        Rewrite(f"second {ALL}", prompt, ALL),
    ]
    rounds = [ReflectionRound(0, "no", f"critique {ALL}", prompt, 0.3, 0)]
    return Outcome(prompt, rewrites, candidates, 0, rounds, Cost(5, 8, 2, {ALL: 1.0, "total": 2.5}))


SETTINGS = {"renderer": ALL, "judge": f"judge {ALL}", "rewards": {ALL: 1.0}, "steps": 8, ALL: ALL}


def render_pages(out, count, passed_over=0):
    """The pages of a run; a prompt's folder has HTML in its name, too."""
    tally = Tally(count + passed_over)
    pages = RenderPages(out, tally)
    for number in range(count):
        folder = out / f"<img src=x onerror=ran()>&'{number}" if count > 1 else out
        record = records.save_outcome(folder, outcome(f"{number} {ALL}"), SETTINGS, {ALL: ALL})
        tally.add(record, kept=False)
        pages.add(folder, record)
    for _ in range(passed_over):
        tally.pass_over()
        pages.pass_over(f"passed {ALL}", f"why {ALL}")
    pages.close()


@pytest.mark.parametrize("count", [1, 3])
def test_the_page_of_few_prompts(browser, tmp_path, count):
    render_pages(tmp_path, count, passed_over=count - 1)
    open_page(browser, tmp_path / "index.html")
    check(
        browser, f"{count - 1} {ALL}", f"reason {ALL}", f"fallback {ALL}", f"critique {ALL}", f"judge {ALL}"
    )


def test_the_overview_and_the_page_of_a_prompt_in_it(browser, tmp_path):
    render_pages(tmp_path, 14, passed_over=2)
    open_page(browser, tmp_path / "index.html")
    browser.until("document.querySelectorAll('.card').length === 16")
    browser.until("[...document.images].some(one => one.naturalWidth)")
    browser.js("document.querySelector('input').value = 'ONERROR=RAN()>', showCards()")
    check(browser, f"13 {ALL}", f"passed {ALL}", f"why {ALL}")
    browser.js("document.querySelector('a.card').click()")
    browser.until("document.querySelector('article') && document.readyState === 'complete'")
    browser.until("[...document.images].every(one => one.naturalWidth === 16)")
    check(browser, f"reason {ALL}", f"critique {ALL}", f"judge {ALL}")


def test_the_report_of_a_training(browser, tmp_path):
    run = tmp_path / "<img src=x onerror=ran()>'\"&run"
    Cache(run / "rollouts" / "pictures").put_image("aa11", PICTURE)
    sample = {
        "prompt": f"sample {ALL}",
        "reason": f"reason {ALL}",
        "rewrite": f"rewrite {ALL}",
        "fallback": f"fallback {ALL}",
        "picture": "aa11",
        "scores": {ALL: 0.5},
    }
    evaluation = {
        f"{ALL}/{ALL}": 0.5,
        "samples": [sample],
        "reliability": {ALL: [[0.5, 0.5, 4]]},
        "by_step": {ALL: {"0": [0.5, 4]}},
    }
    row = {"step": 2, "position": 3, "prompt": f"group {ALL}", "pictures": ["aa11"], "scores": {ALL: 0.9}}
    rollouts = [
        {**row, "variant": 0, "advantage": 0.5, "rewrite": f"rollout {ALL}"},
        {**row, "variant": 1, "advantage": -0.5, "unparsable": f"unparsable {ALL}"},
    ]
    files = {
        "metrics": [{"step": step, "reward": 0.5, f"reward/{ALL}": 0.1} for step in (1, 2)],
        "evaluations": [{"step": step, **evaluation} for step in (0, 2)],
        "rollouts/rollouts": rollouts,
    }
    for name, rows in files.items():
        (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (run / "config.yaml").write_text(yaml.safe_dump({"max_steps": 2, ALL: f"setting {ALL}"}))
    (run / "rounds" / "1").mkdir(parents=True)
    mined = {"prompts": ALL, "reward": 0.5, "pairs": 1, "ties": 0, "gone": 0, "stopped": f"stopped {ALL}"}
    (run / "rounds" / "1" / "mined.json").write_text(json.dumps(mined))
    open_page(browser, write_report(run, finished=True))
    check(
        browser,
        run.name,
        *(
            f"{what} {ALL}"
            for what in (
                "sample",
                "reason",
                "rewrite",
                "fallback",
                "group",
                "rollout",
                "unparsable",
                "setting",
                "stopped",
            )
        ),
    )


def test_the_page_of_an_evaluation(browser, tmp_path):
    one = {
        "name": f"row {ALL}",
        "judge": f"judge {ALL}",
        "overall": [0.4, 0.3, 0.5],
        "tasks": {ALL: [0.2, 0.1, 0.3]},
        "cost": {f"cost {ALL}": 3.0},
        "gain": {"over": f"over {ALL}", "interval": [0.1, 0.0, 0.2]},
    }
    result = {
        "name": f"name {ALL}",
        "rows": [one],
        "settings": {ALL: f"setting {ALL}"},
        "versions": {ALL: ALL},
        "timing": {ALL: ALL},
        "rank_correlation": {"2": [0.5, 0.4, 0.6]},
        "sweep": [{"cuts": f"cuts {ALL}", "rows_share": 0.2, "kept": [0.9, 0.8, 1.0]}],
        "tables": [{"title": f"title {ALL}", "columns": [ALL], "rows": [[f"cell {ALL}"]]}],
        "reliability": {ALL: [[0.5, 0.5, 4]]},
    }
    open_page(browser, write_figures(tmp_path, result))
    check(browser, *(f"{what} {ALL}" for what in ("row", "judge", "over", "name", "setting", "cuts", "cell")))


@pytest.mark.parametrize("place", ["store/pairs.html", "pairs.html"])
def test_the_page_of_pairs(browser, tmp_path, place):
    store = Store(tmp_path / "store", create=True)
    images = [store.put_image(torch.full((8, 8, 3), i / 8)) for i in range(2)]
    sides = [PairPicture(image=one, drawn_as=f"drawn {ALL}", score=1.0, scores={ALL: 1.0}) for one in images]
    about = {
        "prompt": f"prompt {ALL}",
        "condition": ALL,
        "reward": f"reward {ALL}",
        "margin": 0.1,
        "source": "render",
        "run": f"run {ALL}",
    }
    store.add([Pair(chosen=sides[0], rejected=sides[1], **about)])
    write_pairs(tmp_path / place, store, 10)
    open_page(browser, tmp_path / place)
    browser.until("[...document.images].every(one => one.naturalWidth === 8)")
    check(browser, *(f"{what} {ALL}" for what in ("prompt", "drawn", "reward", "run")))


def test_the_policy_stops_scripts_that_escaping_would_let_through(browser, tmp_path):
    """Each kind of page, with the text of a prompt put in as it is."""
    render_pages(tmp_path / "one", 1)
    render_pages(tmp_path / "many", 14)
    (prompt_page, *_) = (tmp_path / "many" / "index_files").glob("*.html")
    for page in (tmp_path / "one" / "index.html", tmp_path / "many" / "index.html", prompt_page):
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace("<main>", f"<main>{''.join(EVIL)}"), encoding="utf-8")
        open_page(browser, page, policy=False)
        assert browser.js("window.foreign") is True  # the test tests something
        open_page(browser, page, policy=True)
        assert browser.js("window.foreign") is None
    open_page(browser, tmp_path / "many" / "index.html", policy=True)
    browser.until("document.querySelectorAll('.card').length === 14")  # its own scripts run
    browser.until("[...document.querySelectorAll('.card img')].some(one => one.naturalWidth)")
    assert browser.errors == []

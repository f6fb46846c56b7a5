"""The pages of many prompts: small, beside thumbnails made once, and up to date while a run goes on."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from reprise.backend.core.types import Candidate, Cost, Outcome, Rewrite
from reprise.backend.reports import render_pages
from reprise.backend.reports.render_pages import IN_ONE_FILE, RenderPages
from reprise.backend.reports.tally import Tally, duration
from reprise.backend.reports.templates import INDEX_FILES
from reprise.backend.storage import records
from reprise.backend.storage.records import load_record

PICTURE = torch.rand(600, 600, 3, generator=torch.Generator().manual_seed(0))
MANY = IN_ONE_FILE + 1


def a_record(folder: Path, prompt: str, score: float = 0.5):
    outcome = Outcome(
        prompt,
        [Rewrite("", prompt, "none")],
        [Candidate(0, 4, prompt, {"r": score}, score, None, PICTURE)],
        0,
        [],
        Cost(8, 16, 1, {"total": 2.5}),
    )
    return records.save_outcome(folder, outcome, {"steps": 8}, {})


@pytest.fixture
def drawn(tmp_path):
    """The folders of `MANY` finished prompts."""
    folders = [tmp_path / f"prompt-{i}" for i in range(MANY)]
    for i, folder in enumerate(folders):
        a_record(folder, f"prompt {i}", i / 100)
    return folders


def write(out, folders, total=None, kept=False, close=True):
    tally = Tally(total or len(folders))
    pages = RenderPages(out, tally)
    for folder in folders:
        record = load_record(folder / "record.json")
        tally.add(record, kept)
        pages.add(folder, record)
    if close:
        pages.close()
    return pages


def state(out):
    return json.loads(
        re.fullmatch(r"reprise\.state\((.+)\);\n", (out / INDEX_FILES / "state.js").read_text())[1]
    )


def listed(out, number=0):
    text = (out / INDEX_FILES / f"prompts-{number}.js").read_text(encoding="utf-8")
    return json.loads(re.fullmatch(rf"reprise\.list\({number}, (.+)\);\n", text)[1])


def test_few_prompts_are_one_file(tmp_path, drawn):
    write(tmp_path, drawn[:IN_ONE_FILE])
    page = (tmp_path / "index.html").read_text()
    assert not (tmp_path / INDEX_FILES).exists() and page.count('<article class="sheet"') == IN_ONE_FILE
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_of_many_prompts_the_page_is_small_with_files_beside_it(tmp_path, drawn):
    write(tmp_path, drawn)
    page = (tmp_path / "index.html").read_text()
    assert len(page) < 16_000 and "data:image" not in page and "prompt 3" not in page
    assert state(tmp_path) | {"facts": None} == {
        "count": MANY,
        "inAList": render_pages.IN_A_LIST,
        "done": MANY,
        "total": MANY,
        "running": False,
        "progress": f"{MANY} prompts",
        "facts": None,
        "passedOver": 0,
        "higherIsBetter": True,
    }
    assert listed(tmp_path)[3] == ["prompt-3", "prompt 3", "0.03", 0.03, 1, ""]
    with Image.open(tmp_path / INDEX_FILES / "prompt-3.webp") as picture:
        assert picture.format == "WEBP" and picture.size == (render_pages.INDEX_SIDE,) * 2
    one = (tmp_path / INDEX_FILES / "prompt-3.html").read_text()
    assert 'src="../prompt-3/candidates/00-4.png"' in one and 'href="../index.html#prompt-3"' in one


def test_lists_are_filled_one_after_the_other(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(render_pages, "IN_A_LIST", 5)
    write(tmp_path, drawn)
    assert [len(listed(tmp_path, number)) for number in range(3)] == [5, 5, 3]
    assert listed(tmp_path, 2)[-1][0] == f"prompt-{MANY - 1}" and state(tmp_path)["inAList"] == 5


def test_thumbnails_and_prompt_pages_are_made_once(tmp_path, drawn):
    def times():
        return {path.name: path.stat().st_ino for path in (tmp_path / INDEX_FILES).glob("prompt-*.*")}

    write(tmp_path, drawn)
    before = times()
    write(tmp_path, drawn, kept=True)
    assert times() == before and len(before) == 2 * MANY
    a_record(drawn[2], "prompt 2", 0.75)  # drawn again
    write(tmp_path, drawn, kept=True)
    changed = {name for name, place in times().items() if place != before[name]}
    assert changed == {"prompt-2.html", "prompt-2.webp"}
    assert "0.75" in (tmp_path / INDEX_FILES / "prompt-2.html").read_text()


def test_while_a_run_goes_on_the_page_says_how_far_it_is(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(render_pages, "PAUSE", 0.0)
    pages = write(tmp_path, drawn[:5], total=2_000, close=False)
    now = state(tmp_path)
    assert (now["running"], now["count"], now["done"], now["total"]) == (True, 5, 5, 2_000)
    assert now["progress"].startswith("5 of 2,000 prompts, about ")
    text = (tmp_path / "index.html").read_text()
    pages.tally.pass_over()
    pages.pass_over("a <cat>", "no shape")
    assert listed(tmp_path)[5] == ["", "a <cat>", "", None, 0, "no shape"]
    pages.close()
    assert not state(tmp_path)["running"] and state(tmp_path)["passedOver"] == 1
    assert (tmp_path / "index.html").read_text() == text  # what changes is in the files beside it


def test_few_prompts_that_are_being_drawn_reload_their_page(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(render_pages, "PAUSE", 0.0)
    pages = write(tmp_path, drawn[:2], total=3, close=False)
    page = (tmp_path / "index.html").read_text()
    assert 'http-equiv="refresh"' in page and "2 of 3 prompts, about " in page and "still drawing" in page
    pages.close()  # stopped
    page = (tmp_path / "index.html").read_text()
    assert 'http-equiv="refresh"' not in page and "2 of 3 prompts" in page and "still" not in page


def test_a_picture_outside_the_folder_is_not_shown(tmp_path, drawn):
    """Whoever edits a record gets no file of this machine into a page that is passed on."""
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    record = load_record(drawn[0] / "record.json")
    for name in ("../secret.png", str(tmp_path / "secret.png"), "candidates/../../secret.png", "a\0b"):
        winner = record.winner.model_copy(update={"image": name})
        edited = record.model_copy(update={"candidates": [winner]})
        tally = Tally(1)
        tally.add(edited, kept=False)
        pages = RenderPages(tmp_path, tally)
        pages.add(drawn[0], edited)
        pages.close()
        page = (tmp_path / "index.html").read_text()
        assert "data:image" not in page and page.count("picture moved away</div>") == 2


def test_a_tally_counts_and_says_what_is_left(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    tally = Tally(1_000)
    assert tally.left() is None and tally.progress() == "0 of 1,000 prompts"
    record = a_record(tmp_path / "a", "a", 0.25)
    for _ in range(100):
        tally.add(record, kept=True)  # takes no time
    assert tally.left() is None
    now[0] += 40
    tally.add(a_record(tmp_path / "b", "b", 0.75), kept=False)
    now[0] += 20
    tally.pass_over()
    assert tally.left() == 30 * (1_000 - 102)
    assert tally.progress() == "102 of 1,000 prompts, about 7 h 29 min left"
    assert tally.facts() == [("0.25", "mean score"), ("0.25 to 0.75", "scores"), ("50%", "of the full cost")]
    assert tally.lowest == (0.25, "a") and tally.highest == (0.75, "b")


@pytest.mark.parametrize(
    "seconds,text",
    [
        (0.4, "0 s"),
        (48, "48 s"),
        (110, "2 min"),
        (3_570, "1 h 00 min"),
        (86_000, "23 h 53 min"),
        (2e5, "2 d 7 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text

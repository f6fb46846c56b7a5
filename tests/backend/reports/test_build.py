"""The page: one file without requests, everything escaped, everything shown."""

import base64
import re
from html import unescape
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch

from reprise.backend.core.types import Candidate, Cost, Outcome, ReflectionRound, Rewrite
from reprise.backend.reports.build import number_text, prompt_view, render_command
from reprise.backend.reports.figures import render_figures
from reprise.backend.reports.render_pages import RenderPages
from reprise.backend.reports.tally import Tally
from reprise.backend.storage import records
from reprise.backend.storage.files import slug

SETTINGS = {
    "renderer": "fake",
    "rewriter": "reprompt",
    "best_of": 3,
    "variants": 2,
    "prune": "halving",
    "reflect": 1,
    "judge": None,
    "rewards": {"shapeworld": 0.5},
    "seed": 4,
    "steps": 8,
}
EVIL = "<script>alert('x')</script> & \"a\" red circle"


def an_outcome(prompt="a red circle"):
    image = torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(0))
    candidates = [
        Candidate(0, 4, "a large red circle", {"shapeworld": 0.31}, 0.31, None, image),
        Candidate(
            1, 5, "a red circle, low", pruned_at=2, preview_scores={2: 0.12}, preview_clarity={1: 0.2, 2: 0.7}
        ),
        Candidate(2, 6, "a large red circle", {"shapeworld": 0.87}, 0.87, None, image.flip(0), {2: 0.4}),
        Candidate(3, 7, "a red circle up", {"shapeworld": 0.55}, 0.55, None, image, round=1),
    ]
    rewrites = [
        Rewrite("It stands <alone>.", "a large red circle", "reprompt"),
        Rewrite("", "a red circle, low", "reprompt"),
        Rewrite("Higher.", "a red circle up", "reprompt"),
    ]
    rounds = [
        ReflectionRound(0, "no", "there is no <ring>", "a large red circle", 0.87, 2),
        ReflectionRound(1, "no", "still none", "a red circle up", 0.55, 3),
    ]
    return Outcome(prompt, rewrites, candidates, 2, rounds, Cost(52, 96, 9, {"render": 2.0, "total": 2.5}))


def write_page(out, entries):
    tally = Tally(len(entries))
    pages = RenderPages(out, tally)
    for folder, record in entries:
        tally.add(record, kept=False)
        pages.add(folder, record)
    pages.close()
    return pages.path


@pytest.fixture
def page(tmp_path):
    def make(*prompts):
        entries = []
        for prompt in prompts:
            folder = tmp_path / slug(prompt)
            entries.append(
                (folder, records.save_outcome(folder, an_outcome(prompt), SETTINGS, {"reprise": "0"}))
            )
        return write_page(tmp_path, entries).read_text(encoding="utf-8")

    return make


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(SimpleNamespace(name=tag, **{"attrs": dict(attrs)}))

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_makes_no_requests(page):
    html = page("a red circle")
    links = [v for tag in Tags(html).tags for k, v in tag.attrs.items() if k in ("src", "href", "action")]
    assert links and all(link.startswith(("data:image/", "#")) for link in links)
    assert not re.search(r"https?:|url\(|@import", html)
    assert "default-src 'none'" in html


def test_prompts_and_model_text_are_escaped(page):
    html = page(EVIL)
    assert "<script>alert" not in html and "<alone>" not in html and "<ring>" not in html
    assert EVIL in unescape(html)
    assert sum(tag.name == "script" for tag in Tags(html).tags) == 1


def test_the_page_shows_prompts_scores_costs_and_the_command(page):
    html = page("a red circle")
    text = " ".join(" ".join(Tags(html).text).split())
    for part in (
        "a red circle",
        "large",
        "It stands",
        "0.87",
        "0.31",
        "there is no",
        "round 1",
        "the best",
        "step 2",
        "of 8, stopped",
        "≈ 0.12",
        "reprise render",
        "denoiser rows",
        "2.5 s",
    ):
        assert part in text, part
    assert "<mark>large</mark>" in html
    assert html.index("the best") < html.index("≈ 0.12"), "pruned candidates come last"


def test_several_prompts_get_an_index(page):
    html = page("a red circle", "two blue squares")
    assert 'href="#prompt-2"' in html and 'id="prompt-2"' in html
    assert "index" not in Tags(page("alone")).tags[0].attrs and 'href="#' not in page("alone")


def test_the_winner_is_first_and_pruned_candidates_are_last(tmp_path):
    record = records.save_outcome(tmp_path, an_outcome(), SETTINGS, {})
    view = prompt_view(record, lambda name, side: name)
    assert [c["index"] for c in view["walls"][0]["cards"]] == [2, 0, 1]
    assert view["walls"][0]["alive"][0]["rows"] == 3 and view["walls"][0]["alive"][2]["rows"] == 2
    assert view["cost"]["percent"] == round(100 * 52 / 96, 1)


def test_a_missing_picture_is_reported_on_the_page(tmp_path):
    record = records.save_outcome(tmp_path, an_outcome(), SETTINGS, {})
    (tmp_path / record.winner.image).unlink()
    assert "picture moved away" in write_page(tmp_path, [(tmp_path, record)]).read_text()


def test_a_pruned_candidate_shows_its_last_preview(tmp_path):
    outcome = an_outcome()
    outcome.candidates[1].preview = torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(3))
    record = records.save_outcome(tmp_path, outcome, SETTINGS, {})
    html = write_page(tmp_path, [(tmp_path, record)]).read_text()
    (card,) = [tag.attrs for tag in Tags(html).tags if tag.attrs.get("class") == "card stopped seen"]
    assert "after step 1: not clear" in card["title"] and "after step 2: 0.12" in card["title"]
    (shown,) = [tag.attrs["src"] for tag in Tags(html).tags if "last preview" in tag.attrs.get("alt", "")]
    data = (tmp_path / record.candidates[1].preview).read_bytes()
    assert shown == f"data:image/png;base64,{base64.b64encode(data).decode()}"
    assert "≈ 0.12" in html and "<span>step 2 of 8</span>" in html
    text = html[html.index(">", html.index("last preview")) + 1 :].lstrip()
    assert text.startswith("</div>"), "nothing covers the preview"
    (tmp_path / record.candidates[1].preview).unlink()
    without = write_page(tmp_path, [(tmp_path, record)]).read_text()
    assert "of 8, stopped" in without and 'class="missing"' not in without


def test_large_pictures_are_shrunk(tmp_path):
    outcome = an_outcome()
    outcome.candidates[2].image = torch.rand(1024, 1024, 3)
    record = records.save_outcome(tmp_path, outcome, SETTINGS, {})
    path = write_page(tmp_path, [(tmp_path, record)])
    assert path.stat().st_size < (tmp_path / "best.png").stat().st_size / 2


def test_the_command_line_repeats_all_settings(tmp_path):
    import shlex

    record = records.make_record(an_outcome('it\'s -- a "test"'), SETTINGS, {})
    words = shlex.split(render_command(record))
    assert words[:3] == ["reprise", "render", 'it\'s -- a "test"']
    assert words[3:] == [
        "--renderer",
        "fake",
        "--rewriter",
        "reprompt",
        "--best-of",
        "3",
        "--variants",
        "2",
        "--prune",
        "halving",
        "--reflect",
        "1",
        "--seed",
        "4",
        "--steps",
        "8",
        "--reward",
        "shapeworld=0.5",
    ]
    dashed = records.make_record(an_outcome("--best-of"), SETTINGS, {})
    assert shlex.split(render_command(dashed))[-2:] == ["--", "--best-of"]


def test_scores_as_text():
    assert [number_text(v) for v in (None, 0.123, -0.5, 12.345, 1234.5)] == [
        "–",
        "0.12",
        "-0.50",
        "12.3",
        "1,234",
    ]


def test_the_page_of_an_evaluation():
    row = {
        "name": "terse <x>",
        "overall": [0.4, 0.35, 0.45],
        "tasks": {"counting": [0.2, 0.1, 0.3]},
        "cost": {"denoiser_rows": 32.0},
        "judge": "oracle judge",
        "gain_kept": [0.9, 0.8, 1.0],
        "gain": {"over": "terse", "interval": [0.1, 0.05, 0.15]},
    }
    html = render_figures(
        {
            "name": "shapeworld",
            "rows": [row, {**row, "gain": None, "gain_kept": None, "judge": None}],
            "settings": {
                "seeds": 4,
                "tasks": ["counting", "<b>"],
                "cuts": {"2": 8, "4": {"a": True}},
                "off": None,
            },
            "versions": {},
            "timing": {"wall_share": 0.3},
            "rank_correlation": {"10": [0.9, 0.8, 1.0], "2": [0.5, 0.4, 0.6]},
            "sweep": [{"cuts": "2:8", "rows_share": 0.25, "kept": [0.9, 0.8, 1.0]}],
        }
    )
    for part in (
        "0.400 [0.350, 0.450]",
        "oracle judge",
        "+0.100 [+0.050, +0.150]",
        "0.10–0.30",
        "terse &lt;x&gt;",
        "2:8",
        "<dd>counting, &lt;b&gt;</dd>",
        "<dd>2: 8, 4: (a: yes)</dd>",
    ):
        assert part in html, part
    assert "off" not in html
    assert html.index("step 2") < html.index("step 10") and not re.search(r"https?:", html)

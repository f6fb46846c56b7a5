import json
import re

import pytest
import torch

from reprise.backend.reports.training import render_report, write_report
from reprise.backend.storage.cache import Cache


@pytest.fixture
def run(tmp_path):
    """A run of two steps, with an evaluation before and after, and HTML in a prompt."""
    cache = Cache(tmp_path / "rollouts" / "pictures")
    for key in ("aa11", "bb22"):
        cache.put_image(key, torch.rand(8, 8, 3))
    sample = {
        "prompt": "a <b>cat</b>",
        "reason": "r",
        "rewrite": "a large cat",
        "fallback": None,
        "picture": "aa11",
        "scores": {"redness": 0.5},
    }
    evaluations = [
        {"step": step, "held-out/redness": value, "held-out/words": 3, "samples": [sample]}
        for step, value in ((0, 0.25), (2, 0.75))
    ]
    evaluations[0]["unchanged/redness"] = 0.125
    metrics = [
        {
            "step": step,
            "loss": 0.1,
            "reward": 0.5 + step,
            "reward/redness": 0.2 * step,
            "reward/redness/std": 1.0,
            "zero_variance": 0.5,
            "seconds": 12.0,
            "seconds/write": 1.0,
            "pictures_per_second": 2.5,
        }
        for step in (1, 2)
    ]
    row = {
        "step": 2,
        "position": 3,
        "prompt": "a cat",
        "reason": "r",
        "rewrite": "a red cat",
        "seeds": [1],
        "pictures": ["bb22"],
        "scores": {"redness": 0.9},
        "replaced": False,
    }
    rollouts = [
        {**row, "variant": 0, "advantage": -0.5},
        {**row, "variant": 1, "advantage": 1.5},
        {**row, "variant": "original"},
        {**row, "position": 4, "variant": 0, "advantage": 0.0},
        {
            "step": 2,
            "position": 3,
            "prompt": "a cat",
            "variant": 2,
            "pictures": [],
            "scores": {},
            "advantage": -1.0,
            "unparsable": "the answer has no <prompt>",
            "replaced": False,
        },
    ]
    for name, rows in (("metrics", metrics), ("evaluations", evaluations), ("rollouts/rollouts", rollouts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"half')
    (tmp_path / "config.yaml").write_text("model: tiny\nmax_steps: 4\nlora: null\n")
    return tmp_path


def test_the_report_shows_figures_samples_and_the_last_group(run):
    page = write_report(run).read_text()
    assert "2 of 4" in page and "0.25 → 0.75" in page and "12 s" in page and "<b>0.12</b>" in page
    assert 'http-equiv="refresh"' in page and "still running" in page
    assert "a <b>cat</b>" not in page and "a &lt;b&gt;cat&lt;/b&gt;" in page
    # Two pictures of the fixed prompt, and the three of the last group with a signal.
    assert page.count("data:image/png;base64") == 2 + 3
    order = re.findall(r"<b>([+-]\d\.\d\d|not trained on)</b>", page)
    assert order == ["+1.50", "-0.50", "-1.00", "not trained on"]
    assert "has no &lt;prompt&gt;" in page and "as typed" in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_curves_are_drawn_to_scale(run):
    page = render_report(run)
    titles = re.findall(r"<h3>([^<]+)</h3>", page)
    assert titles[:3] == ["redness, evaluated", "Reward, training", "Each reward, training"]
    assert "KL from the initial weights, per token" not in titles  # nothing was logged
    assert re.findall(r'points="([^"]+)"', page)[0] == "6.0,114.0 354.0,6.0"  # .25 at the foot, .75 on top


def test_the_page_of_a_finished_run_does_not_reload(run):
    assert 'http-equiv="refresh"' not in render_report(run, finished=True)


def test_a_run_without_any_step_has_a_report(tmp_path):
    (tmp_path / "config.yaml").write_text("max_steps: 4\n")
    assert "0 of 4" in render_report(tmp_path)
